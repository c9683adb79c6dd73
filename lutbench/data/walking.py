"""Iterate over the files of a folder or the images of a dataset: all or some, serially or in threads."""

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
"""Image suffixes, as in torchvision's ImageFolder, in upper or lower case. Defined here because importing torchvision takes
seconds and 600 MB."""

MORE_EXTENSIONS = (
    ".jfif", ".jpe", ".gif", *([".avif"] if features.check("avif") else []), *([".jp2"] if features.check("jpg_2000") else []),
)  # fmt: skip
"""Other image suffixes that Pillow reads but torchvision's ImageFolder ignores."""

IMAGES = tuple(map(os.fsencode, IMG_EXTENSIONS + MORE_EXTENSIONS))

ARCHIVE_LITTER = "__MACOSX"
"""Folder that macOS adds to zip archives for metadata; neither images nor a class."""

KEPT_NAMES = 3
"""Number of example names stored per suffix of skipped files."""

THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Default number of threads for reading and decoding (as in ``concurrent.futures``)."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class PassedOver:
    """Files of a folder without an image suffix, except hidden ones."""

    counts: dict[str, int] = field(default_factory=dict)
    """Number of files by lower-case suffix; the key is empty for names without suffix."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """The first few names of each suffix."""

    def add(self, name: str, count: int = 1) -> None:
        """Count a file, or ``count`` files of the same suffix."""
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
        return listed(f"{count:,} {f'end in {ending}' if ending else 'have no suffix'}" for ending, count in by_count)


def walk(
    folder: bytes,
    endings: tuple[bytes, ...] = IMAGES,
    *,
    prefix: bytes = b"",
    deep: bool = True,
    hidden: bool = False,
    passed: PassedOver | None = None,
) -> Iterator[tuple[bytes, int]]:
    """Yield name (with ``prefix``) and size in bytes of every file below ``folder`` that has one of the suffixes, in any case.

    Skips files whose names begin with a dot; also such folders and :data:`ARCHIVE_LITTER` unless ``hidden``; all subfolders if not
    ``deep``. Files with other suffixes are counted in ``passed``. Pipes, sockets and devices are ignored.

    Raises:
        UserError: if a link points to a folder that contains it.
        OSError: if something cannot be read, or a link is broken, see :func:`explained`.
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
    """Implement :func:`walk`; ``above`` are the real paths of the folders that contain ``folder``, and itself."""
    with os.scandir(folder) as entries:
        for entry in entries:
            dotted = entry.name.startswith(b".")
            if (dotted or entry.name == os.fsencode(ARCHIVE_LITTER)) and not hidden:
                continue
            if entry.is_dir():
                if deep:
                    real = os.path.realpath(entry.path) if entry.is_symlink() else above[-1] + b"/" + entry.name
                    if any((outer + b"/").startswith(real.rstrip(b"/") + b"/") for outer in above):
                        raise UserError(
                            f"{os.fsdecode(entry.path)} is a link to a folder that contains it. Remove the link."
                        )
                    inside = prefix + entry.name + b"/"
                    yield from _walk(entry.path, endings, inside, (*above, real), deep, hidden, passed)
            elif dotted:
                continue
            elif not entry.is_file():
                entry.stat()  # fails for a broken link; pipes and devices are not images, and opening them may block forever
            elif entry.name.lower().endswith(endings):
                yield prefix + entry.name, entry.stat().st_size
            else:
                passed.add(printable(os.fsdecode(prefix + entry.name)))


def evenly_spaced(count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` indices (m,) of ``count`` items, evenly spaced from the first to the last."""
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
    """Yield ``function(item)`` for every item, in order, computed in threads: reading waits for the disk, and Pillow decodes in parallel.

    At most ``at_once`` items are in progress, which bounds the memory. ``title`` and ``shown`` are those of
    :func:`lutbench.progress.tracked`. The first error in the order of the items is raised; items not yet started are then dropped.

    Does not use ``concurrent.futures`` or ``threading``: a signal handler that raises inside one of their condition variables leaves it
    locked, and waiting for the threads would then block forever. The primitives used here are written in C and have no such problem.
    """
    return tracked(_in_threads(function, items, threads or THREADS, at_once), len(items), title, shown)


def _in_threads(function: Callable[[T], R], items: Sequence[T], threads: int, at_once: int) -> Iterator[R]:
    """Implement :func:`in_threads`; at the end or after an error, wait for the threads that are still working."""
    todo, done = SimpleQueue[tuple[int, T] | None](), SimpleQueue[tuple[int, Any, BaseException | None] | None]()
    begun = 0

    def work() -> None:
        """Process tasks until None, which marks the end and is passed on as the last result of this thread."""
        while (order := todo.get()) is not None:
            index, item = order
            try:
                done.put((index, function(item), None))
            except BaseException as error:  # raised again where the results are consumed
                done.put((index, None, error))
        done.put(None)

    try:
        for _ in range(min(threads, len(items))):
            start_new_thread(work, ())
            begun += 1  # a thread not counted because of a signal ends too, but is not waited for
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
    """Convert an OSError during listing into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{printable(os.fsdecode(error.filename or ''))} cannot be read: {error.strerror}. If it is a broken link, remove it; "
            "otherwise check its permissions and its disk."
        ) from error


def printable(name: str) -> str:
    """Return a file name or path that can be printed and written to JSON: bytes that are not UTF-8 become ``\\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
