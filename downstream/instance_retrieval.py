"""Instance retrieval: the photographs of a building, from a query's box on one of them (revisited Oxford and Paris, Radenovic et al. 2018)."""

import time
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from downstream.stage import check_weights
from lutbench.data.preflight import preflight
from lutbench.data.revisited import RevisitedImages
from lutbench.data.tensors import normalised, to_tensor
from lutbench.errors import UserError
from lutbench.evaluate.inference import check_finite, over_images
from lutbench.evaluate.queries import QueryScores
from lutbench.models.blocks import probe_features
from lutbench.models.pretrained import encoder_of
from lutbench.plan.compute import transformer
from lutbench.plan.cost import Cost
from lutbench.recipes.retrieval import InstanceRetrievalRecipe
from lutbench.run import Run
from lutbench.train.processes import accelerator

__all__ = ["check", "check_weights", "cost", "perform"]  # what lutbench.kinds asks for

PROTOCOLS = {
    "Medium": (("easy", "hard"), ("junk",)),
    "Hard": (("hard",), ("junk", "easy")),
    "Easy": (("easy",), ("junk", "hard")),
}
"""What is to be found, and what is left out of the ranking as if it were not there, by protocol (section 3.3); Medium and Hard are printed."""

FIRST = (1, 5, 10)
"""Numbers of first images whose precision is measured."""


def check(run: Run[InstanceRetrievalRecipe]) -> None:
    """Find what would stop a run before any compute is spent.

    Raises:
        UserError: as :func:`check_weights`; if lists or images are absent or no images, or a protocol has nothing to find.
    """
    check_weights(run)
    queries: RevisitedImages = run.dataset("queries")
    for name, (wanted, _) in PROTOCOLS.items():
        if not any(len(found[part]) for found in queries.relations for part in wanted):
            raise UserError(
                f"{queries.name}: no query has a correct image under protocol {name}. Use the lists as published."
            )
    preflight(run, run.dataset("database"), queries, bits_can_be_set=False)


def cost(run: Run[InstanceRetrievalRecipe], classes: int) -> Cost:
    """Return what it takes to encode an image; nothing is kept."""
    return Cost(evaluate=transformer(run.recipe.encoder.architecture, run.recipe.side).flop)


def perform(run: Run[InstanceRetrievalRecipe]) -> None:
    """Encode database and queries, rank the database for each query, and write the record.

    Raises:
        UserError: if the encoder's weights do not fit, features are not finite, or an image cannot be decoded.
    """
    recipe, processes, prepared = run.recipe, accelerator(), run.preprocessing
    encoder = encoder_of(run, recipe.image_size).to(processes.device).eval()
    transform = partial(squashed, side=recipe.side, interpolation=prepared.interpolation)

    def features(split: str) -> Tensor:
        """Return the features (n, D) of a split, of length 1."""
        images: RevisitedImages = run.dataset(split)
        found = over_images(
            lambda pixels, _: probe_features(
                encoder, normalised(pixels, mean=prepared.mean, std=prepared.std), recipe.pooling, recipe.blocks_taken
            ),
            images,
            transform,
            recipe,
            f"{run.name} {split}",
        )
        check_finite(found.values.isfinite().all(1).numpy(), images, found.index, "the encoder's features")
        return functional.normalize(found.values, dim=1)

    began = time.monotonic()
    database, queries = features("database"), features("queries")
    encoding = time.monotonic() - began
    if processes.is_main_process:
        asked: RevisitedImages = run.dataset("queries")
        ranking = (queries @ database.T).argsort(dim=1, descending=True, stable=True).numpy()
        scores, metrics = protocol_scores(ranking, asked.relations)
        run.save_results(
            QueryScores.of(scores, metrics, 2, [asked.image_name(index) for index in range(len(asked))]),
            seconds=time.monotonic() - began,
            images_per_second=(len(database) + len(queries)) / encoding,
        )


def squashed(image: Image.Image, side: int, interpolation: str) -> Tensor:
    """Return the whole image as uint8 pixels (3, S, S), whatever its aspect."""
    return to_tensor(v2.functional.resize(image, [side, side], v2.InterpolationMode(interpolation)))


def protocol_scores(
    ranking: NDArray[np.int64], relations: tuple[dict[str, NDArray[np.int64]], ...]
) -> tuple[NDArray[np.float64], list[str]]:
    """Return the scores (q, m) of every query, and the names of the m metrics: mAP of each protocol, then mP@k.

    ``ranking`` (q, n) has the database by descending similarity. NaN where a query has nothing to find under a protocol.
    """
    rows = []
    for ranked, found in zip(ranking, relations, strict=True):
        precisions, first = [], []
        for wanted, left_out in PROTOCOLS.values():
            places = ranks_of(
                ranked, *(np.concatenate([found[part] for part in parts]) for parts in (wanted, left_out))
            )
            precisions.append(average_precision(places))
            first += [precision_at(places, k) for k in FIRST]
        rows.append([*precisions, *first])
    names = [f"mAP {name}" for name in PROTOCOLS] + [f"mP@{k} {name}" for name in PROTOCOLS for k in FIRST]
    return np.array(rows), names


def ranks_of(ranked: NDArray[np.int64], wanted: NDArray[np.int64], junk: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places, from 0 and ascending, of ``wanted`` images in a ranking of which ``junk`` is taken out."""
    left = ranked[~np.isin(ranked, junk)]
    return np.flatnonzero(np.isin(left, wanted))


def average_precision(places: NDArray[np.int64]) -> float:
    """Return the area below precision over recall, by trapezoids, of images found at ``places`` from 0; NaN of none.

    As published with the sets (and with Oxford5k, Philbin et al. 2007): at each found image the mean of the precision before it, which is 1
    at the first place, and behind it.
    """
    if not len(places):
        return float("nan")
    before = np.arange(len(places))
    precision_before = np.divide(before, places, out=np.ones(len(places)), where=places > 0)
    precision_behind = (before + 1) / (places + 1)
    return float((precision_before + precision_behind).mean() / 2)


def precision_at(places: NDArray[np.int64], k: int) -> float:
    """Return the share of the first ``k`` images that are among those found at ``places``; NaN if there are none to find.

    As published, of no more images than up to the last one that is to be found.
    """
    if not len(places):
        return float("nan")
    among = min(k, int(places[-1]) + 1)
    return float((places < among).sum() / among)
