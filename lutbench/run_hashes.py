"""A cache of sha256 sums of weight files, so that ``plan`` and ``status`` do not read an unchanged file again.

There is a sealed file for each sum, valid while name, size, times and inode of the weight file stay the same. A run that starts from
the weights still verifies the hash when it loads them, so it cannot start from weights that do not match its identity.
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
"""Minimum time between a file's last change and its hashing, in nanoseconds: timestamps may be as coarse as that (FAT), and a change
within one tick would go unnoticed. Git does the same."""


class Stamp(BaseModel):
    """A hash, and the state of the file or folder it is of."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: str
    """For human readers only."""
    state: str
    sha256: str


def known_sha256(path: Path, stamps: Path) -> str:
    """Return the sha256 of a file or folder of weights, from the cache ``stamps`` if it has not changed since.

    Nothing is cached if ``stamps`` cannot be written.
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
    """Return a hash of the state of a file, or of all files in a folder, and the time of the last change in nanoseconds since 1970.

    It includes the inode's change time (ctime), which, unlike the modification time, cannot be set back.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(str(file.absolute()), file.stat()) for file in files]
    seen = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for name, stat in stats]
    changed = max((max(stat.st_mtime_ns, stat.st_ctime_ns) for _, stat in stats), default=0)
    return hashlib.sha256(repr(seen).encode()).hexdigest(), changed
