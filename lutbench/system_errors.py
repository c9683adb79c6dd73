"""Errors of the operating system in plain English: what they mean, and what to do."""

import errno
import os
import re

from lutbench.errors import UserError

SYSTEM_ERRORS = {
    errno.ENOSPC: ("The disk is full", "Free some space"),
    errno.EDQUOT: ("Your quota on this disk is used up", "Free some space"),
    errno.EFBIG: (
        "The file is larger than this disk or your limit allows",
        "Raise the limit (ulimit -f), or use another disk",
    ),
    errno.EROFS: ("The disk is read-only", "Mount it writable, or choose another folder"),
    errno.EMFILE: ("Too many files are open", "Raise the limit (ulimit -n), or lower workers"),
    errno.ENFILE: ("Too many files are open on this machine", "Close some programs, or lower workers"),
    errno.ENAMETOOLONG: ("The path is too long for this disk", "Choose a folder with a shorter path"),
    errno.ENOENT: ("A file or folder is missing", "Restore it"),
    errno.EACCES: ("Permission denied", "Give yourself the permission, or choose another folder"),
    errno.EIO: ("The disk reports an input/output error", "Check the disk"),
}
"""What errors of the operating system mean, and what to do."""

IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)
"""Errors that concern one path only: other runs can still be saved."""


def explanation(error: BaseException) -> tuple[str, str] | None:
    """Return what an error of the operating system means and what to do; None for other errors, and for those already explained.

    Libraries such as safetensors and torch's loader report some of them as their own errors, with the number in the text.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and not isinstance(error, UserError):
        named = re.search(r"os error (\d+)", str(error))
        texts = (known for known in SYSTEM_ERRORS if os.strerror(known) in str(error))
        number = int(named[1]) if named else next(texts, None)
    if number is None:
        return None
    return SYSTEM_ERRORS.get(number, (os.strerror(number), "Fix that"))


def message(error: BaseException) -> str:
    """Return an error of the operating system as a sentence for the user, with its file; empty for other errors."""
    if (found := explanation(error)) is None:
        return ""
    what, remedy = found
    file = f": {name}" if (name := getattr(error, "filename", None)) else ""
    return f"{what}{file}. {remedy}, and repeat the command."
