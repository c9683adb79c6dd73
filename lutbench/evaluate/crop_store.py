"""Cache of decoded crops, shared by all encoders with the same preprocessing; stored below ``--runs`` as ``features/KEY.crops``.

KEY is the hash of everything that determines the pixels. Of centre crops there is one file for a split, of the random crops that a probe
takes anew in every epoch one file for an epoch. A file has a fixed row for every image: a checksum and the pixels. The
process that decodes an image writes its row; rows with a wrong checksum are ignored. So a later command can use what an interrupted one
decoded, several commands can fill one file together, and a damaged row is decoded again.

Crops share the disk space limit of features (:mod:`lutbench.evaluate.feature_store`) and are removed first, as they only save decoding.
"""

import fcntl
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lutbench.data.images import ImageDataset
from lutbench.evaluate.feature_store import CROPS, make_room, path_of, room_taken
from lutbench.files import gigabytes
from lutbench.kinds import DATASETS
from lutbench.provenance import hardware, packages
from lutbench.sources import digest_of

if TYPE_CHECKING:
    from lutbench.run import Run

SHARE = 2
"""The crops of a split are cached if they need at most this share of the space for features (our choice)."""

PASSING = 2
"""Epochs whose crops are cached for a while where those of all epochs need too much space: runs side by side are in one or two."""

CHECKSUM = 4
"""Bytes of the CRC-32 before a row's pixels, all zeros in a row that was never written."""


class Crops:
    """The file of a split's crops; every process that it is sent to opens it by itself."""

    def __init__(self, path: Path, side: int) -> None:
        self.path, self.side = path, side
        self._row = CHECKSUM + 3 * side**2
        self._opened: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process is sent: a file that is open in this one is not open there."""
        return self.__dict__ | {"_opened": None}

    def crop(self, index: int, decoded: Callable[[], Tensor]) -> Tensor:
        """Return the crop (3, S, S), uint8, of an image: the one that is kept, or what ``decoded()`` returns, which is kept then.

        While one process decodes an image others wait for its row. If the file cannot be read or written the image is decoded.
        """
        if (kept := self._read(index)) is not None:
            return kept
        with self._alone_at(index):
            if (kept := self._read(index)) is not None:
                return kept
            made = decoded()
            self._write(index, made)
            return made

    def size(self, images: int) -> int:
        """Return the bytes of a file of so many images."""
        return images * self._row

    def reserve(self, images: int) -> None:
        """Make room in the file for so many images, which takes none of the disk before they are written. Raises OSError."""
        if os.fstat(self._file()).st_size != self.size(images):
            os.truncate(self._file(), self.size(images))
        os.utime(self._file())  # used now

    def close(self) -> None:
        """Close the file in this process."""
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None

    def _file(self) -> int:
        """Return the descriptor of the file in this process."""
        if self._opened is None:
            self._opened = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        return self._opened

    def _read(self, index: int) -> Tensor | None:
        start, pixels = index * self._row, torch.empty(3, self.side, self.side, dtype=torch.uint8)
        content = pixels.numpy().data
        with suppress(OSError):
            checksum = os.pread(self._file(), CHECKSUM, start)
            if any(checksum):  # else it was never written, and what follows need not be read
                os.preadv(self._file(), [content], start + CHECKSUM)
                if zlib.crc32(content).to_bytes(CHECKSUM, "little") == checksum:
                    return pixels
        return None

    def _write(self, index: int, crop: Tensor) -> None:
        content = crop.numpy().data
        with suppress(OSError):
            os.pwritev(self._file(), [zlib.crc32(content).to_bytes(CHECKSUM, "little"), content], index * self._row)

    @contextmanager
    def _alone_at(self, index: int) -> Iterator[None]:
        """Keep other processes from a row meanwhile, where the file system has locks; the system frees that of one that is killed."""
        with suppress(OSError):
            fcntl.lockf(self._file(), fcntl.LOCK_EX, 1, index * self._row)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.lockf(self._file(), fcntl.LOCK_UN, 1, index * self._row)


class FreshCrops:
    """The files of the random crops of a training set, one for every epoch, under the hash of ``inputs`` and the epoch.

    With space for one epoch more than a probe has, into which its last batch may reach, all are kept. With less, the first are kept, for
    probes that train later, and of the others the last :data:`PASSING`, for those that train at the same time.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any], side: int, images: int, room: int) -> None:
        self._folder, self._inputs, self._side, self._images, self._room = folder, inputs, side, images, room
        self.epochs = room // SHARE // Crops(folder, side).size(images)
        self._opened: dict[int, Crops | None] = {}

    def crop(self, epoch: int, index: int, decoded: Callable[[], Tensor]) -> Tensor:
        """Return the crop (3, S, S), uint8, of an image in an epoch, as :meth:`Crops.crop` does."""
        if epoch not in self._opened:
            self._open(epoch)
        crops = self._opened[epoch]
        return decoded() if crops is None else crops.crop(index, decoded)

    def close(self) -> None:
        """Close the files in this process."""
        for crops in self._opened.values():
            if crops is not None:
                crops.close()
        self._opened.clear()

    def _open(self, epoch: int) -> None:
        """Open the file of an epoch if there is room. Whoever still has the file that is removed for it reads it to its end."""
        passing = min(PASSING, self.epochs)
        if len(self._opened) >= PASSING:
            self.close()
        if epoch >= self.epochs:
            self._path(epoch - passing).unlink(missing_ok=True)
        crops = Crops(self._path(epoch), self._side)
        self._opened[epoch] = crops if _has_room(crops, self._images, self._room) else None

    def _path(self, epoch: int) -> Path:
        return path_of(self._folder, {**self._inputs, "epoch": epoch}).with_suffix(CROPS)


