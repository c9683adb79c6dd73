"""Make and repair the image cache of a dataset, shard by shard, so that an interrupted command can continue."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import __version__ as PILLOW

from lutbench.data.cache import (
    FEATURES,
    MAKER,
    CachedImages,
    CacheMetadata,
    ShardMetadata,
    open_cache,
)
from lutbench.data.cache_place import HOW, cache_folder, expected_bytes
from lutbench.data.decoding import UndecodableImage
from lutbench.data.images import ImageDataset
from lutbench.data.tensors import resize_short_side
from lutbench.data.walking import in_threads
from lutbench.errors import UserError
from lutbench.files import gigabytes, read_json, read_model, whole_file, write_json
from lutbench.interruption import interruption_explained
from lutbench.models.weight_files import sha256_of
from lutbench.progress import PATIENCE, console, is_first_process, tracked
from lutbench.sources import digest_of

SHARD = 512
"""Images per Arrow file: about 100 MB at 224 pixels (our choice: the most that an interruption loses)."""


def make_cache(images: ImageDataset, side: int, root: Path) -> CachedImages:
    """Return the cache of ``images``; make it if it does not exist, or continue an interrupted one. Prints the size first.

    If several processes call it, one makes the cache and the others wait.

    Raises:
        UserError: if an image cannot be decoded and the dataset does not skip such images, or there is not enough disk space. Finished
            shards stay and are used by the next call.
    """
    if len(images) == 0:
        raise UserError(f"{images.name}: split {images.split!r} has no images to cache.")
    if cached := open_cache(images, side, root):  # needs no write permission
        return cached
    folder = cache_folder(images, side, root)
    with _held(folder):
        if not (folder / "cache.json").is_file():
            _make(images, side, folder)
    made = open_cache(images, side, root)
    assert made is not None
    return made


def repair_cache(images: ImageDataset, side: int, root: Path) -> int | None:
    """Verify all checksums of a cache and make damaged files again; return their number. None if the cache was incomplete.

    Raises:
        UserError: as :func:`make_cache`.
    """
    folder = cache_folder(images, side, root)
    path = folder / "cache.json"
    whole, metadata = path.is_file(), read_model(path, CacheMetadata)
    files = {folder / shard.file for shard in metadata.shards} if metadata else set()
    suspects = _damaged(sorted(files | set(folder.glob("[0-9]*.arrow"))), folder.name)
    if not suspects and metadata is not None:
        return 0
    if not folder.is_dir():
        return None
    with _held(folder):
        broken = _damaged(suspects, folder.name)  # another process may have repaired them meanwhile
        # Remove shards first: after an interruption a missing file is noticed, a damaged one perhaps not.
        for file in broken:
            file.unlink(missing_ok=True)
        if broken or read_model(path, CacheMetadata) is None:
            path.unlink(missing_ok=True)
        if whole and not path.is_file():
            _make(images, side, folder)
    return len(broken) if whole else None


def _damaged(files: list[Path], name: str) -> list[Path]:
    """Return the files that are missing, or whose checksum differs from the metadata beside them."""

    def is_damaged(file: Path) -> bool:
        metadata = read_model(file.with_suffix(".json"), ShardMetadata)
        return metadata is None or not file.is_file() or sha256_of(file) != metadata.sha256

    return [
        file for file in tracked(files, len(files), f"verifying checksums of {name}", shown=True) if is_damaged(file)
    ]


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Make the folder, and lock it against other processes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            if is_first_process():
                console.print(f"{folder}: another process is making this cache; waiting for it.")
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}. The cache is stored below the data root: choose a writable one with "
            "--data-root (its datasets may be links), or set cache = false."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _make(images: ImageDataset, side: int, folder: Path) -> None:
    """Write the missing shards, then ``cache.json``. The folder must be locked."""
    for partial in folder.glob(".*.partial-*"):  # left by a process that was killed
        partial.unlink()
    indices = range(len(images))
    parts = [indices[first : first + SHARD] for first in indices[::SHARD]]
    shards = {folder / f"{number:05d}.arrow": part for number, part in enumerate(parts)}
    missing = {file: part for file, part in shards.items() if not _is_whole(file, len(part))}
    outdated = {file for file in missing if file.is_file()}  # replaced one by one, so without more disk space
    share = sum(len(part) for file, part in missing.items() if file not in outdated) / len(images)
    wanted, free = int(expected_bytes(images, side) * share), shutil.disk_usage(folder).free
    present = len(shards) - len(missing)
    already = f", {present} of {len(shards)} files already made" if present else ""
    already += f", {len(outdated)} outdated (made by other code or another Pillow) and made again" if outdated else ""
    console.print(
        f"{images.name}: cache of {len(images):,} images of split {images.split!r}, short side {side}: about "
        f"{gigabytes(wanted)} in {folder}; {gigabytes(free)} free{already}"
    )
    if wanted > free:
        raise UserError(
            f"{folder}: the cache of {images.name} needs about {gigabytes(wanted)}, but only {gigabytes(free)} are free. Free disk "
            "space, use a --data-root on a larger disk (its datasets may be links), or set cache = false."
        )
    title = f"resizing {images.name} {images.split}"
    todo = list(chain(*missing.values()))
    resized = in_threads(lambda index: _resized(images, index, side), todo, title, at_once=128, shown=True)
    with interruption_explained(lambda: _made_so_far(images, shards)):
        for file, part in missing.items():
            _write_shard(file, resized, len(part))
    written = [ShardMetadata.model_validate(read_json(file.with_suffix(".json"))) for file in shards]
    metadata = CacheMetadata(
        set=images.name, split=images.split, side=side, source=images.fingerprint, how=HOW, shards=written
    )
    write_json(folder / "cache.json", metadata.model_dump())


def _made_so_far(images: ImageDataset, shards: Mapping[Path, range]) -> str:
    made = sum(_is_whole(file, len(part)) for file, part in shards.items())
    return f"{made} of {len(shards)} files of the cache of {images.name} are finished and stay on disk."


def _is_whole(file: Path, images: int) -> bool:
    """Return whether a shard is complete, with this many images, and made by this Pillow and code: versions are never mixed."""
    metadata = read_model(file.with_suffix(".json"), ShardMetadata)
    if metadata is None or not file.is_file():
        return False
    return (metadata.images, metadata.pillow, metadata.code, metadata.bytes) == (
        images,
        PILLOW,
        digest_of(MAKER),
        file.stat().st_size,
    )


def _resized(images: ImageDataset, index: int, side: int) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) of an image resized to short side ``side``; (0, 0, 3) if it is skipped."""
    try:
        return np.asarray(resize_short_side(images.image(index), side))
    except UndecodableImage:
        if not images.skip_undecodable:
            raise
        return np.empty((0, 0, 3), np.uint8)


def _write_shard(path: Path, resized: Iterator[NDArray[np.uint8]], images: int) -> None:
    """Write the next ``images`` images to a shard, then its metadata beside it."""
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
    metadata = ShardMetadata(
        file=path.name,
        images=images,
        undecodable=undecodable,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
        pillow=PILLOW,
        code=digest_of(MAKER),
    )
    write_json(path.with_suffix(".json"), metadata.model_dump())
