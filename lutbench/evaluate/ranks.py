"""Measures of the dimensionality of features, from their singular values: effective rank, participation ratio, power law, components.

The last axis of all inputs holds the singular values of centred features, in descending order; other axes are kept.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

FLOOR = 1e-7
"""Singular values below this share of the largest are rounding: they are roots of eigenvalues that are known to 1e-15 of the largest."""


def effective_rank(singular: Values) -> Values:
    """Return exp of the entropy of ``s / sum(s)``: between 1 and the width (Roy and Vetterli 2007; RankMe, Garrido et al. 2023)."""
    from scipy.special import entr  # here, because it takes a while to import

    return np.asarray(np.exp(entr(singular / singular.sum(-1, keepdims=True)).sum(-1)))


def participation_ratio(singular: Values) -> Values:
    """Return ``(sum of variances)^2 / sum of squared variances``, the variances being ``s^2``."""
    variance = singular**2
    return np.asarray(variance.sum(-1) ** 2 / (variance**2).sum(-1))


def power_law(singular: Values, first: int, last: int) -> Values:
    """Return alpha of ``s_i^2 ~ i^-alpha``: least squares of log s_i^2 on log i, i from ``first`` to ``last`` (alpha-ReQ, Agrawal et al. 2022).

    What is below :data:`FLOOR` counts as that, so that directions that features do not use give a number, a large one.
    """
    ranks = np.log(np.arange(first, last + 1))
    centred = ranks - ranks.mean()
    logs = 2 * np.log(np.maximum(singular[..., first - 1 : last], FLOOR * singular[..., :1]))
    return np.asarray(-(logs * centred).sum(-1) / (centred**2).sum())


def components(singular: Values, share: float = 0.9) -> Values:
    """Return how many components have ``share`` of the variance together."""
    variance = singular**2
    reached = variance.cumsum(-1) / variance.sum(-1, keepdims=True)
    return np.asarray((reached < share - 1e-12).sum(-1) + 1.0)


class PowerLawRange(NamedTuple):
    """Ranks that a power law is fitted to."""

    first: int
    last: int

    @classmethod
    def of(cls, first: int, share: float, width: int) -> "PowerLawRange":
        """Return the range from rank ``first`` to ``share`` of the ``width``."""
        return cls(first, int(share * width))


def statistics(fitted: PowerLawRange) -> dict[str, Callable[[Values], Values]]:
    """Return the statistics of a spectrum by the names that tables give them."""
    return {
        "effective rank": effective_rank,
        "participation ratio": participation_ratio,
        "alpha": partial(power_law, first=fitted.first, last=fitted.last),
        "components for 90 %": components,
    }
