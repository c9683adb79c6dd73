"""Scan the files of a dataset: find undecodable images, unusual image modes, and images that are in both splits."""

from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lutbench.data.decoding import decode, lacks_end
from lutbench.data.images import Files
from lutbench.data.walking import evenly_spaced, in_threads
from lutbench.errors import UserError, listed

SAMPLE = 256
"""Number of images per split, evenly spaced, that a check decodes if it does not decode all."""

COMPARED = 4096
"""Maximum number of training images read to find duplicates of a sample: 0.5 GB for ImageNet."""

CUT = "cut off"
"""The kind of images that can be decoded although the end of the file is missing."""

DIGEST = "S16"
"""Half a sha256: the digests of ImageNet take 20 MB, and a collision is expected only among 2 ** 64 files."""


@dataclass(frozen=True)
class Scan:
    """Findings in one split's files."""

    indices: NDArray[np.int64]
    """(n,) Indices of the scanned images; empty files are not scanned."""
    empty: list[str]
    """Names of all empty files."""
    broken: list[str]
    """Names of the scanned images that cannot be read or decoded."""
    unusual: dict[str, list[str]]
    """Names of the scanned images that are unusual but not faulty, by kind."""
    digests: NDArray[np.bytes_] | None
    """(n,) Digests of the scanned files; empty for unreadable files. None if not requested."""

    @property
    def undecodable(self) -> list[str]:
        """Names of all images found to be undecodable."""
        return [*self.empty, *self.broken]


@dataclass(frozen=True)
class Duplicates:
    """Validation images that are also training images, byte for byte."""

    pairs: list[tuple[str, str]]
    """Name in val, and the first such name in train."""
    compared: str
    """The number of images that were compared, for messages."""

    def __str__(self) -> str:
        if not self.pairs:
            return f"no image is in both splits (byte for byte; {self.compared})"
        named = listed((f"val {val} = train {train}" for val, train in self.pairs), 3)
        many = "images are" if len(self.pairs) > 1 else "image is"
        return f"{len(self.pairs):,} val {many} also in train (byte for byte; {self.compared}): {named}"


def scan(files: Files, count: int | None = None, digests: bool = False) -> Scan:
    """Decode ``count`` images, evenly spaced, or all if None. Each file is read once."""
    spaced = evenly_spaced(len(files), count or len(files))
    filled = files.sizes > 0
    indices = spaced[filled[spaced]]
    numbers = indices.tolist()
    broken: list[str] = []
    unusual: dict[str, list[str]] = {}
    found = np.zeros(len(indices), DIGEST) if digests else None
    title = f"decoding {files.name} {files.split}"
    scanned = in_threads(lambda index: _scan(files, index, digests), numbers, title)
    for row, (index, (kind, digest)) in enumerate(zip(numbers, scanned, strict=True)):
        if kind is None:
            broken.append(files.image_name(index))
        elif kind:
            unusual.setdefault(kind, []).append(files.image_name(index))
        if found is not None:
            found[row] = digest
    empty = [files.image_name(index) for index in np.flatnonzero(~filled).tolist()]
    return Scan(indices, empty, broken, unusual, found)


def find_duplicates(train: Files, val: Files, scans: tuple[Scan, Scan]) -> Duplicates:
    """Find the scanned val images that are also in train. Compares all images if digests were taken, otherwise at most
    :data:`COMPARED` training images of the same size in bytes.
    """
    in_train, in_val = scans[0].indices, scans[1].indices
    digests = [one.digests for one in scans if one.digests is not None]
    if len(digests) == 2:
        compared = f"{len(in_val):,} compared with {len(in_train):,}"
    else:
        alike = np.flatnonzero(np.isin(train.sizes, val.sizes[in_val]))
        in_train = alike[evenly_spaced(len(alike), COMPARED)]
        of = f" of {len(alike):,}" if len(in_train) < len(alike) else ""
        compared = f"{len(in_val):,} compared with {len(in_train):,}{of} of the same size in bytes"
        in_val = in_val[np.isin(val.sizes[in_val], train.sizes[in_train])]
        digests = [_digests(train, in_train), _digests(val, in_val)]
    pairs = [
        (val.image_name(int(in_val[one])), train.image_name(int(in_train[other]))) for one, other in _equal(*digests)
    ]
    return Duplicates(pairs, compared)


def _equal(train: NDArray[np.bytes_], val: NDArray[np.bytes_]) -> list[tuple[int, int]]:
    """Return pairs of equal digests: the index in val and the first index in train."""
    if not len(train):
        return []
    order = np.argsort(train, kind="stable")
    index = np.minimum(np.searchsorted(train, val, sorter=order), len(train) - 1)
    equal = np.flatnonzero((train[order[index]] == val) & (val != b""))
    return list(zip(equal.tolist(), order[index[equal]].tolist(), strict=True))


def _scan(files: Files, index: int, digest: bool) -> tuple[str | None, bytes]:
    """Return what is unusual about an image (None if it cannot be decoded), and its digest if requested and readable."""
    taken = b""
    try:
        content = files.content(index)
        taken = sha256(content).digest()[:16] if digest else b""
        decode(content, "")
    except UserError:
        return None, taken
    return _unusual(content), taken


def _unusual(content: bytes) -> str:
    with Image.open(BytesIO(content)) as image:  # reads only the header
        if lacks_end(content, image.format):
            return CUT
        if image.has_transparency_data:
            return "with transparency"
        kinds = {"RGB": "", "L": "", "P": "with a palette", "1": "black and white", "CMYK": "in CMYK"}
        return kinds.get(image.mode, "of more than 8 bits" if image.mode[0] == "I" else f"of mode {image.mode}")


def _digests(files: Files, indices: NDArray[np.int64]) -> NDArray[np.bytes_]:
    """Return the digests (n,) of some images; empty for unreadable files."""

    def digest(index: int) -> bytes:
        try:
            return sha256(files.content(index)).digest()[:16]
        except UserError:
            return b""

    digests = in_threads(digest, indices.tolist(), f"comparing {files.name} {files.split}")
    return np.fromiter(digests, DIGEST, len(indices))
