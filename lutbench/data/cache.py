"""A set's images resized once and kept as pixels, for pre-training with the simple crop.

That crop resizes the short side to S pixels before anything is drawn, so every epoch would decode and resize every file
to the same pixels. The cache holds just these, 8-bit RGB, uncompressed (our choice: reading costs nothing, and results
are those of the files, bit by bit), in Arrow files that are mapped into memory. Of 1000 images of ImageNet's shape
at S = 224 it takes 200 MB.

It lies below the data root in ``.lutbench/cache/``, in a folder named by the files' fingerprint and the side, and is made
shard by shard: what was interrupted goes on. Its fingerprint, which stands in the identity of the runs that read it, is over
the source's and how it was resized: it can be told without the cache, so a cache may be removed when a run has finished.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import datasets
import numpy as np
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image
from PIL import __version__ as PILLOW
from pydantic import BaseModel, ConfigDict, ValidationError

from lutbench.data.decoding import BROKEN, UndecodableImage
from lutbench.data.images import ImageSet
from lutbench.errors import UserError, listed
from lutbench.files import NotJsonError, read_json, whole_file, write_json
from lutbench.pixels import resize_short_side
from lutbench.progress import PATIENCE, console, is_first_process, tracked
from lutbench.weights import sha256_of

SHARD = 512
"""Images of one Arrow file: some 100 MB at 224 pixels (our choice: what an interruption may lose)."""
SAMPLED = 64
"""Images whose shape is looked at to tell the size of the whole."""
HOW = {"resampling": "bicubic", "resized by": "Pillow", "pixels": "8-bit RGB, uncompressed"}
FEATURES = datasets.Features(
    {"pixels": datasets.Value("binary"), "height": datasets.Value("int32"), "width": datasets.Value("int32")}
)


class ShardFacts(BaseModel):
    """What is known of one file; written after it."""

    model_config = ConfigDict(extra="forbid")

    file: str
    images: int
    undecodable: int
    bytes: int
    sha256: str
    pillow: str
    """Version that decoded and resized its images."""


class CacheFacts(BaseModel):
    """``cache.json``, written when all shards are there."""

    model_config = ConfigDict(extra="forbid")

    set: str
    split: str
    side: int
    source: str
    """Fingerprint of the files."""
    how: dict[str, str]
    shards: list[ShardFacts]


@dataclass
class CachedImages:
    """A split of a set, read from its cache. An image that could not be decoded cannot be here either."""

    source: ImageSet = field(repr=False)
    folder: Path
    side: int
    fingerprint: str
    rows: datasets.Dataset = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        """The set's."""
        return self.source.name

    @property
    def split(self) -> str:
        """The source's."""
        return self.source.split

    @property
    def classes(self) -> tuple[str, ...]:
        """The source's."""
        return self.source.classes

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The source's."""
        return self.source.labels

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Of the source's images."""
        return self.source.sizes

    @property
    def skip_undecodable(self) -> bool:
        """The source's."""
        return self.source.skip_undecodable

    def image(self, index: int) -> Image.Image:
        """An image whose short side is ``side``, mode RGB.

        Raises:
            UndecodableImage: if it could not be decoded when the cache was made.
        """
        row = self.rows[index]
        if not row["height"]:
            raise UndecodableImage(
                f"{self.name}, {self.image_name(index)} could not be decoded when its cache, {self.folder}, was made. "
                f'Replace or remove the image, or set undecodable = "skip" in the data table of the suite file.'
            )
        return Image.frombytes("RGB", (row["width"], row["height"]), row["pixels"])

    def content(self, index: int) -> bytes:
        """The source's image as it is stored."""
        return self.source.content(index)

    def image_name(self, index: int) -> str:
        """The source's."""
        return self.source.image_name(index)


def cache_fingerprint(images: ImageSet, side: int) -> str:
    """Of the cache of ``images``, whether or not it is there: hex sha256 over theirs, the side, and how they are resized."""
    told = {**HOW, "short side": side, "source": images.fingerprint}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def cache_folder(images: ImageSet, side: int, root: Path) -> Path:
    """Where the cache of ``images`` lies, or would lie: another one for other files or another side."""
    return root.absolute() / ".lutbench" / "cache" / f"{side}px-{cache_fingerprint(images, side)[:16]}"


