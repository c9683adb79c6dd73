"""What one run asks of the machine, in numbers."""

from typing import NamedTuple

from lutbench.errors import UserError

ASPECT = 4 / 3
"""Long side over short side of an image whose size is not known (our choice: the photographs' of most cameras)."""


class Cost(NamedTuple):
    """What one run asks of the machine."""

    train: float = 0
    """FLOP for an image that is trained on, or encoded for a probe."""
    evaluate: float = 0
    """FLOP for an image that is evaluated."""
    checkpoint: int = 0
    """Numbers in a checkpoint: weights, the optimiser's two moments of what is trained, and the teacher."""
    exported: int = 0
    """Numbers in the weights that stay."""


class NotCountedError(UserError):
    """What a model computes cannot be counted."""
