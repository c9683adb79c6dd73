"""Datasets in folders: one folder per class, or all images in one folder without labels.

File names are packed into one byte string, without a Python object per file: ImageNet's 1.28 million files take 60 MB, which loader
processes share.
"""

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lutbench.data.decoding import Pixels, UndecodableImage, decode, decode_pixels
from lutbench.data.walking import ARCHIVE_LITTER, PassedOver, explained, in_threads, printable, walk
from lutbench.errors import UserError, listed, nearest

LISTING_THREADS = 8
"""Number of class folders listed in parallel, to hide the latency of network file systems."""

FEW = 64
"""Up to this many class folders are listed without threads, which would be slower than the disk."""


@dataclass
class FolderImages:
    """The images below ``folder``, sorted by class and name."""

    name: str
    split: str
    folder: Path
    classes: tuple[str, ...]
    labels: NDArray[np.int64] | None
    skip_undecodable: bool
    fingerprint: str
    names: bytes = field(repr=False)
    """Names of all files relative to ``folder``, concatenated."""
    ends: NDArray[np.int64] = field(repr=False)
    """(n,) The end of each name in ``names``."""
    sizes: NDArray[np.int64] = field(repr=False)
    """(n,) Bytes of each file."""
    banner: int = 0
    """Rows of pixels to cut off at the bottom of every image: a banner that is not part of the photograph."""
    bits: int | None = None
    """Bit depth of images with more than 8 bits, see :func:`lutbench.data.decoding.decode`."""
    passed_over: PassedOver = field(default_factory=PassedOver, repr=False, compare=False)
    """Files in the folder that were not recognised as images."""

    def __len__(self) -> int:
        return len(self.ends)

    def image(self, index: int) -> Image.Image:
        """Decode an image, mode RGB.

        Raises:
            UndecodableImage: naming the file.
            UserError: if the file cannot be read at all.
        """
        image = decode(self.content(index), os.fsdecode(self._path(index)), self.bits)
        if not self.banner:
            return image
        if image.height <= self.banner:
            raise UndecodableImage(
                f"{os.fsdecode(self._path(index))} is only {image.height} pixels high, but a banner of {self.banner} pixels is to be cut "
                "off. Expected the image as distributed by the dataset's authors: download it again."
            )
        return image.crop((0, 0, image.width, image.height - self.banner))

    def pixels(self, index: int) -> Pixels:
        """Decode an image to the pixels (H, W, 3) of :meth:`image`. Raises the same errors."""
        if self.banner:
            return np.array(self.image(index))
        return decode_pixels(self.content(index), os.fsdecode(self._path(index)), self.bits)

    def content(self, index: int) -> bytes:
        """Return the content of an image file.

        Raises:
            UserError: if it cannot be read.
        """
        path = self._path(index)
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - a name need not be UTF-8, and pathlib takes no bytes
                return file.read()
        except OSError as error:
            raise UserError(
                f"{os.fsdecode(path)} cannot be read: {error.strerror}. It existed when the folder was listed: it was moved or removed "
                "since, or its disk is not available. Restore it and run the same command again."
            ) from error

    def image_name(self, index: int) -> str:
        """Return the file's name relative to the folder, with forward slashes."""
        return printable(os.fsdecode(self._name(index)))

    def at(self, index: NDArray[np.int64]) -> "FolderImages":
        """Return the subset with the ascending indices ``index`` (n,); all classes are kept."""
        return replace(
            self,
            labels=None if self.labels is None else self.labels[index],
            fingerprint=fingerprint_of([*self.classes], self.fingerprint.encode(), index),
            names=b"".join(map(self._name, index.tolist())),
            ends=np.cumsum(np.diff(self.ends, prepend=0)[index]),
            sizes=self.sizes[index],
        )

    def of_classes(self, folders: Collection[str]) -> "FolderImages":
        """Return the images in the class folders ``folders``, in the same order, without the other classes."""
        assert self.labels is not None
        kept = [label for label, name in enumerate(self.classes) if name in folders]
        index = np.flatnonzero(np.isin(self.labels, kept))
        classes = [self.classes[label] for label in kept]
        return replace(
            self,
            classes=tuple(classes),
            labels=np.searchsorted(kept, self.labels[index]),
            fingerprint=fingerprint_of(classes, self.fingerprint.encode()),
            names=b"".join(map(self._name, index.tolist())),
            ends=np.cumsum(np.diff(self.ends, prepend=0)[index]),
            sizes=self.sizes[index],
        )

    def _path(self, index: int) -> bytes:
        return os.fsencode(self.folder) + b"/" + self._name(index)

    def _name(self, index: int) -> bytes:
        return self.names[self.ends[index - 1] if index else 0 : self.ends[index]]


