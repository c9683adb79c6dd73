"""Store the names of images with the outcomes on them, so that readers know which image an outcome belongs to.

They are one array of bytes in a file of outcomes: every name as UTF-8, with a zero byte behind it, which no name of a file has.
Records of before names were kept have none; their images are told by their rows in the set.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

KEY = "names"
"""What the array is called in a file."""

ARRAY: tuple[tuple[str, ...], int] = (("u1",), 1)
"""Its type and number of dimensions, as layouts say it."""


class OnImages(Protocol):
    """Outcomes on images, in an order."""

    @property
    def images(self) -> str:
        """sha256 over the images' names."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names; empty where they were not kept."""
        ...


def packed_names(names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the array that keeps ``names``, by :data:`KEY`; none without names."""
    if not names:
        return {}
    return {KEY: np.frombuffer("".join(f"{name}\0" for name in names).encode(), np.uint8)}


def unpacked_names(arrays: Mapping[str, NDArray[Any]], n: int, images: str, key: str = KEY) -> tuple[str, ...]:
    """Return the names that :func:`packed_names` kept of ``n`` images with the fingerprint ``images``; empty if there are none.

    Raises:
        ValueError: if they are the names of other images.
    """
    return _names(arrays[key].tobytes(), n, images) if key in arrays else ()


@lru_cache(maxsize=32)  # the many records of one set share one list
def _names(content: bytes, n: int, images: str) -> tuple[str, ...]:
    hashed = hashlib.sha256(content.replace(b"\0", b"\n")).hexdigest()  # as names_fingerprint has it
    if hashed != images or content.count(b"\0") != n or not content.endswith(b"\0"):
        raise ValueError("the names of the images do not match their fingerprint")
    return tuple(content.decode()[:-1].split("\0"))


def labelled_names(names: Sequence[str], n: int) -> Sequence[str]:
    """Return what ``n`` images are told by: their names, or ``row 17`` of the set, from 0, where they were not kept."""
    return names or [f"row {row}" for row in range(n)]


def folder_of_class(names: Sequence[str], label: NDArray[np.integer[Any]]) -> dict[int, str]:
    """Return the class folder that the images of each label (n,) lie in; empty where folders do not tell the classes apart."""
    for part in (0, -2):  # CLASS/IMAGE, and ANYTHING/CLASS/IMAGE
        folders: dict[int, set[str]] = defaultdict(set)
        for name, of in zip(names, label.tolist(), strict=False):  # no names where none were kept
            folders[of].add(name.split("/")[part] if "/" in name else "")
        found = {of: next(iter(some)) for of, some in folders.items() if len(some) == 1}
        if len({*found.values()}) == len(folders):
            return found
    return {}


def check_same_images(outcomes: Iterable[OnImages]) -> None:
    """Check that outcomes are of the same images in the same order.

    Raises:
        ValueError: if not, naming the first image that differs where names were kept.
    """
    first, *others = outcomes
    for other in others:
        if other.images == first.images:
            continue
        found = f"{first.images[:12]} and {other.images[:12]} are the fingerprints of their names"
        if first.names and other.names:
            pairs = enumerate(zip(first.names, other.names, strict=False))  # of more images in one the counts are told
            differing = (f"row {row} is {one!r} and {two!r}" for row, (one, two) in pairs if one != two)
            found = next(differing, f"{len(first.names):,} and {len(other.names):,} images")
        raise ValueError(f"the methods were measured on different images: {found}")
