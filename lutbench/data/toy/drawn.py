"""Pictures that are drawn for sets which are not there: the colours of a class, in a gradient, under noise."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def drawn(label: int, number: int, width: int = 12, height: int | None = None) -> Image.Image:
    """Return an image of class ``label``, mode RGB: the same for the same numbers, and no two alike."""
    draw = np.random.default_rng([label, number])
    rows, columns = np.indices((height or width, width)) / max(width, height or width)
    colour = np.array([90 + 37 * label % 110, 60 + 71 * label % 130, 80 + 53 * label % 120])
    slope = (rows * ((label + number) % 3 - 1) + columns * (label % 2))[..., None] * 60
    return Image.fromarray((colour + slope + draw.integers(-40, 41, (*rows.shape, 3))).clip(0, 255).astype(np.uint8))


def save_drawn(
    path: Path, label: int, number: int, width: int = 12, height: int | None = None, banner: int = 0
) -> None:
    """Write :func:`drawn` to ``path``, as its ending says, above so many black rows of ``banner``; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = drawn(label, number, width, height)
    whole = Image.new("RGB", (image.width, image.height + banner))
    whole.paste(image)
    whole.save(path, "PNG" if path.suffix == ".png" else "JPEG", quality=95)


def write_lines(path: Path, texts: Sequence[str]) -> None:
    """Write a list, a text a line; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
