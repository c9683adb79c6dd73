"""Which cache belongs to a dataset, where it is, and how large it will be; all of this is known before the cache exists.

It imports nothing that computes, so that commands that only read can answer at once.
"""

import hashlib
import json
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from lutbench.data.decoding import BROKEN
from lutbench.data.images import ImageDataset
from lutbench.data.walking import evenly_spaced

HOW = {"resampling": "bicubic", "resized by": "Pillow", "pixels": "8-bit RGB, uncompressed"}

SAMPLED = 64
"""Number of images whose shapes are read to estimate the size of the cache."""


def cache_fingerprint(images: ImageDataset, side: int) -> str:
    """Return the fingerprint of the cache of ``images``, which need not exist: hex sha256 over theirs, the side, and the resizing."""
    inputs = {**HOW, "short side": side, "source": images.fingerprint}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def cache_folder(images: ImageDataset, side: int, root: Path) -> Path:
    """Return the folder of the cache of ``images``, which need not exist; it depends on their fingerprint and the side."""
    return root.absolute() / ".lutbench" / "cache" / f"{side}px-{cache_fingerprint(images, side)[:16]}"


def expected_bytes(images: ImageDataset, side: int) -> int:
    """Return the expected size of the cache in bytes, estimated from :data:`SAMPLED` images, evenly spaced."""
    sampled = evenly_spaced(len(images), SAMPLED).tolist()
    areas = [area for index in sampled if (area := _area(images, index, side))]
    return int(3 * len(images) * np.mean(areas)) if areas else 0


def _area(images: ImageDataset, index: int, side: int) -> float:
    """Return the number of pixels of an image resized to short side ``side``; 0 if it cannot be decoded."""
    try:
        width, height = Image.open(BytesIO(images.content(index))).size
    except BROKEN:
        return 0.0
    return side * side * max(width, height) / min(width, height)
