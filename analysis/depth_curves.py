"""Curves over depth for the figures of an analysis, with intervals, for one or several seeds of an encoder."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.block_outcomes import ATTENTION, FEATURES, POOLED, TOKENS, BlockOutcomes
from lutbench.evaluate.ranks import effective_rank, statistics
from lutbench.evaluate.statistics import mean_intervals, over_seeds, percentiles

Values = NDArray[np.float64]

LEAST_SHARE = 1e-6
"""Of the first singular value: what is below is rounding, of features in float32."""
LIMITS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("highest", "radial"), (-np.inf, np.inf)), "similarity": (-1, 1), "nmi": (0, 1),
    **dict.fromkeys(("to_class", "to_itself"), (0, 1)), **dict.fromkeys(("right_pooled", "right_class"), (0, 100)),
}  # fmt: skip
"""Beyond these no interval over seeds goes, which knows nothing of them; of all others not below 0."""


class Row(NamedTuple):
    """An encoder that was measured."""

    label: str
    colour: str
    outcomes: Sequence[BlockOutcomes]
    """One per seed."""
    heads: Sequence[NDArray[np.float64]] = ()
    """(5, L, H) The quantities of attention by head, one per seed."""
    runs: Sequence[str] = ()
    """The names of the runs behind it."""


class Group(NamedTuple):
    """Encoders of one architecture, which share grid and blocks."""

    encoder: str
    rows: Sequence[Row]

    @property
    def first(self) -> BlockOutcomes:
        """The outcomes that tell what all share."""
        return self.rows[0].outcomes[0]


def depth_curves(seeds: Sequence[BlockOutcomes]) -> dict[str, Values]:
    """Return what was measured of an encoder against depth, or against frequency, by name.

    The quantities of :data:`ATTENTION` (3, L); of :data:`FEATURES`, ``rank_pooled``, ``rank_tokens``, and in percent ``right_pooled``
    and ``right_class`` (3, L + 1); ``highest`` (3, L), the amplitude of the highest frequency, and ``radial`` (3, F), that of all
    frequencies in the last block. Means over images and seeds, with the ends of their intervals.
    """
    each = [_per_image(one) for one in seeds]
    found: dict[str, Values] = {}
    if len(seeds) > 1:
        found = {
            name: _over_seeds([of[name].mean(0) for of in each], LIMITS.get(name, (0, np.inf))) for name in each[0]
        }
    elif each[0]:
        joined = np.concatenate(list(each[0].values()), 1)  # one bootstrap for all, of the same resamples
        points = np.concatenate([joined.mean(0)[None], mean_intervals(joined)])
        ends = np.cumsum([of.shape[1] for of in each[0].values()])
        found = dict(zip(each[0], np.split(points, ends[:-1], axis=1), strict=True))
    for kind, rows in enumerate(TOKENS):
        if seeds[0].has(f"spectrum_{rows}"):
            ranks = [effective_rank(one.measured[f"spectrum_{rows}"]) for one in seeds]
            points = _over_seeds(ranks)
            if len(seeds) == 1:  # resamples are of the output alone
                place = list(statistics(seeds[0].fitted)).index("effective rank")
                points[1:, -1] = percentiles(2 * ranks[0][-1] - seeds[0].measured["resampled"][kind, place])
            found[f"rank_{rows}"] = points
    return found


def spectrum_curve(seeds: Sequence[BlockOutcomes], rows: str) -> tuple[Values, Values]:
    """Return i / D (K,), and log10 of s_i / s_1 of the output with its interval over seeds (3, K), as far as it is no rounding."""
    singular = np.stack([one.measured[f"spectrum_{rows}"][-1] for one in seeds])
    share = singular / singular[:, :1]
    count = int((share >= LEAST_SHARE).all(0).sum())
    logs = np.log10(share[:, :count])
    return np.arange(1, count + 1) / singular.shape[1], _over_seeds(list(logs), (-np.inf, 0))


def _per_image(one: BlockOutcomes) -> dict[str, Values]:
    """Return every image's values (n, K) of the quantities that are means over images."""
    found = {name: one.measured[name].astype(np.float64) for name in (*ATTENTION, *FEATURES) if one.has(name)}
    found |= {name: 100.0 * one.measured[name] for name in (f"right_{pool}" for pool in POOLED) if one.has(name)}
    if one.has("amplitude"):
        amplitude = one.measured["amplitude"].astype(np.float64)
        found |= {"highest": amplitude[:, :, -1], "radial": amplitude[:, -1]}
    return found


def _over_seeds(values: Sequence[Values], limits: tuple[float, float] = (0, np.inf)) -> Values:
    """Return the mean (3, K) of the values of every seed (K,), with Student's interval; of one seed without."""
    mean = np.mean(values, 0)
    if len(values) == 1:
        return np.stack([mean, mean, mean])
    ends = np.array([over_seeds(of.tolist()) for of in np.stack(values, 1)]).T
    return np.concatenate([mean[None], ends.clip(*limits)])
