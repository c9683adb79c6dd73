"""The layout of ``predictions.png``: a few scenes, each as image, ground truth and prediction. Without torch, for the report."""

import numpy as np

FILE = "predictions.png"
HEIGHT = 160
"""Height of every picture, in pixels."""
GAP = 4
"""Pixels between pictures, and around all of them."""
ACROSS = 6
"""Pictures in a row: two scenes of three."""
COUNT = 6
"""Scenes at most."""


def pictured(scenes: int, count: int = COUNT) -> list[int]:
    """Return the indices of the scenes that are drawn: at most ``count``, evenly spaced over the dataset."""
    indices: list[int] = np.linspace(0, scenes - 1, min(count, scenes)).astype(int).tolist()
    return indices