def open_cache(images: ImageSet, side: int, root: Path) -> CachedImages | None:
    """The cache of ``images``, if it was made; sizes of its files are compared, their checksums are not.

    Raises:
        UserError: if a file of it is missing, has another size or other rows than were written, or cannot be read; or if it
            holds images that could not be decoded, and the set does not skip those.
    """
    folder = cache_folder(images, side, root)
    path = folder / "cache.json"
    if not path.is_file():
        return None
    facts = _read(path, CacheFacts)
    if facts is None:
        raise UserError(f"{path} is not as written. Remove it; the next run makes it, and what is not whole, again.")
    parts = [_open_shard(folder / shard.file, shard) for shard in facts.shards]
    wrong = [shard.file for shard, part in zip(facts.shards, parts, strict=True) if part is None]
    if wrong or sum(shard.images for shard in facts.shards) != len(images):
        raise UserError(
            f"{folder}: {listed(wrong) or 'cache.json'} {'are' if len(wrong) > 1 else 'is'} not as written. Remove "
            f"{'them' if len(wrong) > 1 else 'it'} and cache.json; the next run makes again what is missing."
        )
    undecodable = sum(shard.undecodable for shard in facts.shards)
    if undecodable and not images.skip_undecodable:
        raise UserError(
            f"{images.name}: {undecodable:,} images could not be decoded when its cache, {folder}, was made. Set undecodable = "
            '"skip" in the data table of the suite file; or replace or remove them (`lutbench data check` names them).'
        )
    others = {shard.pillow for shard in facts.shards} - {PILLOW}
    if others and is_first_process():
        console.print(
            f"{folder} was made with Pillow {listed(sorted(others))}, and here is {PILLOW}: should it decode or resize differently, "
            "pixels are not those that the files would give. Remove the folder to make it anew."
        )
    rows = datasets.concatenate_datasets([part for part in parts if part is not None])
    return CachedImages(images, folder, side, cache_fingerprint(images, side), rows)


def make_cache(images: ImageSet, side: int, root: Path) -> CachedImages:
    """The cache of ``images``, made if it is not there; what an interruption left of it is gone on with.

    Processes that ask for it at once wait for the one that makes it. Prints the size before it begins.

    Raises:
        UserError: if an image cannot be decoded and the set does not skip those, or there is no room; what was made
            until then stays and is used by the next call.
    """
    if len(images) == 0:
        raise UserError(f"{images.name}: split {images.split!r} has no images to keep in a cache.")
    if cached := open_cache(images, side, root):  # which needs no permission to write
        return cached
    folder = cache_folder(images, side, root)
    with _held(folder):
        if not (folder / "cache.json").is_file():
            _make(images, side, folder)
    made = open_cache(images, side, root)
    assert made is not None
    return made


def repair_cache(images: ImageSet, side: int, root: Path) -> int | None:
    """Compare all checksums of a cache, and make again what is damaged: how many files. None if it was not made to its end.

    Raises:
        UserError: as :func:`make_cache`.
    """
    folder = cache_folder(images, side, root)
    if not folder.is_dir():
        return None
    with _held(folder):
        path = folder / "cache.json"
        whole, facts = path.is_file(), _read(path, CacheFacts)
        files = {folder / shard.file for shard in facts.shards} if facts else set()
        broken = _damaged(sorted(files | set(folder.glob("[0-9]*.arrow"))), folder.name)
        # Shards first: should this be interrupted, a file that is missing is noticed, and one that is damaged may not be.
        for file in broken:
            file.unlink(missing_ok=True)
        if broken or facts is None:
            path.unlink(missing_ok=True)
        if whole and not path.is_file():
            _make(images, side, folder)
    return len(broken) if whole else None


def _damaged(files: list[Path], name: str) -> list[Path]:
    """Those that are missing, or do not have the checksum that the facts beside them tell."""

    def is_damaged(file: Path) -> bool:
        facts = _read(file.with_suffix(".json"), ShardFacts)
        return facts is None or not file.is_file() or sha256_of(file) != facts.sha256

    return [
        file for file in tracked(files, len(files), f"comparing checksums of {name}", shown=True) if is_damaged(file)
    ]


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Make the folder, and hold it against other processes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            if is_first_process():
                console.print(f"{folder}: another process is at work on this cache; waiting for it.")
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}. The cache lies below the data root: give one that you may write "
            "to with --data-root (its sets may be links), or leave the cache out with cache = false."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _open_shard(file: Path, facts: ShardFacts) -> datasets.Dataset | None:
    """A shard's rows; None if they are not as written."""
    try:
        if file.stat().st_size != facts.bytes:
            return None
        rows = datasets.Dataset.from_file(str(file))
    except (pa.ArrowException, OSError, ValueError):  # damaged bytes raise all three
        return None
    return rows if rows.features == FEATURES and len(rows) == facts.images else None


Facts = TypeVar("Facts", bound=BaseModel)


