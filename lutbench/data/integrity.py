"""Scans of the files of a dataset: which can be decoded, which are of an unusual kind, and which are in both splits."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lutbench.data.decoding import decode
from lutbench.errors import UserError, listed
from lutbench.progress import tracked

SAMPLE = 256
"""Images of each split, evenly spaced, that a check looks at if it does not look at all."""

COMPARED = 4096
"""At most so many training images are read to find a sample's duplicates: 0.5 GB of ImageNet."""

AT_ONCE = 1024
"""Images that threads work on before any result is taken: bounds what waits in memory."""

DIGEST = "S16"
"""Half a sha256: ImageNet's digests take 20 MB, and two different files have one only in 2 ** 64 files."""

T = TypeVar("T")


class Files(Protocol):
    """One split's images as they are stored, with or without masks, which have a check of their own."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n,) Bytes of every image; less than 1 where there is none."""
        ...

    def __len__(self) -> int: ...

    def content(self, index: int) -> bytes:
        """Return an image's file. Raises UserError if it cannot be read."""
        ...

    def image_name(self, index: int) -> str: ...


@dataclass(frozen=True)
class Scan:
    """Findings in one split's files."""

    indices: NDArray[np.int64]
    """(n,) The images that were looked at; empty files are not, they are known by their size."""
    empty: list[str]
    """Names of all files without a byte."""
    broken: list[str]
    """Names of those looked at that cannot be read or decoded."""
    unusual: dict[str, list[str]]
    """Names of those looked at, by what is unusual about them and no fault."""
    digests: NDArray[np.bytes_] | None
    """(n,) Digests of the bytes of those looked at; empty where a file could not be read. None if not asked for."""

    @property
    def undecodable(self) -> list[str]:
        """Names of all images that are known to be undecodable."""
        return [*self.empty, *self.broken]


@dataclass(frozen=True)
class Duplicates:
    """Validation images that are training images too, byte for byte."""

    pairs: list[tuple[str, str]]
    """Name in val, and the first such name in train."""
    compared: str
    """The number of images that were compared, for messages."""

    def __str__(self) -> str:
        if not self.pairs:
            return f"no image is in both splits, byte for byte ({self.compared})"
        named = listed((f"val {val} = train {train}" for val, train in self.pairs), 3)
        many = "images are" if len(self.pairs) > 1 else "image is"
        return f"{len(self.pairs):,} val {many} in train too, byte for byte ({self.compared}): {named}"


def scan(files: Files, count: int | None = None, digests: bool = False) -> Scan:
    """Decode ``count`` images, evenly spaced, or all; each file is read once."""
    spaced = np.unique(np.linspace(0, len(files) - 1, min(count or len(files), len(files))).astype(np.int64))
    filled = files.sizes > 0
    indices = spaced[filled[spaced]]
    broken: list[str] = []
    unusual: dict[str, list[str]] = {}
    found = np.zeros(len(indices), DIGEST) if digests else None
    scanned = _over(lambda index: _scan(files, index, digests), indices, f"decoding {files.name} {files.split}")
    for row, (index, one) in enumerate(zip(indices.tolist(), scanned, strict=True)):
        if one.broken:
            broken.append(files.image_name(index))
        if one.unusual:
            unusual.setdefault(one.unusual, []).append(files.image_name(index))
        if found is not None:
            found[row] = one.digest
    empty = [files.image_name(index) for index in np.flatnonzero(~filled).tolist()]
    return Scan(indices, empty, broken, unusual, found)


def find_duplicates(train: Files, val: Files, scans: tuple[Scan, Scan]) -> Duplicates:
    """Find the scanned val images that are in train: among all, where digests were taken, else among those of the same
    number of bytes, at most :data:`COMPARED`.
    """
    of_train, of_val = (one.digests for one in scans)
    if of_train is not None and of_val is not None:
        pairs = _equal(of_train, of_val)
        compared = f"{len(of_val):,} compared with {len(of_train):,}"
        return Duplicates(_named(train, val, scans[0].indices, scans[1].indices, pairs), compared)
    asked = scans[1].indices
    alike = np.flatnonzero(np.isin(train.sizes, val.sizes[asked]))
    some = alike[np.unique(np.linspace(0, len(alike) - 1, min(len(alike), COMPARED)).astype(np.int64))]
    asked = asked[np.isin(val.sizes[asked], train.sizes[some])]
    digests = []
    for files, indices in ((train, some), (val, asked)):
        title = f"comparing {files.name} {files.split}"
        read = _over(lambda index, files=files: _digest_of(files, index), indices, title)  # type: ignore[misc]
        digests.append(np.fromiter(read, DIGEST, len(indices)))
    of = f" of {len(alike):,}" if len(some) < len(alike) else ""
    compared = f"{len(scans[1].indices):,} compared with {len(some):,}{of} of the same size in bytes"
    return Duplicates(_named(train, val, some, asked, _equal(*digests)), compared)


def _equal(train: NDArray[np.bytes_], val: NDArray[np.bytes_]) -> list[tuple[int, int]]:
    """Return the indices in val, and the first in train, of equal digests."""
    if not len(train):
        return []
    order = np.argsort(train, kind="stable")
    index = np.minimum(np.searchsorted(train, val, sorter=order), len(train) - 1)
    equal = np.flatnonzero((train[order[index]] == val) & (val != b""))
    return list(zip(equal.tolist(), order[index[equal]].tolist(), strict=True))


def _named(
    train: Files,
    val: Files,
    of_train: NDArray[np.int64],
    of_val: NDArray[np.int64],
    pairs: list[tuple[int, int]],
) -> list[tuple[str, str]]:
    return [(val.image_name(int(of_val[one])), train.image_name(int(of_train[other]))) for one, other in pairs]


class _Scanned(NamedTuple):
    broken: bool
    unusual: str
    digest: bytes


def _scan(files: Files, index: int, digest: bool) -> _Scanned:
    try:
        content = files.content(index)
    except UserError:
        return _Scanned(True, "", b"")
    taken = sha256(content).digest()[:16] if digest else b""
    try:
        decode(content, "")
    except UserError:
        return _Scanned(True, "", taken)
    return _Scanned(False, _unusual(content), taken)


def _unusual(content: bytes) -> str:
    with Image.open(BytesIO(content)) as image:  # the header alone
        if image.has_transparency_data:
            return "with transparency"
        kinds = {"RGB": "", "L": "", "P": "with a palette", "1": "black and white", "CMYK": "in CMYK"}
        return kinds.get(image.mode, "of more than 8 bits" if image.mode[0] == "I" else f"of mode {image.mode}")


def _digest_of(files: Files, index: int) -> bytes:
    try:
        return sha256(files.content(index)).digest()[:16]
    except UserError:
        return b""


def _over(function: Callable[[int], T], indices: NDArray[np.int64], title: str) -> Iterator[T]:
    """Yield ``function`` of every index, in order, by threads: reading waits, and Pillow decodes in parallel."""

    def results() -> Iterator[T]:
        with ThreadPoolExecutor() as threads:
            for first in range(0, len(indices), AT_ONCE):
                yield from threads.map(function, indices[first : first + AT_ONCE].tolist())

    return tracked(results(), len(indices), title)
