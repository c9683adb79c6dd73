"""Class retrieval: for every validation image, the nearest others by cosine similarity of frozen features."""

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from downstream.cost import encoding as cost
from downstream.stage import check_weights
from lutbench.data.images import ImageDataset
from lutbench.data.preflight import preflight
from lutbench.errors import UserError
from lutbench.evaluate.features import encoding_rate, features_of, kept_splits
from lutbench.evaluate.inference import labels_of
from lutbench.evaluate.neighbours import QUERIES
from lutbench.evaluate.queries import QueryScores
from lutbench.recipes.retrieval import RetrievalRecipe
from lutbench.run import Run
from lutbench.train.processes import accelerator

__all__ = ["check", "check_weights", "cost", "perform"]  # what lutbench.kinds asks for

PRECISION = "mAP@R"
"""Mean over queries of the precision at every place of an image of the class, of the first R, as many as the class has besides the query
(Musgrave et al. 2020, arXiv 2003.08505, section 3.3)."""


def check(run: Run[RetrievalRecipe]) -> None:
    """Find what would stop a run before any compute is spent.

    Raises:
        UserError: as :func:`check_weights`; if images cannot be decoded or show nothing; if no class has two images, or there are not more
            images than nearest ones that are looked at.
    """
    check_weights(run)
    images: ImageDataset = run.dataset("val")
    if images.labels is None:
        raise UserError(
            f"{images.name}: retrieval needs class labels, but split {images.split!r} has none. Put its images into class folders."
        )
    single = int((np.bincount(images.labels[images.labels >= 0]) == 1).sum())
    if len(np.unique(images.labels)) == len(images):
        raise UserError(
            f"{images.name}: every class of split {images.split!r} has only one image, so queries have nothing to find. Retrieval needs at "
            "least two images of a class."
        )
    if (most := max(run.recipe.recall_at)) >= len(images):
        raise UserError(
            f"recall_at = {most} is too large: split {images.split!r} of {images.name} has {len(images)} images, so a query has {len(images) - 1} "
            "others. Use a much smaller number."
        )
    if single:
        run.workspace.note(
            f"{images.name}: {single:,} classes of split {images.split!r} have only one image; these images are not queries."
        )
    preflight(run, images, by_class=True)


def perform(run: Run[RetrievalRecipe]) -> None:
    """Encode the validation images, look for each among the others, and write the record.

    Raises:
        UserError: if the encoder's weights do not fit, or an image cannot be decoded.
    """
    recipe, processes = run.recipe, accelerator()
    images: ImageDataset = run.dataset("val")
    features = features_of(run, "val")
    began = time.monotonic()
    if processes.is_main_process:
        labels = labels_of(images)[torch.from_numpy(features.index)]
        found = class_scores(features.values.to(processes.device), labels.to(processes.device), recipe.recall_at)
        names = [images.image_name(int(index)) for index in features.index]
        metrics = [*(f"recall@{k}" for k in recipe.recall_at), PRECISION]
        run.save_results(
            QueryScores.of(found, metrics, 1, names),
            seconds=features.seconds + time.monotonic() - began,
            images_per_second=encoding_rate([features]),
            extra={"skipped": len(images) - len(features.index), **kept_splits([features])},
        )


def class_scores(features: Tensor, labels: Tensor, recall_at: list[int]) -> NDArray[np.float64]:
    """Return, of every image (n, K + 1), whether one of its class is among the nearest k, for each k, and its precision of :data:`PRECISION`.

    ``features`` (n, D), normalised here; an image is not looked for in itself. NaN where it is the only one of its class.
    """
    features = functional.normalize(features, dim=1)
    others = torch.bincount(labels)[labels] - 1
    rows = []
    for chunk in torch.split(torch.arange(len(features), device=features.device), QUERIES):
        similarity = features[chunk] @ features.T
        similarity[torch.arange(len(chunk), device=chunk.device), chunk] = -torch.inf
        wanted = others[chunk, None]
        nearest = similarity.topk(min(len(features) - 1, max(*recall_at, int(wanted.max())))).indices
        right = labels[nearest] == labels[chunk, None]  # (Q, k)
        place = torch.arange(1, nearest.shape[1] + 1, device=chunk.device)
        precision = (right.cumsum(1) / place * right * (place <= wanted)).double().sum(1, keepdim=True) / wanted
        recall = torch.stack([right[:, :k].any(1) for k in recall_at], 1).double()
        rows.append(torch.cat([recall, precision], 1).where(wanted > 0, torch.nan).cpu())
    return torch.cat(rows).numpy()
