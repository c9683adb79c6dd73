"""Going through the files of a folder, or the images of a dataset: all of them or some, one by one or by threads."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lutbench.errors import UserError
from lutbench.progress import tracked

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ImageFolder, in upper or lower case, without torchvision: importing it takes seconds and
600 MB."""

IMAGES = tuple(map(os.fsencode, IMG_EXTENSIONS))

T = TypeVar("T")
R = TypeVar("R")


def walk(
    folder: bytes, endings: tuple[bytes, ...] = IMAGES, *, prefix: bytes = b"", deep: bool = True, hidden: bool = False
) -> Iterator[tuple[bytes, int]]:
    """Yield name, with ``prefix``, and bytes of every file below ``folder`` whose name ends so in upper or lower case.

    Files whose names begin with a dot are passed over, and, unless ``hidden``, such folders; all folders if not ``deep``.

    Raises:
        UserError: if a link leads to a folder that it lies in.
        OSError: if something cannot be read, or a link leads nowhere, see :func:`explained`.
    """
    return _walk(folder, endings, prefix, (os.path.realpath(folder),), deep, hidden)


def _walk(
    folder: bytes, endings: tuple[bytes, ...], prefix: bytes, above: tuple[bytes, ...], deep: bool, hidden: bool
) -> Iterator[tuple[bytes, int]]:
    """Walk; ``above`` are the real folders that ``folder`` lies in, itself the last."""
    with os.scandir(folder) as entries:
        for entry in entries:
            dotted = entry.name.startswith(b".")
            if dotted and not hidden:
                continue
            if entry.is_dir():
                if deep:
                    real = os.path.realpath(entry.path) if entry.is_symlink() else above[-1] + b"/" + entry.name
                    if any((outer + b"/").startswith(real.rstrip(b"/") + b"/") for outer in above):
                        raise UserError(f"{os.fsdecode(entry.path)} is a link to a folder that it lies in. Remove it.")
                    yield from _walk(entry.path, endings, prefix + entry.name + b"/", (*above, real), deep, hidden)
            elif dotted:
                continue
            elif entry.name.lower().endswith(endings):
                yield prefix + entry.name, entry.stat().st_size
            elif entry.is_symlink():
                entry.stat()  # which fails if it leads nowhere: it may have been a folder of images


def evenly_spaced(count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of the indices of ``count`` items (m,), evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def in_threads(
    function: Callable[[T], R],
    items: Sequence[T],
    title: str,
    *,
    threads: int | None = None,
    at_once: int = 512,
    shown: bool | None = None,
) -> Iterator[R]:
    """Yield ``function`` of every item, in order, by threads: reading waits, and Pillow decodes in parallel.

    ``at_once`` of them are handed to the threads before the results are taken: it bounds what waits in memory. ``title`` and
    ``shown`` are those of :func:`lutbench.progress.tracked`.
    """

    def results() -> Iterator[R]:
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, len(items), at_once):
                yield from pool.map(function, items[first : first + at_once])

    return tracked(results(), len(items), title, shown)


@contextmanager
def explained() -> Iterator[None]:
    """Turn what the operating system refuses while files are listed into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{printable(os.fsdecode(error.filename or ''))} cannot be read: {error.strerror}. Remove it if it is a link that leads "
            "nowhere; or give yourself the permission, or look after its disk."
        ) from error


def printable(name: str) -> str:
    """Return a file's name or path as it can be printed and written to JSON: what is not UTF-8 in it as ``\\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
