"""A set's images resized once and kept as pixels, for pre-training with the simple crop.

That crop resizes the short side to S pixels before anything is drawn, so every epoch would decode and resize every file
to the same pixels. The cache holds just these, 8-bit RGB, uncompressed (our choice: reading costs nothing, and results
are those of the files, bit by bit), in Arrow files that are mapped into memory. Of 1000 images of ImageNet's shape
at S = 224 it takes 200 MB.

It lies below the data root in ``.lutbench/cache/``, in a folder named by the files' fingerprint and the side; how it is made is
in :mod:`lutbench.data.cache_build`. Its fingerprint, which stands in the identity of the runs that read it, is over the source's and
how it was resized: it can be told without the cache, so a cache may be removed when a run has finished.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from PIL import __version__ as PILLOW
from pydantic import BaseModel, ConfigDict

from lutbench.data.decoding import Pixels, UndecodableImage
from lutbench.data.images import ImageDataset
from lutbench.data.tensors import resize_short_side
from lutbench.data.walking import evenly_spaced
from lutbench.errors import UserError, listed
from lutbench.files import read_model
from lutbench.progress import console, is_first_process
from lutbench.sources import digest_of

MAKER = "lutbench.data.cache_build"

HOW = {"resampling": "bicubic", "resized by": "Pillow", "pixels": "8-bit RGB, uncompressed"}
LOOKED_AT = 8
"""Images of every file, evenly spaced, that are looked at when a cache is opened."""

FEATURES = datasets.Features(
    {"pixels": datasets.Value("binary"), "height": datasets.Value("int32"), "width": datasets.Value("int32")}
)


class ShardMetadata(BaseModel):
    """What is known of one file; written after it."""

    model_config = ConfigDict(extra="forbid")

    file: str
    images: int
    undecodable: int
    bytes: int
    sha256: str
    pillow: str
    """Version that decoded and resized its images."""
    code: str = ""
    """Hash of the sources that did, see :func:`lutbench.sources.digest_of`; files of before there were any have none."""


class CacheMetadata(BaseModel):
    """``cache.json``, written when all shards are there."""

    model_config = ConfigDict(extra="forbid")

    set: str
    split: str
    side: int
    source: str
    """Fingerprint of the files."""
    how: dict[str, str]
    shards: list[ShardMetadata]


@dataclass
class CachedImages:
    """A split of a set, read from its cache. An image that could not be decoded cannot be here either."""

    name: str
    split: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64] | None
    skip_undecodable: bool
    fingerprint: str
    sizes: NDArray[np.int64] = field(repr=False)
    """(n,) Bytes of the source's encoded images."""
    folder: Path
    rows: datasets.Dataset = field(repr=False)
    stored: "StoredPixels" = field(repr=False)
    """The pixels of ``rows``."""
    source: ImageDataset = field(repr=False)
    """The dataset whose images these are, as they are stored."""

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        """Return an image whose short side is the cache's, mode RGB.

        Raises:
            UndecodableImage: if it could not be decoded when the cache was made.
        """
        return Image.fromarray(self.pixels(index))

    def pixels(self, index: int) -> Pixels:
        """Return the pixels (H, W, 3) of :meth:`image`, read-only, where they lie in the mapped file. Raises as that does."""
        pixels = self.stored[index]
        if not pixels.size:
            raise UndecodableImage(
                f"{self.name}, {self.image_name(index)} could not be decoded when its cache, {self.folder}, was made. "
                f'Replace or remove the image, or set undecodable = "skip" in the data table of the suite file.'
            )
        return pixels

    def content(self, index: int) -> bytes:
        """Return the source's image as it is stored."""
        return self.source.content(index)

    def image_name(self, index: int) -> str:
        """Return the name of the source's image."""
        return self.source.image_name(index)


class StoredPixels:
    """The images of a cache, by index, where they lie in its mapped files: nothing is copied. Sent to a process as its rows are."""

    def __init__(self, rows: datasets.Dataset) -> None:
        self.rows = rows
        table = rows.data
        self._heights, self._widths = (table.column(name).to_numpy() for name in ("height", "width"))
        chunks = [chunk for chunk in table.column("pixels").chunks if len(chunk)]
        self._firsts = np.cumsum([0, *map(len, chunks)])
        self._chunks = [_ends_and_bytes(chunk) for chunk in chunks]

    def __reduce__(self) -> tuple[type["StoredPixels"], tuple[datasets.Dataset]]:
        return StoredPixels, (self.rows,)

    def __getitem__(self, index: int) -> Pixels:
        """Return an image (H, W, 3), read-only; without pixels if there is none."""
        number = int(self._firsts.searchsorted(index, "right")) - 1
        ends, content = self._chunks[number]
        row = index - self._firsts[number]
        return content[ends[row] : ends[row + 1]].reshape(self._heights[index], self._widths[index], 3)


