"""Read arrays from files; the headers are checked before any data is decompressed.

A few bytes of a zip file can expand to gigabytes, and a header can claim any shape. So names, types, shapes and sizes must match the
reader's layout, if it has one, and the total size must not exceed :data:`MAX_BYTES`.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Layout = Mapping[str, tuple[tuple[str, ...], int]]
"""For every array, by name: its allowed types, as the beginnings of NumPy type codes (``i2``, ``f4``; ``U`` is text), and its number of
dimensions. ``#.label`` stands for ``0.label``, ``1.label`` and so on."""

MAX_BYTES = 2**28
"""Limit for a file and for all arrays in it: ten times what ImageNet-C, the largest published dataset here, needs."""

MAX_ARRAYS = 2**14
"""Maximum number of arrays in a file: ImageNet-C has 95 conditions of 8 arrays."""

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(content: bytes, layout: Layout | None = None) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz`` file by name, read-only; without a layout, any arrays are accepted.

    Raises:
        ValueError: with what was found instead of arrays of this layout.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, ExitStack() as opened:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            total = sum(member.file_size for member in members.values())
            if len(members) != len(archive.infolist()) or len(members) > MAX_ARRAYS or total > MAX_BYTES:
                raise ValueError(
                    f"{len(archive.infolist())} arrays of {total} bytes together, more than expected, or two arrays with the same name"
                )
            if layout is not None and any(_expected(name, layout) is None for name in members):
                raise ValueError(f"arrays {', '.join(members)}"[:300])
            if any(one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for one in members.values()):
                raise ValueError("a compression that NumPy does not write")
            files = {name: opened.enter_context(archive.open(member)) for name, member in members.items()}
            headers = {name: _header(files[name], members[name].file_size) for name in members}
            for name, (shape, _, dtype) in headers.items():
                types, dimensions = (_expected(name, layout) if layout is not None else None) or (("",), len(shape))
                if len(shape) != dimensions or not dtype.str[1:].startswith(types):
                    raise ValueError(f"an array {name!r} of shape {shape} and type {dtype}")
            return {name: _data(files[name], *headers[name]) for name in members}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
        raise ValueError(f"not a complete .npz file ({error})") from error


def read_array(content: bytes) -> NDArray[Any]:
    """Return the array of numbers in an ``.npy`` file, read-only.

    Raises:
        ValueError: if it holds anything else.
    """
    file = io.BytesIO(content)
    header = _header(file, len(content))
    if header[2].kind not in "biufc":
        raise ValueError(f"an array of type {header[2]}")
    return _data(file, *header)


def _expected(name: str, layout: Layout) -> tuple[tuple[str, ...], int] | None:
    """Return the layout of an array; None if the name is not in it."""
    number, dot, rest = name.partition(".")
    return layout.get(f"#.{rest}" if dot and number.isdecimal() and number.isascii() else name)


def _header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return the shape, whether it is in Fortran's order, and the type of the array in a file of so many bytes."""
    read = _HEADERS.get(np.lib.format.read_magic(file))
    if read is None:
        raise ValueError("an unknown version of NumPy's format")
    shape, fortran, dtype = read(file)
    bytes_said = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or dtype.hasobject or bytes_said != size - file.tell():
        raise ValueError(f"an array of shape {shape} and type {dtype} in {size} bytes")
    return shape, fortran, dtype


def _data(file: IO[bytes], shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.ndarray(shape, dtype, buffer=file.read(), order="F" if fortran else "C")


def small_integers(values: NDArray[Any]) -> NDArray[np.integer[Any]]:
    """Return integers in the type they are saved in: int16 if all values fit, else int32.

    Raises:
        ValueError: if they are not of an integer type.
    """
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"expected whole numbers, found {values.dtype}")
    fits = values.size == 0 or (values.min() >= -(2**15) and values.max() < 2**15)
    return values.astype(np.int16 if fits else np.int32)
