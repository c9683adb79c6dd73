"""Going through the files of a folder: links are followed, and what cannot be read is said."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from lutbench.errors import UserError

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ImageFolder, in upper or lower case, without torchvision: importing it takes seconds and
600 MB."""

IMAGES = tuple(map(os.fsencode, IMG_EXTENSIONS))


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
