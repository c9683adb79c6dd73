"""Galleries: small images of a dataset that the report shows beside its numbers.

Records contain no images except those of analyses. Galleries are read from the data root and the run folders when the page is
written; a line on the page says what is not there. The report can always be made from records alone.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

QUALITY = 78
"""WebP quality of small images (our choice): 2 to 4 KB each."""


@dataclass(frozen=True)
class AtHand:
    """The folders that images are read from; None: not read."""

    data: Path | None = None
    """The data root."""
    runs: Path | None = None
    """The folder of runs."""


@dataclass(frozen=True)
class Shot:
    """An image with its caption."""

    caption: str
    detail: str = ""
    picture: str = ""
    """A WebP as base64; empty if the image is not there."""
    size: tuple[int, int] = (0, 0)
    colour: str = ""
    """Colour of the method whose prediction this is."""
    runs: Sequence[str] = ()
    """The names of the runs behind its number."""


@dataclass(frozen=True)
class ShotRow:
    """Images that belong together."""

    label: str
    detail: str
    shots: Sequence[Shot]
    colour: str = ""
    """Colour of their method."""
    runs: Sequence[str] = ()
    """The names of the runs behind its number."""


@dataclass(frozen=True)
class Gallery:
    """The images of one task."""

    title: str
    rows: Sequence[ShotRow]
    legend: Sequence[tuple[str, str]] = ()
    """Names and colours of the classes in the images."""
    note: str = ""


@dataclass(frozen=True)
class GallerySection:
    """A section of the page with galleries."""

    title: str
    legend: str
    galleries: Sequence[Gallery]


def packed_picture(image: Image.Image, quality: int = QUALITY) -> str:
    """Return an image as WebP, as base64."""
    content = io.BytesIO()
    image.convert("RGB").save(content, "WEBP", quality=quality, method=4)
    return base64.b64encode(content.getvalue()).decode()


def spread_out(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the numbers below ``count``: ascending, evenly spaced from the first to the last."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / max(1, most - 1)) for place in range(most)]
