"""Singular values of the features of all images, accumulated batch by batch, and resampling intervals of their statistics."""

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from lutbench.data.walking import in_threads
from lutbench.errors import UserError
from lutbench.evaluate.ranks import PowerLawRange, statistics
from lutbench.evaluate.statistics import Z, draw_counts, student
from lutbench.progress import tracked
from lutbench.train.device import moved
from lutbench.train.processes import accelerator, full_precision
from lutbench.train.randomness import RngStream, generator

GROUPS = 32
"""Groups that images are resampled in (our choice): a D x D matrix of each is kept, 151 MB for a ViT-B."""

RESAMPLES = 300
"""Resamples of the groups (our choice): each takes the eigenvalues of a D x D matrix, 30 ms of a core for a ViT-B."""

AT_ONCE = 2**25
"""Numbers of the resampled matrices that are there at once: 256 MiB."""

FEWEST_RANKS = 3
"""Ranks that a power law is fitted to at least (our choice): two always lie on a line."""


class Covariances:
    """Number, sum and second moments of the rows of a feature matrix, D wide, for each of some groups of images.

    All in float64, whose memory does not grow with the number of images. Rows are taken relative to the mean of the first ones that
    are added, without which a large mean would leave nothing of a small deviation.
    """

    def __init__(self, width: int, groups: int, device: torch.device) -> None:
        self.device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        self.count = torch.zeros(groups, dtype=torch.float64, device=self.device)
        self.total = torch.zeros(groups, width, dtype=torch.float64, device=self.device)
        self.second = torch.zeros(groups, width, width, dtype=torch.float64, device=self.device)
        self.shift: Tensor | None = None

    @torch.no_grad()
    def add(self, features: Tensor, group: Tensor) -> None:
        """Add the features of B images: a row of each (B, D), or its tokens (B, N, D).

        ``group`` (B,), int64, says each image's group. It is read on the CPU: on a device, it is waited for. Images of group -1 are
        left out, such as those that only fill up a process's share.
        """
        for one in group[group >= 0].unique().tolist():
            chosen = moved((group == one).nonzero()[:, 0])
            rows = features[chosen].flatten(0, -2).to(self.device, torch.float64)
            if self.shift is None:
                self.shift = rows.mean(0)
            rows = rows - self.shift
            self.count[one] += len(rows)
            self.total[one] += rows.sum(0)
            self.second[one].addmm_(rows.T, rows)

    def gather(self) -> "Covariances":
        """Return those of all processes' rows; called by all of them."""
        processes = accelerator()
        if processes.num_processes == 1:
            return self
        own = torch.zeros_like(self.total[0]) if self.shift is None else self.shift
        rows = self.count.sum()
        shift = processes.reduce(own * rows, "sum") / processes.reduce(rows, "sum")
        shifted = Covariances(self.total.shape[1], len(self.count), self.device)
        shifted.shift = shift
        by = own - shift
        crossed = self.total[:, :, None] * by
        shifted.count = processes.reduce(self.count, "sum")
        shifted.total = processes.reduce(self.total + self.count[:, None] * by, "sum")
        shifted.second = processes.reduce(
            self.second + crossed + crossed.mT + self.count[:, None, None] * torch.outer(by, by), "sum"
        )
        return shifted

    def singular_values(self) -> NDArray[np.float64]:
        """Return the singular values (D,) of all rows, centred, in descending order.

        They are those of the whole matrix to 1e-6 of the largest, also those that are 0.

        Raises:
            UserError: if a feature is not finite, or all rows are equal to float32's precision.
        """
        assert self.shift is not None, "rows were added"
        if not self.second.isfinite().all():
            raise UserError(
                "The encoder's features are not finite, so they have no singular values. The training diverged, or the weights are "
                "unusable."
            )
        values: NDArray[np.float64] = self._singular_values(torch.ones_like(self.count)[None])[0]
        of_rounding = torch.finfo(torch.float32).eps * float(self.count.sum().sqrt() * self.shift.norm())
        if values[0] <= of_rounding:
            raise UserError(
                "The encoder's features are equal for all images, so they have no spectrum. The training collapsed, or the weights are "
                "unusable."
            )
        return values

    def resampled(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the singular values (R, D) where each group is there as often as ``counts`` (R, groups) says."""
        at_once = max(1, AT_ONCE // self.second[0].numel())
        parts = torch.from_numpy(counts).to(self.device).split(at_once)
        return np.concatenate(
            [self._singular_values(part) for part in tracked(parts, len(parts), "spectra of resamples")]
        )

    def _singular_values(self, weights: Tensor) -> NDArray[np.float64]:
        """Return them (R, D) for groups with ``weights`` (R, groups): roots of the eigenvalues of the centred scatter."""
        total = weights @ self.total
        scatter = (weights @ self.second.flatten(1)).view(-1, *self.second.shape[1:])
        scatter -= total[:, :, None] * (total / (weights @ self.count)[:, None])[:, None]
        return np.sqrt(np.maximum(_eigenvalues(scatter.cpu().numpy()), 0))[:, ::-1].copy()


def _eigenvalues(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the eigenvalues (R, D), ascending, of symmetric ``matrices`` (R, D, D), each in one thread, as many at once as torch has threads.

    At this size LAPACK's own threads gain nothing, and wait for each other wherever cores are shared.
    """
    with threadpool_limits(1, "blas"):
        threads = torch.get_num_threads()
        return np.stack(
            list(in_threads(np.linalg.eigvalsh, list(matrices), "eigenvalues", threads=threads, shown=False))
        )


def groups_of(images: int) -> NDArray[np.int64]:
    """Return the group (n,) of each image, from 0 to min(GROUPS, n) - 1; groups differ by one image at most.

    Drawn, since neighbours in a dataset are often of one class; under a key of the number of images alone, so that every encoder's
    groups are the same.
    """
    groups = np.empty(images, np.int64)
    order = generator(RngStream.ANALYSIS, images).permutation(images)
    groups[order] = np.arange(images) % min(GROUPS, images)
    return groups


def resampled_statistics(covariances: Covariances, fitted: PowerLawRange) -> NDArray[np.float64]:
    """Return the statistics of a spectrum (4, RESAMPLES) on resamples of the groups of images, in :func:`lutbench.evaluate.ranks.statistics`'s order.

    A block bootstrap whose blocks are the groups: all rows of an image are in one, so that tokens of an image need not be independent.
    The resamples are the same for every encoder on the same images. G groups are few: resamples differ from all images too little, by
    sqrt((G - 1) / G), and an interval needs the quantiles of Student's t and not the normal distribution's. For both, what is drawn is
    moved away from the value on all images (Hesterberg 2015, "What teachers should know about the bootstrap", where percentiles are).
    """
    groups = len(covariances.count)
    counts = draw_counts(np.random.PCG64(np.random.SeedSequence(0)), RESAMPLES, groups)
    singular = covariances.resampled(np.concatenate([np.ones((1, groups)), counts]))
    found = np.stack([statistic(singular) for statistic in statistics(fitted).values()])
    value, drawn = found[:, :1], found[:, 1:]
    widened = (groups / (groups - 1)) ** 0.5 * student(groups - 1) / Z
    return np.asarray(value + widened * (drawn - value))


@torch.no_grad()
def token_rank(tokens: Tensor) -> Tensor:
    """Return the participation ratio (B,), float32, of the covariance C of each image's patch tokens (B, N, D): ``(tr C)^2 / tr C^2``.

    Between 1 and min(N - 1, D), and 0 where all tokens of an image are equal. By traces, without eigenvalues, of whichever of the
    N x N and the D x D products is smaller.
    """
    with full_precision(tokens.device):
        centred = tokens.float() - tokens[:, :1].float()  # so that equal tokens give exactly 0
        centred = centred - centred.mean(1, keepdim=True)
        tiny = torch.finfo(torch.float32).tiny
        # no fourth power of what is at most 1 overflows, nor do all underflow
        centred = centred / centred.abs().amax((1, 2), keepdim=True).clamp(min=tiny)
        product = centred @ centred.mT if tokens.shape[1] <= tokens.shape[2] else centred.mT @ centred
        return centred.square().sum((1, 2)).square() / product.square().sum((1, 2)).clamp(min=tiny)


def check_enough(images: int, width: int, fitted: PowerLawRange) -> None:
    """Check that there are images enough for the spectrum of features ``width`` wide, and ranks enough for its power law.

    Nearly every resample has at least half of the images, so that twice as many are needed as the last rank that is fitted.

    Raises:
        UserError: if there are fewer; it says how many are needed.
    """
    ranks = fitted.last - fitted.first + 1
    if ranks < FEWEST_RANKS:
        raise UserError(
            f"The power-law fit needs at least {FEWEST_RANKS} ranks, but with features of width {width}, alpha_from and alpha_to leave "
            f'{max(0, ranks)}, from {fitted.first} to {fitted.last}. Lower alpha_from, raise alpha_to, or remove "spectrum" from measures.'
        )
    needed = max(width, 2 * fitted.last) + 1
    if images < needed:
        raise UserError(
            f"A spectrum of features of width {width} needs at least {needed:,} images, found {images:,}. Use more images (settings images, split "
            'or data), or remove "spectrum" from measures.'
        )
