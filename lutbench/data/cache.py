"""A cache of resized images, for pre-training with the simple crop.

The simple crop resizes the short side to S pixels before any random step, so without a cache every epoch would decode and resize
every file to the same pixels. The cache stores these pixels as uncompressed 8-bit RGB (our choice: no decoding, and results are bit for
bit those of the files) in memory-mapped Arrow files. 1000 images with ImageNet's aspect ratios take 200 MB at S = 224.

It is stored below the data root in ``.lutbench/cache/``, in a folder named after the dataset's fingerprint and S;
:mod:`lutbench.data.cache_build` makes it. The cache's own fingerprint (:mod:`lutbench.data.cache_place`), which is part of the identity
of runs that read it, is computed from the dataset's fingerprint and the resizing. The cache is not needed for that, so it may be removed
when a run has finished.
"""

from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from PIL import __version__ as PILLOW
from pydantic import BaseModel, ConfigDict

from lutbench.data.cache_place import cache_fingerprint, cache_folder
from lutbench.data.decoding import Pixels, UndecodableImage
from lutbench.data.images import ImageDataset
from lutbench.data.tensors import resize_short_side
from lutbench.data.walking import evenly_spaced
from lutbench.errors import UserError, listed
from lutbench.files import read_model
from lutbench.progress import console, is_first_process
from lutbench.sources import digest_of

MAKER = "lutbench.data.cache_build"

LOOKED_AT = 8
"""Number of images per file, evenly spaced, that are checked when a cache is opened."""

FEATURES = datasets.Features(
    {"pixels": datasets.Value("binary"), "height": datasets.Value("int32"), "width": datasets.Value("int32")}
)


class ShardMetadata(BaseModel):
    """Metadata of one Arrow file; written after the file."""

    model_config = ConfigDict(extra="forbid")

    file: str
    images: int
    undecodable: int
    bytes: int
    sha256: str
    pillow: str
    """Pillow version that decoded and resized the images."""
    code: str = ""
    """Hash of the source code that made the file, see :func:`lutbench.sources.digest_of`; empty for old files."""


class CacheMetadata(BaseModel):
    """Content of ``cache.json``, written when all shards are complete."""

    model_config = ConfigDict(extra="forbid")

    set: str
    split: str
    side: int
    source: str
    """Fingerprint of the dataset."""
    how: dict[str, str]
    shards: list[ShardMetadata]


@dataclass
class CachedImages:
    """A split of a dataset, read from its cache. Images that could not be decoded have no pixels here."""

    name: str
    split: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64] | None
    skip_undecodable: bool
    fingerprint: str
    sizes: NDArray[np.int64] = field(repr=False)
    """(n,) Bytes of the original, encoded images."""
    folder: Path
    rows: datasets.Dataset = field(repr=False)
    stored: "StoredPixels" = field(repr=False)
    """The pixels of ``rows``."""
    source: ImageDataset = field(repr=False)
    """The dataset with the original images."""

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        """Return a resized image, mode RGB.

        Raises:
            UndecodableImage: if it could not be decoded when the cache was made.
        """
        return Image.fromarray(self.pixels(index))

    def pixels(self, index: int) -> Pixels:
        """Return the pixels (H, W, 3) of :meth:`image`, a read-only view of the mapped file. Raises the same errors."""
        pixels = self.stored[index]
        if not pixels.size:
            raise UndecodableImage(
                f"{self.name}: {self.image_name(index)} could not be decoded when the cache {self.folder} was made. "
                f'Replace or remove the image, or set undecodable = "skip" in the suite file\'s [data] table to skip such images.'
            )
        return pixels

    def content(self, index: int) -> bytes:
        """Return the original, encoded image."""
        return self.source.content(index)

    def image_name(self, index: int) -> str:
        """Return the name of the original image."""
        return self.source.image_name(index)


class StoredPixels:
    """The images of a cache by index, as views of the mapped files without copying. Pickled by its rows."""

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
        """Return an image (H, W, 3), read-only; of size 0 if it could not be decoded."""
        number = int(self._firsts.searchsorted(index, "right")) - 1
        ends, content = self._chunks[number]
        row = index - self._firsts[number]
        return content[ends[row] : ends[row + 1]].reshape(self._heights[index], self._widths[index], 3)


def _ends_and_bytes(chunk: pa.BinaryArray) -> tuple[NDArray[np.int32], Pixels]:
    """Return the offsets (n + 1,) of the rows of an Arrow array, and its bytes."""
    _, ends, content = chunk.buffers()
    offsets = np.frombuffer(ends, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return offsets, np.frombuffer(content, np.uint8) if content else np.empty(0, np.uint8)


def open_cache(images: ImageDataset, side: int, root: Path) -> CachedImages | None:
    """Return the cache of ``images`` if it exists. The sizes of its files are checked, but not their checksums.

    Checksums of ImageNet's 38 GB would take a minute at every start. A crash or a bad copy can leave files of full size filled with zeros;
    these are found by checking :data:`LOOKED_AT` images of every file.

    Raises:
        UserError: if a file is missing, has another size or other rows than written, lost content, or cannot be read; or if the cache
            holds undecodable images, and the dataset does not skip them.
    """
    folder = cache_folder(images, side, root)
    path = folder / "cache.json"
    if not path.is_file():
        return None
    metadata = read_model(path, CacheMetadata)
    if metadata is None:
        raise UserError(f"{path} is damaged. Remove it; the next run makes it and any damaged files again.")
    parts = [_open_shard(folder / shard.file, shard) for shard in metadata.shards]
    first = 0
    for number, (shard, part) in enumerate(zip(metadata.shards, parts, strict=True)):
        if part is not None and metadata.source == images.fingerprint and _was_lost(part, first, images, side):
            parts[number] = None
        first += shard.images
    wrong = [shard.file for shard, part in zip(metadata.shards, parts, strict=True) if part is None]
    if wrong or sum(shard.images for shard in metadata.shards) != len(images):
        raise UserError(
            f"{folder}: {listed(wrong) or 'cache.json'} {'are' if len(wrong) > 1 else 'is'} damaged. For a known dataset, "
            "`lutbench data prepare` repairs the cache; otherwise remove the folder, and the next run makes it again."
        )
    undecodable = sum(shard.undecodable for shard in metadata.shards)
    if undecodable and not images.skip_undecodable:
        raise UndecodableImage(
            f"{images.name}: {undecodable:,} images could not be decoded when the cache {folder} was made. Set undecodable = "
            '"skip" in the suite file\'s [data] table, or replace or remove these images (`lutbench data check` lists them).'
        )
    others = [f"Pillow {version}" for version in sorted({shard.pillow for shard in metadata.shards} - {PILLOW})]
    others += ["other code"] if {shard.code for shard in metadata.shards} - {"", digest_of(MAKER)} else []
    if others and is_first_process():
        console.print(
            f"{folder} was made with {listed(others)}, now Pillow {PILLOW} is installed: pixels may differ from those of freshly decoded "
            "and resized images. To make the cache again, remove the folder."
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
    """Return whether an image of a shard is all zeros in the cache but not in its file; ``first`` is the shard's first index."""
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
    """Return a shard's rows; None if it is damaged."""
    try:
        if file.stat().st_size != metadata.bytes:
            return None
        rows = datasets.Dataset.from_file(str(file))
    except (pa.ArrowException, OSError, ValueError):  # damaged bytes raise all three
        return None
    return rows if rows.features == FEATURES and len(rows) == metadata.images else None
