"""A set's images resized once and kept as pixels, for pre-training with the simple crop.

That crop resizes the short side to S pixels before anything is drawn, so every epoch would decode and resize every file
to the same pixels. The cache holds just these, 8-bit RGB, uncompressed (our choice: reading costs nothing, and results
are those of the files, bit by bit), in Arrow files that are mapped into memory. Of 1000 images of ImageNet's shape
at S = 224 it takes 200 MB.

It lies below the data root in ``.lutbench/cache/``, in a folder named by set, split, side and the files' fingerprint, and
is made shard by shard: what was interrupted goes on. Its fingerprint is over the source's, how it was resized and the
checksums of all shards, and stands in the identity of the runs that read it.
"""

import hashlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from PIL import __version__ as PILLOW

from lutbench.data.decoding import BROKEN, UndecodableImage
from lutbench.data.images import ImageSet
from lutbench.errors import UserError, listed
from lutbench.files import read_json, whole_file, write_json
from lutbench.pixels import resize_short_side
from lutbench.progress import console, tracked
from lutbench.weights import sha256_of

SHARD = 512
"""Images of one Arrow file: some 100 MB at 224 pixels (our choice: what an interruption may lose)."""
SAMPLED = 64
"""Images whose shape is looked at to tell the size of the whole."""
HOW = {"resampling": "bicubic", "resized by": "Pillow", "pixels": "8-bit RGB, uncompressed"}
FEATURES = datasets.Features(
    {"pixels": datasets.Value("binary"), "height": datasets.Value("int32"), "width": datasets.Value("int32")}
)


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
        table = self.rows.data
        height, width = table["height"][index].as_py(), table["width"][index].as_py()
        if not height:
            raise UndecodableImage(
                f"{self.name}, {self.image_name(index)} could not be decoded when its cache, {self.folder}, was made. "
                f'Replace or remove the image, or set undecodable = "skip" in the data table of the suite file.'
            )
        pixels = np.frombuffer(table["pixels"][index].as_buffer(), np.uint8)
        return Image.fromarray(pixels.reshape(height, width, 3))

    def content(self, index: int) -> bytes:
        """The source's image as it is stored."""
        return self.source.content(index)

    def image_name(self, index: int) -> str:
        """The source's."""
        return self.source.image_name(index)


def cache_folder(images: ImageSet, side: int, root: Path) -> Path:
    """Where the cache of ``images`` lies, or would lie: another one for other files or another side."""
    name = images.name.replace("/", "-")
    return root.absolute() / ".lutbench" / "cache" / f"{name}-{images.split}-{side}-{images.fingerprint[:12]}"


def open_cache(images: ImageSet, side: int, root: Path) -> CachedImages | None:
    """The cache of ``images``, if it was made; sizes of its files are compared, their checksums are not.

    Raises:
        UserError: if a file of it is missing, has another size than was written, or cannot be read.
    """
    folder = cache_folder(images, side, root)
    path = folder / "cache.json"
    if not path.is_file():
        return None
    facts: dict[str, Any] = read_json(path)
    files = [folder / shard["file"] for shard in facts["shards"]]
    parts, wrong = [], []
    for file, shard in zip(files, facts["shards"], strict=True):
        if not file.is_file() or file.stat().st_size != shard["bytes"]:
            wrong.append(file.name)
            continue
        try:
            parts.append(datasets.Dataset.from_file(str(file)))
        except pa.ArrowInvalid:
            wrong.append(file.name)
    if wrong:
        raise UserError(
            f"{folder}: {listed(wrong)} {'is' if len(wrong) == 1 else 'are'} not as written. "
            "`lutbench data prepare` makes what is damaged again; or remove the folder."
        )
    return CachedImages(images, folder, side, facts["fingerprint"], datasets.concatenate_datasets(parts))


def make_cache(images: ImageSet, side: int, root: Path) -> CachedImages:
    """The cache of ``images``, made if it is not there; what an interruption left of it is gone on with.

    Processes that ask for it at once wait for the one that makes it. Prints the size before it begins.

    Raises:
        UserError: if an image cannot be decoded and the set does not skip those, or there is no room; what was made
            until then stays.
    """
    if len(images) == 0:
        raise UserError(f"{images.name}: split {images.split!r} has no images to keep in a cache.")
    folder = cache_folder(images, side, root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made: {error.strerror}. The cache lies below the data root: give one that you may write "
            "to with --data-root (its sets may be links), or leave the cache out with cache = false."
        ) from error
    with FileLock(folder / ".lock"):
        if not (folder / "cache.json").is_file():
            _make(images, side, folder)
    cached = open_cache(images, side, root)
    assert cached is not None, "it was made"
    return cached


def remove_damaged(folder: Path) -> int | None:
    """Remove the files of a cache that do not have the checksum they were written with; how many there were.

    :func:`make_cache` then makes what is missing. None if no whole cache lies in ``folder``.
    """
    path = folder / "cache.json"
    if not path.is_file():
        return None
    files = [(folder / shard["file"], shard["sha256"]) for shard in read_json(path)["shards"]]
    titled = tracked(files, len(files), f"comparing checksums of {folder.name}")
    broken = [file for file, sha256 in titled if not file.is_file() or sha256_of(file) != sha256]
    if broken:
        path.unlink()  # first: what is not whole must not pass for it
    for file in broken:
        file.unlink(missing_ok=True)
    return len(broken)


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
    starts = range(0, len(images), SHARD)
    files = [folder / f"{number:05d}.arrow" for number in range(len(starts))]
    missing = [number for number, file in enumerate(files) if not _whole(file)]
    share = len(missing) / len(files)
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
    todo = [index for number in missing for index in range(starts[number], min(starts[number] + SHARD, len(images)))]
    with ThreadPoolExecutor() as threads:
        resized = tracked(_resized(images, side, todo, threads), len(todo), f"resizing {images.name} {images.split}")
        for number in missing:
            rows = min(SHARD, len(images) - starts[number])
            _write_shard(files[number], resized, rows)
    shards = [read_json(file.with_suffix(".json")) for file in files]
    facts = HOW | {"short side": side, "source": images.fingerprint}
    digest = hashlib.sha256("\n".join([*map(str, facts.items()), *(shard["pixels"] for shard in shards)]).encode())
    write_json(
        folder / "cache.json",
        facts | {"fingerprint": digest.hexdigest(), "images": len(images), "Pillow": PILLOW, "shards": shards},
    )


def _whole(file: Path) -> bool:
    """Whether a shard was written to its end: its facts are written after it."""
    facts = file.with_suffix(".json")
    return file.is_file() and facts.is_file() and bool(read_json(facts)["bytes"] == file.stat().st_size)


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


def _write_shard(path: Path, resized: Iterator[NDArray[np.uint8]], rows: int) -> None:
    """Write the next ``rows`` images, then the facts about the file beside it."""
    digest = hashlib.sha256()
    with whole_file(path) as partial:
        writer = ArrowWriter(path=str(partial), features=FEATURES, writer_batch_size=SHARD)
        try:
            for _ in range(rows):
                pixels = next(resized)
                height, width, _ = pixels.shape
                content = pixels.tobytes()
                digest.update(f"{height} {width}\n".encode() + content)
                writer.write({"pixels": content, "height": height, "width": width})
            writer.finalize()
        finally:
            writer.close()
    facts = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path), "pixels": digest.hexdigest()}
    write_json(path.with_suffix(".json"), facts)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
