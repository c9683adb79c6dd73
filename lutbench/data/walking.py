"""Going through the files of a folder, or the images of a dataset: all of them or some, one by one or by threads."""

import os
from _thread import start_new_thread
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import features

from lutbench.errors import UserError, listed
from lutbench.progress import tracked

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ImageFolder, in upper or lower case, without torchvision: importing it takes seconds and
600 MB."""

MORE_EXTENSIONS = (
    ".jfif", ".jpe", ".gif", *([".avif"] if features.check("avif") else []), *([".jp2"] if features.check("jpg_2000") else []),
)  # fmt: skip
"""Other endings of images that Pillow reads, which torchvision passes over."""

IMAGES = tuple(map(os.fsencode, IMG_EXTENSIONS + MORE_EXTENSIONS))

ARCHIVE_LITTER = "__MACOSX"
"""The folder that macOS adds to a zip archive for what its other file systems cannot hold: no images, and no class."""

KEPT_NAMES = 3
"""Names of passed-over files that are kept of each ending."""

THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Threads that read and decode, unless it is said how many (as many as ``concurrent.futures`` takes)."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class PassedOver:
    """The files of a folder that are no images by their names, hidden ones left out."""

    counts: dict[str, int] = field(default_factory=dict)
    """How many there are, by what their names end in, in lower case; empty where a name has no ending."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """The first few names of each ending."""

    def add(self, name: str, count: int = 1) -> None:
        """Count a file, or ``count`` files of its ending."""
        ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a name, not a path
        self.counts[ending] = self.counts.get(ending, 0) + count
        self.names[ending] = sorted([*self.names.get(ending, []), name])[:KEPT_NAMES]

    @classmethod
    def total(cls, parts: Iterable["PassedOver"]) -> "PassedOver":
        """Return the files of several folders together."""
        total = cls()
        for part in parts:
            for ending, count in part.counts.items():
                first, *rest = part.names[ending]
                total.add(first, count - len(rest))
                for name in rest:
                    total.add(name)
        return total

    def __str__(self) -> str:
        by_count = sorted(self.counts.items(), key=lambda item: -item[1])
        return listed(f"{count:,} {f'end in {ending}' if ending else 'have no ending'}" for ending, count in by_count)


def walk(
    folder: bytes,
    endings: tuple[bytes, ...] = IMAGES,
    *,
    prefix: bytes = b"",
    deep: bool = True,
    hidden: bool = False,
    passed: PassedOver | None = None,
) -> Iterator[tuple[bytes, int]]:
    """Yield name, with ``prefix``, and bytes of every file below ``folder`` whose name ends so in upper or lower case.

    Files whose names begin with a dot are passed over, and, unless ``hidden``, such folders and those of
    :data:`ARCHIVE_LITTER`; all folders if not ``deep``. Other files are counted in ``passed``; pipes, sockets and devices are
    no files.

    Raises:
        UserError: if a link leads to a folder that it lies in.
        OSError: if something cannot be read, or a link leads nowhere, see :func:`explained`.
    """
    return _walk(folder, endings, prefix, (os.path.realpath(folder),), deep, hidden, passed or PassedOver())


def _walk(
    folder: bytes,
    endings: tuple[bytes, ...],
    prefix: bytes,
    above: tuple[bytes, ...],
    deep: bool,
    hidden: bool,
    passed: PassedOver,
) -> Iterator[tuple[bytes, int]]:
    """Walk; ``above`` are the real folders that ``folder`` lies in, itself the last."""
    with os.scandir(folder) as entries:
        for entry in entries:
            dotted = entry.name.startswith(b".")
            if (dotted or entry.name == os.fsencode(ARCHIVE_LITTER)) and not hidden:
                continue
            if entry.is_dir():
                if deep:
                    real = os.path.realpath(entry.path) if entry.is_symlink() else above[-1] + b"/" + entry.name
                    if any((outer + b"/").startswith(real.rstrip(b"/") + b"/") for outer in above):
                        raise UserError(f"{os.fsdecode(entry.path)} is a link to a folder that it lies in. Remove it.")
                    inside = prefix + entry.name + b"/"
                    yield from _walk(entry.path, endings, inside, (*above, real), deep, hidden, passed)
            elif dotted:
                continue
            elif not entry.is_file():
                entry.stat()  # which fails for a link that leads nowhere; a pipe or device is no image, and opening it may wait for ever
            elif entry.name.lower().endswith(endings):
                yield prefix + entry.name, entry.stat().st_size
            else:
                passed.add(printable(os.fsdecode(prefix + entry.name)))


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
    ``shown`` are those of :func:`lutbench.progress.tracked`. The first error, in the order of the items, is raised; what has not
    been begun by then is left.

    Neither ``concurrent.futures`` nor ``threading`` is used: a signal's handler that raises inside one of their conditions leaves it
    locked, so that what waits for its threads waits for ever. What is used here is written in C, and has no such moment.
    """
    return tracked(_in_threads(function, items, threads or THREADS, at_once), len(items), title, shown)


def _in_threads(function: Callable[[T], R], items: Sequence[T], threads: int, at_once: int) -> Iterator[R]:
    """Yield ``function`` of every item, see :func:`in_threads`; threads that are at work at the end, or at an error, are waited for."""
    todo, done = SimpleQueue[tuple[int, T] | None](), SimpleQueue[tuple[int, Any, BaseException | None] | None]()
    begun = 0

    def work() -> None:
        """Do what is to be done until told that it was all: None, which is passed on as the last result of this thread."""
        while (order := todo.get()) is not None:
            index, item = order
            try:
                done.put((index, function(item), None))
            except BaseException as error:  # raised where the results are taken
                done.put((index, None, error))
        done.put(None)

    try:
        for _ in range(min(threads, len(items))):
            start_new_thread(work, ())
            begun += 1  # one that a signal keeps from being counted ends as well; it is not waited for
        for first in range(0, len(items), at_once):
            indices = range(first, min(first + at_once, len(items)))
            for index in indices:
                todo.put((index, items[index]))
            found = dict[int, tuple[Any, BaseException | None]]()
            for index in indices:
                while index not in found:
                    if (one := done.get()) is not None:
                        found[one[0]] = one[1:]
                result, error = found.pop(index)
                if error is not None:
                    raise error
                yield result
    finally:
        _drop(todo)
        for _ in range(threads):
            todo.put(None)
        while begun:
            begun -= done.get() is None


def _drop(queue: SimpleQueue[Any]) -> None:
    """Take everything out of a queue."""
    try:
        while True:
            queue.get_nowait()
    except Empty:
        return


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
