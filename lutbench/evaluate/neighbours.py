"""Weighted k-nearest-neighbour vote (Wu et al. 2018, section 3.4), for the task k-NN and for k-NN by depth in an analysis."""

import torch
from torch import Tensor
from torch.nn import functional

from lutbench.data.images import ImageDataset
from lutbench.errors import UserError
from lutbench.evaluate.inference import rank_of_label

QUERIES = 512
"""Queries that are compared at once."""
BANK = 65536
"""Features of the bank that they are compared with at once: 128 MiB of similarities, whatever the size of the datasets."""


def check_neighbours(neighbours: int, images: ImageDataset, bank: int | None = None) -> None:
    """Check that there are as many images as neighbours, and at most ``bank``. Raises UserError if there are fewer."""
    if bank is not None and bank < min(neighbours, len(images)):
        raise UserError(
            f"neighbours = {neighbours} must not be more than bank = {bank}, the number of training images searched: lower neighbours or raise bank."
        )
    if neighbours > len(images):
        raise UserError(
            f"neighbours = {neighbours}, but the training split of {images.name} has only {len(images)} images: "
            "lower neighbours, or use more images."
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
    """Return what :func:`rank_of_label` gives of the vote of the nearest in the bank (Q, 3 + 2 k); probabilities are shares of the votes.

    ``queries`` (Q, D) with ``labels`` (Q,), ``bank`` (M, D) with ``bank_labels`` (M,), normalised here. A neighbour at
    cosine s votes with exp(s / temperature). A class that no neighbour belongs to comes last, not by its number.
    """
    bank = functional.normalize(bank, dim=1)
    results = []
    for chunk, chunk_labels in zip(torch.split(queries, QUERIES), torch.split(labels, QUERIES), strict=True):
        similarity, index = nearest_neighbours(functional.normalize(chunk, dim=1), bank, neighbours)
        votes = vote(similarity, bank_labels[index], classes, temperature)
        result = rank_of_label(votes, chunk_labels, votes / votes.sum(1, keepdim=True))
        voteless = votes.gather(1, chunk_labels[:, None])[:, 0] == 0
        result[:, 1] = torch.where(voteless, classes - 1, result[:, 1])  # a mask as an index would wait for its device
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
