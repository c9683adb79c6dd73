"""Similarity of features: between patches of an image, two views of an image, and different images."""

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 512
"""Images whose distances to all are computed at once."""


def token_similarity(tokens: Tensor) -> Tensor:
    """Return the mean cosine (B,) over all pairs of different patches of an image, of ``tokens`` (B, N, D), N at least 2.

    Near 1 where all patches say the same, the over-smoothing of deep networks.
    """
    directions = functional.normalize(tokens.float(), dim=-1)
    count = tokens.shape[1]
    # All pairs' cosines sum to the squared length of the sum; without those of a patch with itself.
    pairs = directions.sum(1).square().sum(-1) - directions.square().sum((1, 2))
    return pairs / (count * (count - 1))


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Return the squared distances (m,) of two views' features (m, D), normalised to length 1 (Wang and Isola 2020, alpha 2)."""
    return (functional.normalize(first.float(), dim=1) - functional.normalize(second.float(), dim=1)).square().sum(1)


def uniformity(features: Tensor) -> Tensor:
    """Return values (m,) whose mean is the uniformity of features (m, D), m at least 2 (Wang and Isola 2020, t 2).

    That is log U, with U the mean of exp(-2 |x_i - x_j|^2) over pairs of different images, features normalised to length 1. An
    image's value is log U + 2 (u_i / U - 1), u_i being the mean over its own pairs: its first-order part in log U, so that a
    bootstrap of the mean over images has the variance of log U.
    """
    directions = functional.normalize(features.float(), dim=1)
    count = len(directions)
    near = []
    for start in range(0, count, ROWS):
        cosines = directions[start : start + ROWS] @ directions.T
        kernel = (4 * cosines - 4).exp()  # |x - y|^2 = 2 - 2 cos
        kernel.diagonal(start).zero_()
        near.append(kernel.double().sum(1) / (count - 1))
    own = torch.cat(near)
    mean = own.mean()
    return mean.log() + 2 * (own / mean - 1)
