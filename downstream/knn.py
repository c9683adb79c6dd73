"""Weighted k-nearest neighbours on frozen features (Wu et al. 2018, section 3.4; the values are DINO's)."""

import time

import torch
from torch import Tensor
from torch.nn import functional

from downstream.cost import encoding as cost
from downstream.stage import check_classification, check_weights
from lutbench.data.images import ImageDataset
from lutbench.errors import UserError
from lutbench.evaluate.inference import encode_images, labels_of, outcomes_of, rank_of_label
from lutbench.models.pretrained import encoder_of
from lutbench.recipes.downstream import KnnRecipe
from lutbench.run import Run
from lutbench.train.processes import accelerator

__all__ = ["check", "check_weights", "cost", "perform"]  # what lutbench.kinds asks for

QUERIES = 512
"""Queries that are compared at once."""
BANK = 65536
"""Features of the bank that they are compared with at once: 128 MiB of similarities, whatever the size of the datasets."""


def check(run: Run[KnnRecipe]) -> None:
    """Find what would stop a run before any compute is spent.

    Raises:
        UserError: see :func:`check_classification`; also if there are fewer images than neighbours.
    """
    check_classification(run)
    check_neighbours(run.recipe, run.dataset("train"))


def perform(run: Run[KnnRecipe]) -> None:
    """Classify the validation images by their nearest training images, and write the record.

    Raises:
        UserError: if the encoder's weights do not fit, an image cannot be decoded, or there are too few images.
    """
    recipe, processes = run.recipe, accelerator()
    device = processes.device
    images: ImageDataset = run.dataset("train")
    held_out: ImageDataset = run.dataset("val")
    check_neighbours(recipe, images)
    encoder = encoder_of(run, recipe.image_size).to(device)

    began = time.monotonic()
    bank = encode_images(encoder, images, recipe, run.preprocessing, f"{run.name} features")
    queries = encode_images(encoder, held_out, recipe, run.preprocessing, f"{run.name} evaluation")
    encoding = time.monotonic() - began
    if processes.is_main_process:
        ranked = knn_classify(
            queries.values.to(device),
            labels_of(held_out)[torch.from_numpy(queries.index)].to(device),
            bank.values.to(device),
            labels_of(images)[torch.from_numpy(bank.index)].to(device),
            len(images.classes),
            recipe.neighbours,
            recipe.temperature,
        )
        run.save_results(
            outcomes_of(ranked.cpu(), held_out, queries.index, recipe.metric),
            seconds=time.monotonic() - began,
            images_per_second=(len(images) + len(held_out)) / encoding,
            extra={"skipped": len(images) - len(bank.index) + len(held_out) - len(queries.index)},
        )


def check_neighbours(recipe: KnnRecipe, images: ImageDataset) -> None:
    """Check that there are as many images as neighbours. Raises UserError if there are fewer."""
    if recipe.neighbours > len(images):
        raise UserError(
            f"neighbours = {recipe.neighbours}, and the training split of {images.name} has {len(images)} images: "
            "lower neighbours, or give more images."
        )


def knn_classify(
    queries: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    classes: int,
    neighbours: int,
    temperature: float,
) -> Tensor:
    """Return prediction and rank of the label (Q, 2), see :func:`rank_of_label`, by the vote of the nearest in the bank.

    ``queries`` (Q, D) with ``labels`` (Q,), ``bank`` (M, D) with ``bank_labels`` (M,), normalised here. A neighbour at
    cosine s votes with exp(s / temperature). A class that no neighbour belongs to comes last, not by its number.
    """
    bank = functional.normalize(bank, dim=1)
    results = []
    for chunk, chunk_labels in zip(torch.split(queries, QUERIES), torch.split(labels, QUERIES), strict=True):
        similarity, index = nearest_neighbours(functional.normalize(chunk, dim=1), bank, neighbours)
        votes = vote(similarity, bank_labels[index], classes, temperature)
        result = rank_of_label(votes, chunk_labels)
        voteless = votes.gather(1, chunk_labels[:, None])[:, 0] == 0
        result[voteless, 1] = classes - 1
        results.append(result)
    return torch.cat(results)


def nearest_neighbours(queries: Tensor, bank: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Return the highest inner products (Q, k) of ``queries`` (Q, D) with ``bank`` (M, D), and where in the bank (Q, k)."""
    best = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), BANK):
        similarity, found = (queries @ bank[start : start + BANK].T).topk(min(neighbours, BANK, len(bank) - start))
        best, index = torch.cat([best, similarity], 1), torch.cat([index, found + start], 1)
        best, chosen = best.topk(min(neighbours, best.shape[1]))
        index = index.gather(1, chosen)
    return best, index


def vote(similarity: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """Return the votes (Q, C) of neighbours with ``similarity`` (Q, k) and ``labels`` (Q, k).

    Relative to the nearest neighbour's, which leaves the order as it is and lets no temperature overflow.
    """
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    return weights.new_zeros(len(weights), classes).scatter_add_(1, labels, weights)
