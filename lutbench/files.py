"""Atomic writes (a file is complete or absent), and sealed JSON: files that are accepted only if they match their own hash."""

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
from lutbench.system_errors import IN_THE_WAY, explanation

M = TypeVar("M", bound=BaseModel)


CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
"""Control characters, line breaks, characters that change the text direction or are invisible, and lone surrogates."""

DEPTH = 32
"""Maximum nesting of tables and lists, far more than any setting or record has."""


class DamagedError(UserError):
    """A file that has changed since the suite wrote it."""


class NotJsonError(DamagedError):
    """A file that should hold JSON but does not."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write to the path given inside the block; it becomes ``path`` when the block ends without an error.

    Raises:
        Halt: on a full disk and the like, see :func:`saving`; an earlier ``path`` is unchanged.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _sync(partial)
            partial.replace(path)
    finally:
        with suppress(OSError):  # report the first error, not this one
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill the folder given inside the block; it becomes ``path`` when the block ends without an error.

    Raises:
        Halt: on a full disk and the like, see :func:`saving`; an earlier ``path`` is unchanged.
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
    """Fill the folder given inside the block, as :func:`whole_folder` does, but never replace an existing file or folder.

    Raises:
        UserError: before the block, if ``path`` is a file, or a folder that is not empty.
        Halt: on a full disk and the like.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: expected the name of a new or empty folder, found a file. Give another folder.")
    if path.is_dir() and (found := sorted(file.name for file in path.iterdir())):
        raise UserError(
            f"{path}: expected a new or empty folder, found one with {listed(found, 3)} in it. "
            "Give another folder, or remove this one. Nothing was overwritten."
        )
    with whole_folder(path.resolve()) as partial:
        yield partial


def remove_partials(folder: Path, names: str = "*", *, spare_living: bool = False) -> None:
    """Remove half-written files and folders below ``folder``, with names like ``names``, that killed processes left.

    The caller makes sure that no process is writing them. ``spare_living`` keeps those of running processes on this machine.
    """
    for partial in list(folder.rglob(f".{names}.partial-*")):
        if spare_living and _lives(partial.name.rpartition("-")[2]):
            continue
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _lives(process: str) -> bool:
    """Return whether another process with this number is running on this machine."""
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # it is another user's
        return True
    return int(process) != os.getpid()


def gigabytes(count: int | None) -> str:
    """Format a number of bytes: ``1.3 GB``, or ``unknown`` for None."""
    if count is None:
        return "unknown"
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        NotJsonError: if it is not JSON.
    """
    try:
        return json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:  # not JSON, numbers too long, or nested too deep
        raise _no_json(path, error) from error


def _read_text(path: Path) -> str:
    """Return the text of a file; raises NotJsonError if it is not a text file."""
    if path.exists() and not path.is_file():
        raise NotJsonError(f"{path}: expected a JSON file, found a folder, pipe or device. Remove it.")
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
    return NotJsonError(f"{path}: expected JSON, found {found}. Remove the file, or restore it from a backup.")


def content_sha256(values: Mapping[str, Any]) -> str:
    """Return the hexadecimal sha256 of plain values, independent of the order of their keys."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` as JSON with a ``seal``, the hash of all other values, atomically."""
    write_json(path, {**values, "seal": content_sha256(values)})


def read_sealed(path: Path, kind: type[M], remedy: str, older: Callable[[M], bool] = lambda _: False) -> M:
    """Read a ``kind`` from a JSON file that must match its seal; a file may lack the seal if it is ``older`` than seals.

    Raises:
        DamagedError: if the file is damaged or of another kind; the message ends with the ``remedy``.
        FileNotFoundError: if the file does not exist.
    """
    text = _read_text(path)
    try:
        found: M
        found, sealed = _unsealed(text, kind)
        if not (sealed or older(found)):
            raise ValueError("it has no seal")
        return found.model_copy()  # so that what the reader adds, such as outcomes, is not cached
    except _NoJsonError as error:
        raise _no_json(path, error) from error
    except _NoValuesError as error:
        raise DamagedError(f"{path}: expected named values, found {error}. {remedy}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the whole file"
        raise DamagedError(
            f"{path}: damaged, changed or written by another version: {where}: {problem['msg']}. {remedy}"
        ) from error
    except ValueError as error:
        raise DamagedError(f"{path}: damaged or changed since it was written: {error}. {remedy}") from error


class _NoJsonError(Exception):
    """A text that is not JSON."""


class _NoValuesError(Exception):
    """JSON that is not an object with named values."""


@lru_cache(maxsize=512)
def _unsealed(text: str, kind: type[M]) -> tuple[M, bool]:
    """Parse a ``kind`` from JSON, verify its seal, and return it and whether it has a seal.

    Results are cached: ``status`` reads the record of an encoder once for every task that starts from it.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, numbers too long, or nested too deep
        raise _NoJsonError(error) from error
    if not isinstance(values, dict):
        raise _NoValuesError(type(values).__name__)
    seal = values.pop("seal", None)
    check_plain(values)
    if seal not in (None, content_sha256(values)):
        raise ValueError("its hash does not match its seal")
    return kind.model_validate(values), seal is not None


def check_plain(value: Any, where: str = "", depth: int = 0) -> None:
    """Check that values read from a file of settings or results can be compared, printed and written again.

    Raises:
        ValueError: with the key of a text with a control character, a number that is not finite or has more than 64 bits, or a
            value that is nested too deep.
    """
    if _is_plain(value, depth):  # nearly all are; the key is worked out only for a value that is refused
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
        raise ValueError(f"{at}an integer of more than 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{at}the number {value}, which is not finite")


def _is_plain(value: Any, depth: int) -> bool:
    """Return whether a value of JSON types passes :func:`check_plain`; False for other types, which still may pass."""
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
            f"{'/'.join(names)!r} is not a valid path below {root}. Nothing outside that folder is read or written."
        )
    return root.joinpath(*parts)


def read_model(path: Path, kind: type[M]) -> M | None:
    """Read a ``kind`` from a JSON file; None if the file does not exist, cannot be read, or holds something else."""
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
def saving(path: Path) -> Iterator[None]:
    """Turn an error of the operating system while ``path`` is written, from any library, into a message for the user.

    Raises:
        UserError: if another file or folder is in the way.
        Halt: with the reason, and that everything saved before is intact.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in IN_THE_WAY:
            raise UserError(
                f"{path} could not be saved ({os.strerror(error.errno)}): another file, folder or link is in the way, at this path or at "
                "one of its parent folders. Move it away, and repeat the command."
            ) from error
        if found := explanation(error):
            what, remedy = found
            raise Halt(
                f"{what}: {path} could not be saved. Everything saved before is intact. {remedy}, and repeat the command."
            ) from error
        raise
