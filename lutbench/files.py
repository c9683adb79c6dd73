"""Files that are either whole or not there, and JSON that is believed only if it is as it was written."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lutbench.errors import Halt, UserError, listed

M = TypeVar("M", bound=BaseModel)


CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
"""Characters that steer a terminal or break lines, that turn the direction of what follows or cannot be seen, and halves of characters."""

DEPTH = 32
"""How deep tables and lists may be nested: far more than any setting or record is."""


class DamagedError(UserError):
    """A file that is not as the suite wrote it."""


class NotJsonError(DamagedError):
    """A file that should hold JSON and does not."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write to the path given inside the block; it becomes ``path`` when the block ends without an error.

    Raises:
        Halt: on a full disk and the like, see :func:`saving`; what stood at ``path`` before is untouched.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _sync(partial)
            partial.replace(path)
    finally:
        with suppress(OSError):  # what went wrong first is what is reported
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill the folder given inside the block; it becomes ``path`` when the block ends without an error.

    Raises:
        Halt: on a full disk and the like, see :func:`saving`; what stood at ``path`` before is untouched.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with saving(path):
            partial.mkdir(parents=True)
            yield partial
            for file in partial.rglob("*"):
                _sync(file)
            _sync(partial)
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
            _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill the folder given inside the block, as :func:`whole_folder` does, where nothing is yet that could be lost.

    Raises:
        UserError: before the block, if ``path`` is a file, or a folder with anything in it.
        Halt: on a full disk and the like.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: expected the name of a new or empty folder, found a file. Give another folder.")
    if path.is_dir() and (found := sorted(file.name for file in path.iterdir())):
        raise UserError(
            f"{path}: expected a new or empty folder, found one with {listed(found, 3)} in it, and nothing is overwritten. "
            "Give another folder, or remove this one."
        )
    with whole_folder(path.resolve()) as partial:
        yield partial


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


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        NotJsonError: if it is not one.
    """
    try:
        return json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:  # not JSON, numbers without end, or nested without end
        raise _no_json(path, error) from error


def _read_text(path: Path) -> str:
    """Return the text of a file; raises NotJsonError if it is none."""
    if path.exists() and not path.is_file():
        raise NotJsonError(f"{path}: expected a file of JSON, found a folder, pipe or device. Remove it.")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        if error.errno not in IN_THE_WAY:
            raise
        raise NotJsonError(
            f"{path}: expected JSON, found no file ({os.strerror(error.errno)}). Move it away."
        ) from error
    except ValueError as error:  # not UTF-8
        raise _no_json(path, error) from error


def _no_json(path: Path, found: Exception) -> NotJsonError:
    return NotJsonError(f"{path}: expected JSON, found {found}. Remove the file, or restore it from a copy.")


def content_sha256(values: Mapping[str, Any]) -> str:
    """Return the sha256, hexadecimal, of plain values, whatever the order of their keys."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` as JSON with a ``seal``, the hash of all the rest, whole or not at all."""
    write_json(path, {**values, "seal": content_sha256(values)})


