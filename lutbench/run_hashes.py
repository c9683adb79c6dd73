"""sha256 of weights, kept between commands: a file that did not change is not read again to plan or to show a status.

Kept in a folder, a sealed file for each, and believed while name, size, times and inode are what they were. A run that takes
the weights reads them against the hash all the same, so it cannot start from others than its identity says.
"""

import hashlib
import time
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lutbench.errors import UserError
from lutbench.files import read_sealed, write_sealed
from lutbench.models.weight_files import sha256_of

SETTLED = 2 * 10**9
"""Nanoseconds that must lie between a file's last change and its hashing: a file system's clock may tick as slowly (FAT's does), and a
change within the same tick could not be seen. Git keeps the same distance."""


class Stamp(BaseModel):
    """A hash, and the state that the file or folder was in."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: str
    """For readers."""
    state: str
    sha256: str


def known_sha256(path: Path, stamps: Path) -> str:
    """Return the sha256 of a file or folder of weights, from ``stamps`` if it is in the state of which they keep it.

    A folder that cannot be written to keeps nothing.
    """
    stamp = stamps / f"weights-{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]}.json"
    (state, changed), now = _state(path), time.time_ns()
    with suppress(OSError, UserError):  # absent or damaged
        known = read_sealed(stamp, Stamp, "")
        if known.state == state:
            return known.sha256
    found = sha256_of(path)
    if now - changed >= SETTLED and _state(path)[0] == state:
        with suppress(OSError, UserError):
            write_sealed(stamp, Stamp(path=str(path.absolute()), state=state, sha256=found).model_dump())
    return found


def _state(path: Path) -> tuple[str, int]:
    """Return what tells a change of a file, or of any in a folder, and when the last was, in nanoseconds since 1970.

    The time of the inode's change is part of it: unlike that of the content's it cannot be set back.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(str(file.absolute()), file.stat()) for file in files]
    seen = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for name, stat in stats]
    changed = max((max(stat.st_mtime_ns, stat.st_ctime_ns) for _, stat in stats), default=0)
    return hashlib.sha256(repr(seen).encode()).hexdigest(), changed
