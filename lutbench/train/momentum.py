"""The teacher's momentum at every step, and the share of its initial weights that remains at the end. Does not import PyTorch."""

import math
from typing import Literal

Schedule = Literal["cosine", "fixed"]

MOSTLY_KEPT = 0.1
"""Remaining share of the initial weights above which users are warned (our choice)."""

ENOUGH = 21
"""``(1 - momentum) * steps`` of a cosine schedule that leaves e^-10.5, 3 in 100,000, of the initial weights: the value that a warning
suggests (our choice; the paper's 0.996 over 1,600 epochs of ImageNet-1K has 2,000)."""


def momentum_at(start: float, step: int, steps: int, schedule: Schedule = "cosine") -> float:
    """Return the momentum at optimiser step ``step`` of ``steps``: a half cosine from ``start`` to 1 (release), or ``start``."""
    if schedule == "fixed":
        return start
    return 1 - (1 - start) * (1 + math.cos(math.pi * step / steps)) / 2


def initial_share(start: float, steps: int, schedule: Schedule = "cosine") -> float:
    """Return the share of the teacher's initial weights in its final ones: the product of the momenta of all ``steps``.

    About ``exp(-(1 - start) * steps / 2)`` for a cosine schedule.
    """
    if schedule == "fixed":
        return float(start**steps)
    import numpy as np  # here, because suite files are read without it

    momenta = 1 - (1 - start) * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    return float(np.prod(momenta))


def kept_of_the_first_weights(start: float, steps: int, schedule: Schedule) -> str:
    """Return a warning if a large share of the teacher's random initial weights would remain at the end; else empty.

    No warning for a momentum of 1, which keeps the initial weights on purpose.
    """
    if start == 1 or (share := initial_share(start, steps, schedule)) <= MOSTLY_KEPT:
        return ""
    enough = ENOUGH if schedule == "cosine" else ENOUGH / 2
    if steps > enough:
        digits = max(2, 1 + math.ceil(-math.log10(enough / steps)))
        advice = f"{1 - enough / steps:.{digits}g} would leave {initial_share(1 - enough / steps, steps, schedule):.2g}"
    else:
        advice = "so short a run does not need a teacher"
    return (
        f"at the end, {100 * share:.0f} % of the teacher would still be its random initial weights: momentum = {start:g} suits runs of "
        f"more than {steps:,} steps; {advice}."
    )
