"""Files that are either whole or not there."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lutbench.errors import UserError

M = TypeVar("M", bound=BaseModel)


class NotJsonError(UserError):
    """A file that should hold JSON and does not."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write to the path given inside the block; it becomes ``path`` when the block ends without an error.

    Raises:
        UserError: on a full disk; what stood at ``path`` before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with disk_full_explained(path):
            yield partial
            _sync(partial)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill the folder given inside the block; it becomes ``path`` when the block ends without an error.

    Raises:
        UserError: on a full disk; what stood at ``path`` before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with disk_full_explained(path):
            yield partial
            for file in partial.rglob("*"):
                _sync(file)
            _sync(partial)
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
            _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partials(folder: Path, names: str = "*", *, spare_living: bool = False) -> None:
    """Remove the files and folders below ``folder``, of names like ``names``, that killed processes left half-written.

    The caller sees to it that nobody writes any. With ``spare_living`` those of living processes of this machine stay.
    """
    for partial in list(folder.rglob(f".{names}.partial-*")):
        if spare_living and _lives(partial.name.rpartition("-")[2]):
            continue
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _lives(process: str) -> bool:
    """Return whether a process of this number lives on this machine, other than this one."""
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # it is another user's
        return True
    return int(process) != os.getpid()


def gigabytes(count: int | None) -> str:
    """Return ``1.3 GB`` of a number of bytes, or ``unknown``."""
    if count is None:
        return "unknown"
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_of_json(value: Any) -> str:
    """Return the sha256, hexadecimal, of a value as JSON, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        NotJsonError: if it is not one.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers without end, or nested without end
        raise NotJsonError(
            f"{path}: expected JSON, found {error}. Remove the file, or restore it from a copy."
        ) from error


def read_model(path: Path, kind: type[M]) -> M | None:
    """Read a JSON file that holds a ``kind``; None if it is not there, cannot be read, or holds something else."""
    try:
        return kind.model_validate(read_json(path))
    except (OSError, NotJsonError, ValidationError):
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_full_explained(path: Path) -> Iterator[None]:
    """Turn the error of a full disk, whoever raises it, into a UserError that says what was being saved."""
    try:
        yield
    except Exception as error:  # safetensors reports a full disk as an error of its own
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error) or "os error 28" in str(error):
            raise UserError(
                f"The disk is full: {path} could not be saved. What was saved before is whole. "
                "Free some space and give the same command again."
            ) from error
        raise
