"""What commands find out and need not find out again, kept between them in a folder that may be removed at any time.

An entry is named by a hash of all that it follows from, the code included, so that it is never out of date, only of no use any more.
It is sealed, so that one that is damaged counts as none; and written whole, so that commands at once do not disturb each other.
"""

import os
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue

from lutbench.errors import UserError
from lutbench.files import read_sealed, write_sealed

MOST = 4000
"""Entries of one sort that are kept, of a few hundred bytes each; the oldest give way to later ones, a quarter of them at once."""


class Entry(BaseModel):
    """An entry's file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    key: str
    value: JsonValue


def kept_folder() -> Path:
    """Return where entries are kept: ``$LUTBENCH_CACHE``, or ``lutbench`` in the user's folder of caches."""
    if own := os.environ.get("LUTBENCH_CACHE"):
        return Path(own)
    caches = os.environ.get("XDG_CACHE_HOME")
    return Path(caches or "~/.cache").expanduser() / "lutbench"


def recall(sort: str, key: str) -> JsonValue:
    """Return what is kept under a key, 64 hexadecimal digits; None if nothing is, or it is damaged."""
    with suppress(OSError, RuntimeError, UserError):  # RuntimeError: a user without a home
        entry = read_sealed(_path(sort, key), Entry, "")
        return entry.value if entry.key == key else None
    return None


def keep(sort: str, key: str, value: JsonValue) -> None:
    """Keep a value under a key; nothing is kept where the folder cannot be written."""
    with suppress(OSError, RuntimeError, UserError):
        path = _path(sort, key)
        write_sealed(path, Entry(key=key, value=value).model_dump())
        _prune(path.parent)


def _path(sort: str, key: str) -> Path:
    return kept_folder() / sort / f"{key[:32]}.json"


def _prune(folder: Path) -> None:
    """Remove the oldest entries of a folder that has too many."""
    entries = list(folder.glob("*.json"))
    if len(entries) <= MOST:
        return
    for path in sorted(entries, key=lambda path: path.stat().st_mtime_ns)[: len(entries) - 3 * MOST // 4]:
        path.unlink(missing_ok=True)
