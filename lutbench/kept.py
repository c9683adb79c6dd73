"""A cache of computed values that commands share, in a folder that may be removed at any time.

An entry is named by a hash of everything it depends on, the code included, so it can be unused but never out of date. Entries are
sealed, so that damaged ones are ignored, and written atomically, so that several commands can use the cache at the same time.
"""

import os
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue

from lutbench.errors import UserError
from lutbench.files import read_sealed, write_sealed

MOST = 4000
"""Maximum number of entries of one sort, a few hundred bytes each. Above it, the oldest quarter is removed."""


class Entry(BaseModel):
    """The file of an entry."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    key: str
    value: JsonValue


def kept_folder() -> Path:
    """Return the cache folder: ``$LUTBENCH_CACHE``, or ``lutbench`` in the user's cache folder."""
    if own := os.environ.get("LUTBENCH_CACHE"):
        return Path(own)
    caches = os.environ.get("XDG_CACHE_HOME")
    return Path(caches or "~/.cache").expanduser() / "lutbench"


def recall(sort: str, key: str) -> JsonValue:
    """Return the value of a key, 64 hexadecimal digits; None if there is none, or it is damaged."""
    with suppress(OSError, RuntimeError, UserError):  # RuntimeError: a user without a home
        entry = read_sealed(_path(sort, key), Entry, "")
        return entry.value if entry.key == key else None
    return None


def keep(sort: str, key: str, value: JsonValue) -> None:
    """Store a value under a key; does nothing if the folder cannot be written."""
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