def read_sealed(path: Path, kind: type[M], remedy: str, older: Callable[[M], bool] = lambda _: False) -> M:
    """Return the ``kind`` that a JSON file holds, which must fit its seal; it may lack one if it is ``older`` than seals are.

    Raises:
        DamagedError: if it is no such file, with the ``remedy``.
        FileNotFoundError: if there is none.
    """
    text = _read_text(path)
    try:
        found: M
        found, sealed = _unsealed(text, kind)
        if not (sealed or older(found)):
            raise ValueError("it has no seal")
        return found.model_copy()  # what its reader adds to it, such as outcomes, is not kept
    except _NoJsonError as error:
        raise _no_json(path, error) from error
    except _NoValuesError as error:
        raise DamagedError(f"{path}: expected named values, found {error}. {remedy}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the whole file"
        raise DamagedError(
            f"{path}: damaged, changed or of another version: {where}: {problem['msg']}. {remedy}"
        ) from error
    except ValueError as error:
        raise DamagedError(f"{path}: damaged or changed since it was written: {error}. {remedy}") from error


class _NoJsonError(Exception):
    """A text that is no JSON."""


class _NoValuesError(Exception):
    """JSON that is not named values."""


@lru_cache(maxsize=512)
def _unsealed(text: str, kind: type[M]) -> tuple[M, bool]:
    """Return the ``kind`` that a text of JSON holds, which fits its seal, and whether it has one.

    What is the same text as before is not checked again: a status reads the record of an encoder for every task that starts from it.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, numbers without end, or nested without end
        raise _NoJsonError(error) from error
    if not isinstance(values, dict):
        raise _NoValuesError(type(values).__name__)
    seal = values.pop("seal", None)
    check_plain(values)
    if seal not in (None, content_sha256(values)):
        raise ValueError("it does not hash to its seal")
    return kind.model_validate(values), seal is not None


def check_plain(value: Any, where: str = "", depth: int = 0) -> None:
    """Check that what was read from a file of settings or results can be compared, printed and written again.

    Raises:
        ValueError: naming the key of a text with a control character, a number that is not finite or has more than 64 bits,
            or a value that is nested too deep.
    """
    if _is_plain(value, depth):  # as nearly all are: where a value lies is spelt out only for one that is refused
        return
    at = f"{where}: " if where else ""
    if isinstance(value, Mapping | list):
        if depth == DEPTH:
            raise ValueError(f"{where[:60]}...: nested more than {DEPTH} deep")
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            check_plain(key, where)
            check_plain(inner, f"{where}.{key}" if where else str(key), depth + 1)
    elif isinstance(value, str) and (found := CONTROL.search(value)):
        raise ValueError(f"{at}the control character {found[0]!r} in {value[:60]!r}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{at}a whole number of more than 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{at}the number {value}, which is not finite")


def _is_plain(value: Any, depth: int) -> bool:
    """Return whether a value of JSON's own types passes :func:`check_plain`; False of one of other types, which may."""
    kind = type(value)
    if kind is str:
        return CONTROL.search(value) is None
    if kind is float:
        return math.isfinite(value)
    if kind is int:
        return bool(-(2**63) <= value < 2**63)
    if kind is list:
        return depth < DEPTH and all(_is_plain(inner, depth + 1) for inner in value)
    if kind is dict:
        return depth < DEPTH and all(
            _is_plain(key, depth) and _is_plain(inner, depth + 1) for key, inner in value.items()
        )
    return kind is bool or value is None


def below(root: Path, *names: str) -> Path:
    """Return the path of ``names`` below ``root``.

    Raises:
        UserError: if it would lie anywhere else, as ``..`` and absolute paths do.
    """
    parts = [part for name in names for part in name.split("/")]
    if any(part in ("", ".", "..") or "\\" in part or CONTROL.search(part) for part in parts):
        raise UserError(
            f"{'/'.join(names)!r} is no name of anything below {root}, and nothing is read or written there."
        )
    return root.joinpath(*parts)


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


SYSTEM_ERRORS = {
    errno.ENOSPC: ("The disk is full", "Free some space"),
    errno.EDQUOT: ("Your quota on this disk is used up", "Free some space"),
    errno.EFBIG: ("A file may not become that large here", "Raise the limit (ulimit -f), or take another disk"),
    errno.EROFS: ("The disk cannot be written to", "Mount it writable, or name another folder"),
    errno.EMFILE: ("Too many files are open", "Raise the limit (ulimit -n), or lower workers"),
    errno.ENFILE: ("Too many files are open on this machine", "Close some programs, or lower workers"),
    errno.ENAMETOOLONG: ("The path is too long for this disk", "Name a folder with a shorter path"),
    errno.ENOENT: ("A file or folder is gone", "Put it back"),
    errno.EACCES: ("Permission denied", "Give yourself the permission, or name another folder"),
    errno.EIO: ("The disk reports an error", "Look after it"),
}
"""What the operating system's errors mean, and what to do."""

IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)
"""What the errors mean that concern one path and no other: another run can be saved all the same."""


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses while ``path`` is written, whoever reports it, into a paragraph.

    Raises:
        UserError: if something else stands in its place.
        Halt: saying why, and that what was saved before is whole.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in IN_THE_WAY:
            raise UserError(
                f"{path} could not be saved ({os.strerror(error.errno)}): another file, folder or link is in its place, or in that "
                "of a folder it lies in. Move that away, and give the same command again."
            ) from error
        if found := explanation(error):
            what, remedy = found
            raise Halt(
                f"{what}: {path} could not be saved. What was saved before is whole. {remedy}, and give the same command again."
            ) from error
        raise


def explanation(error: BaseException) -> tuple[str, str] | None:
    """Return what an error of the operating system means and what to do; None if it is of another kind, or explained.

    Libraries such as safetensors and torch's loader report some as errors of their own, which have the number in the text.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and not isinstance(error, UserError):
        named = re.search(r"os error (\d+)", str(error))
        texts = (known for known in SYSTEM_ERRORS if os.strerror(known) in str(error))
        number = int(named[1]) if named else next(texts, None)
    if number is None:
        return None
    return SYSTEM_ERRORS.get(number, (os.strerror(number), "Mend that"))
