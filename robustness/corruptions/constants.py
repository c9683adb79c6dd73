"""How strong each corruption is at each severity, as published for images of 224, 64 and 32 pixels: ``constants.toml``."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Row = tuple[float, ...]


@dataclass(frozen=True)
class Constants:
    """One publication's strengths."""

    name: str
    """The dataset they were published for."""
    side: int
    """Side of its images in pixels."""
    rows: Mapping[str, tuple[Row, ...]]
    """The arguments at severities 1 to 5, by corruption."""


PUBLISHED = tuple(
    Constants(name, table.pop("side"), {corruption: tuple(map(tuple, rows)) for corruption, rows in table.items()})
    for name, table in tomllib.loads(Path(__file__).with_name("constants.toml").read_text(encoding="utf-8")).items()
)
IMAGENET_C, TINY_IMAGENET_C, CIFAR_10_C = PUBLISHED


def constants_for(side: int) -> Constants:
    """Return the constants published for the side nearest to ``side`` in proportion (our choice): below 46 pixels
    CIFAR-10-C's, below 120 Tiny-ImageNet-C's, else ImageNet-C's. Lengths in pixels are left as published."""
    return min(PUBLISHED, key=lambda published: max(side / published.side, published.side / side))
