"""The resources that one run needs, in numbers."""

from typing import NamedTuple

from lutbench.errors import UserError

ASPECT = 4 / 3
"""Aspect ratio of an image of unknown size (our choice: that of most cameras)."""


class Cost(NamedTuple):
    """The resources that one run needs."""

    train: float = 0
    """FLOP per training image, or per image that is encoded for a probe."""
    evaluate: float = 0
    """FLOP per evaluated image."""
    checkpoint: int = 0
    """Numbers in a checkpoint: weights, the two moments of the optimiser, and the teacher."""
    exported: int = 0
    """Numbers in the weights that are kept."""


class NotCountedError(UserError):
    """The FLOP of a model cannot be counted."""
