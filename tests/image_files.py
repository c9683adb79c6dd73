"""Small pictures, and class folders of them, for tests that read images from disk."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"cat": (200, 40, 30), "dog": (20, 160, 220), "newt": (90, 200, 10)}


def picture(colour: tuple[int, int, int], number: int = 0, side: int = 12) -> Image.Image:
    pixels = np.random.default_rng(number).integers(-15, 16, (side, side, 3)) + np.array(colour)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def tree(folder: Path, classes: tuple[str, ...] = ("cat", "dog", "newt"), count: int = 3, suffix: str = "png") -> Path:
    """A class folder of ``count`` images for each class."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            picture(COLOURS.get(name, (120, 60, 180)), 10 * number + k).save(folder / name / f"{k}.{suffix}")
    return folder