@contextmanager
def fresh_crops(run: "Run[Any]", images: ImageDataset) -> Iterator[FreshCrops | None]:
    """Give the random crops of ``images`` that a probe with the run's recipe and seed takes, to share them with other encoders.

    Gives None, so that every probe decodes, if there is no space for one epoch; this is noted, since the user can give more.
    """
    recipe, room = run.recipe, run.workspace.feature_bytes
    inputs = crop_inputs(run, images) | {
        "crop": list(recipe.crop_scale),
        "interpolation": run.preprocessing.interpolation,
        "seed": run.seed,
        **_made_by("downstream.augment", recipe),
    }
    crops = FreshCrops(run.workspace.features, inputs, recipe.side, len(images), room)
    if room and not crops.epochs:
        size = Crops(run.workspace.features, recipe.side).size(len(images))
        run.workspace.note(
            f"{images.name}: every encoder decodes the images of split {images.split!r} again in every epoch. With --features "
            f"{ceil(PASSING * SHARE * size / 1e9)} or more, the crops of an epoch ({gigabytes(size)}) are cached and shared by encoders whose "
            f"probes train at the same time; with {ceil(SHARE * (recipe.epochs + 1) * size / 1e9)}, by all encoders."
        )
    try:
        yield crops if crops.epochs else None
    finally:
        crops.close()


@contextmanager
def kept_crops(run: "Run[Any]", images: ImageDataset) -> Iterator[Crops | None]:
    """Open the file of the centre crops of ``images``, as evaluation with the run's recipe takes them, and close it at the end.

    Gives None, so that every image is decoded, if they would take more than their :data:`SHARE`, room that features take, or half of
    what is free on the disk, or if nothing can be written. The first is noted, since the user can give more room.
    """
    inputs = crop_inputs(run, images) | _made_by("lutbench.evaluate.transform", run.recipe)
    crops, room = (
        Crops(path_of(run.workspace.features, inputs).with_suffix(CROPS), run.recipe.side),
        run.workspace.feature_bytes,
    )
    if room and (size := crops.size(len(images))) > room / SHARE:
        run.workspace.note(
            f"{images.name}: every encoder decodes the images of split {images.split!r} again. With --features {ceil(SHARE * size / 1e9)} or "
            f"more, their crops ({gigabytes(size)}) are cached and shared by all encoders."
        )
    try:
        yield crops if _has_room(crops, len(images), room) else None
    finally:
        crops.close()


def crop_inputs(run: "Run[Any]", images: ImageDataset) -> dict[str, Any]:
    """Return what decides the pixels of the centre crops of ``images``, but the machine and the code."""
    recipe, prepared = run.recipe, run.preprocessing
    return {
        "data": recipe.dataset.affecting_results(),
        "split": images.split,
        "fingerprint": images.fingerprint,
        "side": recipe.side,
        "crop": prepared.crop_pct or recipe.eval_crop,
        "interpolation": prepared.interpolation,
        "form": recipe.form,
    }


def _made_by(module: str, recipe: Any) -> dict[str, Any]:
    """Return the machine, packages and code that make crops by the transform of a module."""
    installed = packages()
    return {
        "machine": hardware().cpu,
        "packages": {name: installed.get(name) for name in ("torch", "torchvision", "pillow", "numpy")},
        "sources": [digest_of(module), digest_of(DATASETS[type(recipe.dataset).__name__])],
    }


def _has_room(crops: Crops, images: int, most: int) -> bool:
    """Reserve a file of crops, in place of other crops where there are too many; return whether there is room for it.

    ``most`` are the bytes that its folder may have.
    """
    folder, size = crops.path.parent, crops.size(images)
    if size > most / SHARE or size > most - room_taken(folder, "*.safetensors"):
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        make_room(folder, most - size, {crops.path})
        written = crops.path.stat().st_blocks * 512 if crops.path.exists() else 0
        if size - written > shutil.disk_usage(folder).free / 2:
            return False
        crops.reserve(images)
    except OSError:
        return False
    return True
