"""Statistics of the training features, and centring, standardising or whitening with them. All in float64.

Pooled features of masked autoencoders lie in a narrow cone: their cosines are near 1, and few directions have most of the variance, which
then dominate k-NN and regularised regression.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lutbench.errors import UserError
from lutbench.evaluate.ranks import effective_rank
from lutbench.train.processes import accelerator

FLOOR = 1e-6
"""Whitening drops directions whose variance is below this share of the largest (our choice): bfloat16 features have a precision of 2^-9, so
smaller variation is rounding noise, which whitening would amplify. With fewer images than features this also drops empty directions."""

ROWS = 65536
"""Images that are gone through at once, whatever the size of the set."""


class Transform(NamedTuple):
    """An affine map of features x (m, D): ``(x - shift) * scale``, or ``(x - shift) @ scale`` where scale is a matrix."""

    shift: Tensor
    """(D,)"""
    scale: Tensor
    """(D,) or (D, E)"""

    def __call__(self, features: Tensor) -> Tensor:
        """Return the features (m, D) transformed, (m, D) or (m, E), of the type that they have."""
        return torch.cat([self._exact(part).to(features.dtype) for part in torch.split(features, ROWS)])

    def _exact(self, features: Tensor) -> Tensor:
        centred = features.to(self.shift.device, torch.float64) - self.shift
        return (centred * self.scale if self.scale.ndim == 1 else centred @ self.scale).to(features.device)

    def folded(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layer (C, D) and (C,) on features as they are that does what ``weight`` (C, E), ``bias`` (C,) do on transformed ones."""
        scale = self.scale.to(weight.device)
        on_features = weight * scale if scale.ndim == 1 else weight @ scale.T
        return on_features, bias - on_features @ self.shift.to(weight.device)


class FeatureStatistics(NamedTuple):
    """Of the features (m, D) of some images."""

    mean: Tensor
    """(D,)"""
    covariance: Tensor
    """(D, D), over m."""
    mean_cosine: float
    """Over all pairs of different images; 1 where all features point one way."""
    effective_rank: float
    """How many directions the centred features use, see :func:`lutbench.evaluate.ranks.effective_rank`; 0 where all are equal."""
    images: int

    def extra(self) -> dict[str, float]:
        """Return what a record keeps of it, to six digits: the last ones of features depend on the number of threads."""
        return {name: float(f"{getattr(self, name):.6g}") for name in ("mean_cosine", "effective_rank")}


def statistics_of(features: Tensor) -> FeatureStatistics:
    """Return the statistics of features (m, D), m at least 2."""
    count, width = features.shape
    device = accelerator().device
    device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    total, directions = torch.zeros(2, width, dtype=torch.float64, device=device)
    lengths = torch.zeros((), dtype=torch.float64, device=device)
    for part in torch.split(features, ROWS):
        rows = part.to(device, torch.float64)
        unit = functional.normalize(rows, dim=1)
        total, directions, lengths = total + rows.sum(0), directions + unit.sum(0), lengths + unit.square().sum()
    mean = total / count
    covariance = torch.zeros(width, width, dtype=torch.float64, device=device)
    for part in torch.split(features, ROWS):
        rows = part.to(device, torch.float64) - mean
        covariance.addmm_(rows.T, rows)
    covariance /= count
    # All pairs' cosines sum to the squared length of the sum; without those of an image with itself.
    cosine = (directions.square().sum() - lengths) / (count * (count - 1))
    singular = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0).sqrt().cpu().numpy()
    rank = float(effective_rank(singular)) if singular[0] > 0 else 0.0
    return FeatureStatistics(mean, covariance, float(cosine), rank, count)


def transform_of(statistics: FeatureStatistics, name: str) -> Transform | None:
    """Return the transform for ``feature_transform = name`` from statistics of the training images; None for ``none``.

    - ``centre``: subtract the mean.
    - ``standardise``: also divide every feature by its standard deviation; constant features stay unchanged, as in scikit-learn.
    - ``whiten``: PCA whitening: subtract the mean, project on the eigenvectors of the covariance, and divide by the standard deviations.
      Directions below :data:`FLOOR` are dropped.

    Raises:
        UserError: if all images have the same features, so that whitening is impossible.
    """
    mean, covariance = statistics.mean, statistics.covariance
    if name == "none":
        return None
    if name == "centre":
        return Transform(mean, torch.ones_like(mean))
    if name == "standardise":
        deviation = covariance.diagonal().sqrt()
        varies = deviation > 10 * np.finfo(np.float64).eps * mean.abs()
        return Transform(mean, 1 / deviation.where(varies, torch.ones_like(deviation)))
    variances, directions = torch.linalg.eigh(covariance)
    kept = variances > FLOOR * variances[-1].clamp(min=1e-300)
    if not kept.any():
        raise UserError(
            'feature_transform = "whiten": the features of all training images are equal, so they cannot be whitened. Check the encoder '
            "and its weights."
        )
    return Transform(mean, directions[:, kept] / variances[kept].sqrt())
