"""Cache of features of frozen encoders, shared by probes; stored below ``--runs`` as ``features/KEY.safetensors``.

KEY is the hash of everything that determines the features (:func:`lutbench.evaluate.features.feature_inputs`); the file contains these
inputs too, and a sha256 over its content. Files are written atomically. If two runs need the same features at once, one computes them and
the other waits (:func:`making`); if both compute them, the last file wins, with the same bits. The size of the folder is limited: the least
recently used files are removed first. The whole folder can be removed at any time.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lutbench.errors import UserError
from lutbench.files import DamagedError, content_sha256, gigabytes, remove_partials, whole_file

INPUTS, SHA256 = "inputs", "sha256"
"""What is said in a file beside its tensors."""

CROPS = ".crops"
"""How files of crops end, which are kept beside features: :mod:`lutbench.evaluate.crop_store`."""


@dataclass(frozen=True)
class Kept:
    """What one file holds."""

    values: Tensor
    """(m, ...), float32."""
    index: Tensor
    """(m,), int64: which images of the dataset these are, ascending; those that are left out could not be decoded."""


def path_of(folder: Path, inputs: Mapping[str, Any]) -> Path:
    """Return where the features with these inputs are kept."""
    return folder / f"{content_sha256(inputs)[:32]}.safetensors"


def read_features(folder: Path, inputs: Mapping[str, Any]) -> Kept | None:
    """Return the features with these inputs, which count as used now; None if they are not kept.

    They are copied out of the file, so that they lie in memory as those do that were just computed, and stay if the file goes.

    Raises:
        DamagedError: if the file is not as it was written.
    """
    path = path_of(folder, inputs)
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            kept = Kept(file.get_tensor("values").clone(), file.get_tensor("index").clone())
        if said.get(INPUTS) != _text(inputs):
            raise ValueError("it contains other features")
        if said.get(SHA256) != _sha256(kept):
            raise ValueError("its checksum is wrong")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise DamagedError(f"{path}: damaged or changed since it was written ({str(error).rstrip('. ')}).") from error
    with suppress(OSError):  # a folder of others
        os.utime(path)
    return kept


def write_features(folder: Path, some: Sequence[tuple[Mapping[str, Any], Kept]], most: int) -> str:
    """Store features with their inputs; remove the least recently used ones if the folder exceeds ``most`` bytes.

    Returns the reason, a clause, if they are not stored: they alone exceed ``most``, or would need more than half of the free disk space,
    which checkpoints need more. Empty if they are stored, or ``most`` is 0.
    """
    if not most:
        return ""  # as the user wants it
    needed = sum(kept.values.nbytes + kept.index.nbytes for _, kept in some)
    if needed > most:
        return f"they need {gigabytes(needed)}, but --features allows only {gigabytes(most)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partials(folder, spare_living=True)
        make_room(folder, most - needed, {path_of(folder, inputs) for inputs, _ in some})
        if needed > (free := shutil.disk_usage(folder).free) / 2:
            return f"they need {gigabytes(needed)}, more than half of the {gigabytes(free)} free in {folder}"
        for inputs, kept in some:
            tensors = {"values": kept.values.contiguous(), "index": kept.index}
            with whole_file(path_of(folder, inputs)) as partial:
                save_file(tensors, partial, {INPUTS: _text(inputs), SHA256: _sha256(kept)})
    except (OSError, UserError) as error:
        return str(error).partition(". Everything saved before")[0].rstrip(".")
    return ""


@contextmanager
def making(folder: Path, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Lock features while they are computed: another run that needs the same waits.

    Inside the block, check again whether they exist by now. If no lock can be made, nothing waits: computing twice gives the same bits.
    """
    lock = FileLock(path_of(folder, inputs).with_suffix(".lock"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def make_room(folder: Path, left: int, spared: set[Path]) -> None:
    """Remove the least recently used files, crops before features, until at most ``left`` bytes remain."""
    used = []
    for path in [*folder.glob("*.safetensors"), *folder.glob(f"*{CROPS}")]:
        with suppress(FileNotFoundError):  # another command makes room too
            state = path.stat()
            used.append((path.suffix != CROPS, state.st_mtime_ns, path.name, state.st_size))
    total = 0
    for _, _, name, size in sorted(used, reverse=True):
        total += 0 if folder / name in spared else size
        if total > left:
            (folder / name).unlink(missing_ok=True)


def room_taken(folder: Path, names: str) -> int:
    """Return the bytes of the files in a folder whose names match, such as ``*.safetensors``."""
    total = 0
    for path in folder.glob(names):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _text(inputs: Mapping[str, Any]) -> str:
    return json.dumps(inputs, sort_keys=True)


def _sha256(kept: Kept) -> str:
    """Return the sha256 over types, shapes and bytes."""
    total = hashlib.sha256()
    for tensor in (kept.values, kept.index):
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()
