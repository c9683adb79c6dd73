"""Read pickle files safely, as plain data: containers, numbers, text and NumPy arrays of numbers. No code in the pickle can run."""

import io
import math
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lutbench.errors import UserError

NUMBERS = "biuf"
"""NumPy's numeric kinds; other kinds could hold arbitrary objects."""


class _Type:
    """Replacement for a numeric NumPy dtype, such as ``i8``, whose byte order is set afterwards."""

    def __init__(self, name: str, *_: object) -> None:
        self.dtype = np.dtype(name if isinstance(name, str) and name[:1] in NUMBERS and name[1:].isdigit() else "O")
        if self.dtype.kind not in NUMBERS:
            raise pickle.UnpicklingError(f"it has an array of type {name!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])

    def numbers(self, content: bytes) -> NDArray[Any]:
        """Return the numbers (n,) stored in ``content``, in this machine's byte order."""
        found = np.frombuffer(content, self.dtype)
        return found.astype(self.dtype.newbyteorder("="))


class PlainArray:
    """Replacement for a numeric NumPy array; ``numpy.asarray`` converts it."""

    def __init__(self, *_: object) -> None:
        self.values: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        self.fill(content, kind, shape, "F" if fortran else "C")

    def fill(self, content: bytes, kind: _Type, shape: tuple[int, ...], order: Literal["C", "F"]) -> "PlainArray":
        """Fill the array with the numbers stored in ``content``, and return it."""
        numbers = kind.numbers(content)
        if len(numbers) != math.prod(shape):
            raise pickle.UnpicklingError("it has an array whose shape does not match its content")
        self.values = numbers.reshape(shape, order=order)
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.values if dtype is None else self.values.astype(dtype)


def _bytes(text: str, encoding: str) -> bytes:
    """Replacement for ``_codecs.encode``, which pickles of Python 2's protocol use for bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it stores bytes with encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Replacement for ``bytes()``, which the same pickles use for empty bytes."""
    return b""


def _from_buffer(content: bytes, kind: _Type, shape: tuple[int, ...], order: Literal["C", "F"]) -> PlainArray:
    """Replacement for NumPy's ``_frombuffer``, which pickles of the newest protocol use for arrays."""
    return PlainArray().fill(content, kind, shape, order)


def _scalar(kind: _Type, content: bytes) -> Any:
    """Replacement for NumPy's ``scalar``: a plain number."""
    return kind.numbers(content)[0].item()


_STAND_INS: dict[str, Any] = {
    "numpy.dtype": _Type,
    "numpy.ndarray": "numpy.ndarray",  # only passed as an argument, never called
    "_codecs.encode": _bytes,
    "__builtin__.bytes": _no_bytes,
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": PlainArray for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}
"""The replacement for each name that a pickle of plain data may contain."""


class _Plain(pickle.Unpickler):
    """Unpickler that only knows the names in :data:`_STAND_INS`."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement for a name; raises UnpicklingError for names that are not plain data."""
        if (found := _STAND_INS.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which could run code")
        return found


def read_plain_pickle(path: Path) -> Any:
    """Return the content of a pickle file without running any code in it. Arrays are :class:`PlainArray`.

    Raises:
        UserError: if it cannot be read, is damaged, or contains anything but plain data.
    """
    try:
        return _Plain(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Check its permissions and its disk.") from error
    except Exception as error:  # damaged pickles raise many kinds of errors
        raise UserError(
            f"{path}: expected a pickle with only lists, numbers and text, but {error or type(error).__name__}. No code in it was run. "
            "Download the file again from its authors."
        ) from error