def _ends_and_bytes(chunk: pa.BinaryArray) -> tuple[NDArray[np.int32], Pixels]:
    """Return where each row of an Arrow array begins and, one behind it, ends, (n + 1,), and the bytes of all."""
    _, ends, content = chunk.buffers()
    offsets = np.frombuffer(ends, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return offsets, np.frombuffer(content, np.uint8) if content else np.empty(0, np.uint8)


def cache_fingerprint(images: ImageDataset, side: int) -> str:
    """Return the fingerprint of the cache of ``images``, made or not: hex sha256 over theirs, the side, and how they are resized."""
    inputs = {**HOW, "short side": side, "source": images.fingerprint}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def cache_folder(images: ImageDataset, side: int, root: Path) -> Path:
    """Return the folder of the cache of ``images``, made or not: another one for other files or another side."""
    return root.absolute() / ".lutbench" / "cache" / f"{side}px-{cache_fingerprint(images, side)[:16]}"


def open_cache(images: ImageDataset, side: int, root: Path) -> CachedImages | None:
    """Return the cache of ``images``, if it was made; sizes of its files are compared, their checksums are not.

    Reading ImageNet's 38 GB for their checksums would take a minute of every start. What a crash or a bad copy leaves of a file at its
    full size are zeros, and those are looked for in :data:`LOOKED_AT` images of every file.

    Raises:
        UserError: if a file of it is missing, has another size or other rows than were written, has lost some, or cannot be read; or if
            it holds images that could not be decoded, and the set does not skip those.
    """
    folder = cache_folder(images, side, root)
    path = folder / "cache.json"
    if not path.is_file():
        return None
    metadata = read_model(path, CacheMetadata)
    if metadata is None:
        raise UserError(f"{path} is not as written. Remove it; the next run makes it, and what is not whole, again.")
    parts = [_open_shard(folder / shard.file, shard) for shard in metadata.shards]
    first = 0
    for number, (shard, part) in enumerate(zip(metadata.shards, parts, strict=True)):
        if part is not None and metadata.source == images.fingerprint and _was_lost(part, first, images, side):
            parts[number] = None
        first += shard.images
    wrong = [shard.file for shard, part in zip(metadata.shards, parts, strict=True) if part is None]
    if wrong or sum(shard.images for shard in metadata.shards) != len(images):
        raise UserError(
            f"{folder}: {listed(wrong) or 'cache.json'} {'are' if len(wrong) > 1 else 'is'} not as written. Of a known set "
            "`lutbench data prepare` makes again what is damaged; else remove the folder, and the next run makes it anew."
        )
    undecodable = sum(shard.undecodable for shard in metadata.shards)
    if undecodable and not images.skip_undecodable:
        raise UndecodableImage(
            f"{images.name}: {undecodable:,} of the images could not be decoded when its cache, {folder}, was made. Set undecodable = "
            '"skip" in the data table of the suite file; or replace or remove them (`lutbench data check` names them).'
        )
    others = [f"Pillow {version}" for version in sorted({shard.pillow for shard in metadata.shards} - {PILLOW})]
    others += ["other code"] if {shard.code for shard in metadata.shards} - {"", digest_of(MAKER)} else []
    if others and is_first_process():
        console.print(
            f"{folder} was made with {listed(others)}, and here is Pillow {PILLOW}: should images be decoded or resized differently, "
            "pixels are not those that the files would give. Remove the folder to make it anew."
        )
    rows = datasets.concatenate_datasets([part for part in parts if part is not None])
    return CachedImages(
        name=images.name,
        split=images.split,
        classes=images.classes,
        labels=images.labels,
        skip_undecodable=images.skip_undecodable,
        fingerprint=cache_fingerprint(images, side),
        sizes=images.sizes,
        folder=folder,
        rows=rows,
        stored=StoredPixels(rows),
        source=images,
    )


def _was_lost(rows: datasets.Dataset, first: int, images: ImageDataset, side: int) -> bool:
    """Return whether an image of a shard, the first of which is ``first``, is all zeros here and is not so in its file."""
    for row in evenly_spaced(len(rows), LOOKED_AT).tolist():
        try:
            pixels: bytes = rows[row]["pixels"]
        except (pa.ArrowException, OSError, ValueError):  # as in _open_shard
            return True
        if pixels.strip(b"\0"):
            continue
        try:
            source = resize_short_side(images.image(first + row), side).tobytes()
        except UndecodableImage:
            source = b""
        if source != pixels:
            return True
    return False


def _open_shard(file: Path, metadata: ShardMetadata) -> datasets.Dataset | None:
    """Return a shard's rows; None if they are not as written."""
    try:
        if file.stat().st_size != metadata.bytes:
            return None
        rows = datasets.Dataset.from_file(str(file))
    except (pa.ArrowException, OSError, ValueError):  # damaged bytes raise all three
        return None
    return rows if rows.features == FEATURES and len(rows) == metadata.images else None