def _read(path: Path, kind: type[Facts]) -> Facts | None:
    """Facts; None if they are not there or not as written."""
    try:
        return kind.model_validate(read_json(path))
    except (OSError, NotJsonError, ValidationError):
        return None


def expected_bytes(images: ImageSet, side: int) -> int:
    """What the cache takes on disk, from the shapes of :data:`SAMPLED` images, evenly spaced."""
    sampled = np.unique(np.linspace(0, len(images) - 1, min(SAMPLED, len(images))).astype(np.int64))
    areas = [area for index in sampled if (area := _area(images, int(index), side))]
    return int(3 * len(images) * np.mean(areas)) if areas else 0


def _area(images: ImageSet, index: int, side: int) -> float:
    """Pixels of an image whose short side is ``side``; 0 if it cannot be decoded."""
    try:
        width, height = Image.open(BytesIO(images.content(index))).size
    except BROKEN:
        return 0.0
    return side * side * max(width, height) / min(width, height)


def _make(images: ImageSet, side: int, folder: Path) -> None:
    """Write the shards that are missing, then ``cache.json``; the folder is held."""
    for partial in folder.glob(".*.partial-*"):  # of a process that was killed
        partial.unlink()
    starts = list(range(0, len(images), SHARD))
    counts = [min(SHARD, len(images) - start) for start in starts]
    files = [folder / f"{number:05d}.arrow" for number in range(len(starts))]
    missing = [number for number, file in enumerate(files) if not _is_whole(file, counts[number])]
    share = sum(counts[number] for number in missing) / len(images)
    wanted, free = int(expected_bytes(images, side) * share), shutil.disk_usage(folder).free
    already = f", {len(files) - len(missing)} of {len(files)} files are there already" if share < 1 else ""
    console.print(
        f"{images.name}: cache of {len(images):,} images of split {images.split!r}, short side {side}: about "
        f"{_gigabytes(wanted)} in {folder}; {_gigabytes(free)} free{already}"
    )
    if wanted > free:
        raise UserError(
            f"{folder}: the cache of {images.name} needs about {_gigabytes(wanted)}, and {_gigabytes(free)} are free. Make "
            "room, give a data root on a larger disk (its sets may be links), or leave the cache out with cache = false."
        )
    todo = [index for number in missing for index in range(starts[number], starts[number] + counts[number])]
    with ThreadPoolExecutor() as threads:
        title = f"resizing {images.name} {images.split}"
        resized = tracked(_resized(images, side, todo, threads), len(todo), title, shown=True)
        for number in missing:
            _write_shard(files[number], resized, counts[number])
    shards = [ShardFacts.model_validate(read_json(file.with_suffix(".json"))) for file in files]
    facts = CacheFacts(
        set=images.name, split=images.split, side=side, source=images.fingerprint, how=HOW, shards=shards
    )
    write_json(folder / "cache.json", facts.model_dump())


def _is_whole(file: Path, images: int) -> bool:
    """Whether a shard was written to its end, with so many images and by this Pillow: never are two mixed."""
    facts = _read(file.with_suffix(".json"), ShardFacts)
    if facts is None or not file.is_file():
        return False
    return (facts.images, facts.pillow, facts.bytes) == (images, PILLOW, file.stat().st_size)


def _resized(
    images: ImageSet, side: int, indices: list[int], threads: ThreadPoolExecutor
) -> Iterator[NDArray[np.uint8]]:
    """The resized images in order, by threads: Pillow decodes and resizes in parallel."""

    def resize(index: int) -> NDArray[np.uint8]:
        try:
            return np.asarray(resize_short_side(images.image(index), side))
        except UndecodableImage:
            if not images.skip_undecodable:
                raise
            return np.empty((0, 0, 3), np.uint8)

    at_once = 128
    for first in range(0, len(indices), at_once):
        yield from threads.map(resize, indices[first : first + at_once])


def _write_shard(path: Path, resized: Iterator[NDArray[np.uint8]], images: int) -> None:
    """Write the next so many images, then the facts about the file beside it."""
    undecodable = 0
    with whole_file(path) as partial:
        writer = ArrowWriter(path=str(partial), features=FEATURES, writer_batch_size=SHARD)
        try:
            for _ in range(images):
                pixels = next(resized)
                height, width, _ = pixels.shape
                undecodable += height == 0
                writer.write({"pixels": pixels.tobytes(), "height": height, "width": width})
            writer.finalize()
        finally:
            writer.close()
    facts = ShardFacts(
        file=path.name,
        images=images,
        undecodable=undecodable,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
        pillow=PILLOW,
    )
    write_json(path.with_suffix(".json"), facts.model_dump())


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