@explained()
def open_folder(folder: Path, name: str, split: str, *, skip_undecodable: bool = False, hint: str = "") -> FolderImages:
    """List the images below ``folder``, at any depth below its class folders, following links.

    ``hint`` is added to the error message if the folder does not exist.

    The fingerprint is the sha256 over class names, file names and file sizes. It changes if a file is added, removed, renamed, moved to
    another class or changes its size, but not if pixels change within the same number of bytes.

    Raises:
        UserError: if the folder is missing or empty, a class folder holds no image, there are images beside class folders,
            something cannot be read, or links are broken or form a cycle.
    """
    if not folder.is_dir():
        raise UserError(_expected(folder, name, split, "there is no such folder", hint))
    classes = _class_folders(folder)
    loose = _list_files(folder, b"", only_here=True)
    if classes and len(loose.lengths):
        raise UserError(
            f"{folder.resolve()} holds {len(loose.lengths)} images and the folders {listed(classes)}: it is unclear whether the folders "
            "are classes. Put every image into a class folder, or all images into one folder without subfolders."
        )
    if not classes and not len(loose.lengths):
        others = f": of its files, {loose.passed}" if loose.passed.counts else ""
        raise UserError(_expected(folder, name, split, f"it holds no images{others}"))
    if classes:

        def list_class(name: str) -> _Listing:
            return _list_files(folder / name, os.fsencode(name) + b"/")

        if len(classes) > FEW:
            listings = list(in_threads(list_class, classes, f"listing {folder}", threads=LISTING_THREADS))
        else:
            listings = [list_class(name) for name in classes]
        empty = [name for name, part in zip(classes, listings, strict=True) if not len(part.lengths)]
        if empty:
            passed = PassedOver.total(part.passed for part in listings if not len(part.lengths))
            raise UserError(
                f"{name}: no images in class folder{'s' if len(empty) > 1 else ''} {listed(empty)} of {folder.resolve()}"
                f"{f' (of its files, {passed})' if passed.counts else ''}. "
                "Was the dataset unpacked completely? Add the images, or remove folders that are not classes."
            )
    else:
        listings = [loose]
    names = b"".join(part.names for part in listings)
    lengths = np.concatenate([part.lengths for part in listings])
    sizes = np.concatenate([part.sizes for part in listings])
    return FolderImages(
        name=name,
        split=split,
        folder=folder,
        classes=tuple(map(printable, classes)),
        labels=np.repeat(np.arange(len(classes)), [len(part.lengths) for part in listings]) if classes else None,
        skip_undecodable=skip_undecodable,
        fingerprint=fingerprint_of(classes, names, lengths, sizes),
        names=names,
        ends=np.cumsum(lengths),
        sizes=sizes,
        passed_over=PassedOver.total(part.passed for part in listings),
    )


def fingerprint_of(classes: list[str], *parts: bytes | NDArray[np.int64]) -> str:
    """Return the hex sha256 over class names and other parts that identify a dataset; the same on every machine."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for part in parts:
        content = part if isinstance(part, bytes) else part.astype("<i8").tobytes()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def _class_folders(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder``, without hidden ones and those that macOS adds to archives."""
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries if entry.is_dir())
        return sorted(name for name in names if not name.startswith(".") and name != ARCHIVE_LITTER)


class _Listing(NamedTuple):
    names: bytes
    lengths: NDArray[np.int64]
    sizes: NDArray[np.int64]
    passed: PassedOver


def _list_files(folder: Path, prefix: bytes, only_here: bool = False) -> _Listing:
    passed = PassedOver()
    files = sorted(walk(os.fsencode(folder), prefix=prefix, deep=not only_here, passed=passed))
    names = [name for name, _ in files]
    return _Listing(
        b"".join(names),
        np.fromiter(map(len, names), np.int64, len(names)),
        np.fromiter((size for _, size in files), np.int64, len(files)),
        passed,
    )


def _expected(folder: Path, name: str, split: str, found: str, hint: str = "") -> str:
    beside = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
    near = hint or nearest(folder.name, beside)
    siblings = f" Existing folders: {listed(beside)}.{near}" if beside else hint
    return (
        f"{name}: expected the images of split {split!r} in {folder.absolute()}, but {found}.{siblings} Expected layout: "
        f"{folder.name}/CLASS/IMAGE.jpg, or {folder.name}/IMAGE.jpg for images without labels. Set --data-root to the folder "
        "that holds your datasets; `lutbench data list` shows the known datasets and how to get them."
    )
