"""Pickles of others' lists, read as plain data: containers, numbers, text, and NumPy's arrays of numbers. Nothing of NumPy's own is called."""

import io
import math
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lutbench.errors import UserError

NUMBERS = "biuf"
"""NumPy's kinds of numbers; elements of other kinds could be anything."""


class _Type:
    """Stands in for a NumPy type of numbers, such as ``i8``, whose byte order comes behind it."""

    def __init__(self, name: str, *_: object) -> None:
        self.dtype = np.dtype(name if isinstance(name, str) and name[:1] in NUMBERS and name[1:].isdigit() else "O")
        if self.dtype.kind not in NUMBERS:
            raise pickle.UnpicklingError(f"it has an array of type {name!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])

    def numbers(self, content: bytes) -> NDArray[Any]:
        """Return the numbers (n,) that are kept in ``content``, in this machine's byte order."""
        found = np.frombuffer(content, self.dtype)
        return found.astype(self.dtype.newbyteorder("="))


class PlainArray:
    """Stands in for a NumPy array of numbers; ``numpy.asarray`` makes it one."""

    def __init__(self, *_: object) -> None:
        self.values: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        self.fill(content, kind, shape, "F" if fortran else "C")

    def fill(self, content: bytes, kind: _Type, shape: tuple[int, ...], order: Literal["C", "F"]) -> "PlainArray":
        """Take the numbers that are kept in ``content``, and return the array."""
        numbers = kind.numbers(content)
        if len(numbers) != math.prod(shape):
            raise pickle.UnpicklingError("it has an array whose shape is not that of its content")
        self.values = numbers.reshape(shape, order=order)
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.values if dtype is None else self.values.astype(dtype)


def _bytes(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, by which pickles of Python 2's protocol keep bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it keeps bytes as {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stand in for ``bytes()``, which the same pickles call for none."""
    return b""


def _from_buffer(content: bytes, kind: _Type, shape: tuple[int, ...], order: Literal["C", "F"]) -> PlainArray:
    """Stand in for NumPy's ``_frombuffer``, by which pickles of the newest protocol make arrays."""
    return PlainArray().fill(content, kind, shape, order)


def _scalar(kind: _Type, content: bytes) -> Any:
    """Stand in for NumPy's ``scalar``: a plain number."""
    return kind.numbers(content)[0].item()


_STAND_INS: dict[str, Any] = {
    "numpy.dtype": _Type,
    "numpy.ndarray": "numpy.ndarray",  # which is only named, by what makes one
    "_codecs.encode": _bytes,
    "__builtin__.bytes": _no_bytes,
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": PlainArray for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}
"""What stands in for each name that a pickle of plain data has."""


class _Plain(pickle.Unpickler):
    """Makes what stands in for :data:`_STAND_INS`, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands in for a name; raises UnpicklingError if it is no plain data's."""
        if (found := _STAND_INS.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")
        return found


def read_plain_pickle(path: Path) -> Any:
    """Return what a pickle holds; nothing in it can run. Arrays are :class:`PlainArray`.

    Raises:
        UserError: if it cannot be read, is damaged, or names anything but plain data.
    """
    try:
        return _Plain(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Look after its permissions or its disk.") from error
    except Exception as error:  # whatever a damaged pickle trips over
        raise UserError(
            f"{path}: expected a pickle of lists, numbers and text alone, but {error or type(error).__name__}. Nothing of it was run. Is it "
            "the file that its authors publish, downloaded completely? Get it again."
        ) from error
