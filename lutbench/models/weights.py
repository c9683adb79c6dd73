"""Save and load weights. Files are written atomically, and read without running code in them."""

import argparse
import re
import warnings
import zipfile
from collections import deque
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lutbench.errors import UserError, listed
from lutbench.files import whole_file
from lutbench.finite import check_finite, not_finite
from lutbench.models.pickled import BESIDE_WEIGHTS
from lutbench.models.weight_files import IN_FOLDERS, PICKLES, index_of, sha256_of, weight_files, weight_map

WRAPPINGS = ("model", "state_dict")
"""Keys under which training scripts store the weights in a checkpoint (MAE and most others)."""


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write safetensors atomically, and return the file's sha256.

    Raises:
        UserError: if a value is not finite, or the disk is full; an existing file at ``path`` is then unchanged.
    """
    check_finite(tensors, str(path))
    with whole_file(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
    return sha256_of(path)


def read_weights(path: Path, expected_sha256: str | None = None) -> dict[str, Tensor]:
    """Return the weights of one network: those under ``model`` or ``state_dict`` if these keys exist, otherwise all.

    Raises:
        UserError: as :func:`read_tensors` and :func:`check_values`.
    """
    tensors = unwrapped(read_tensors(path, expected_sha256))
    check_values(tensors, str(path))
    return tensors


def read_tensors(path: Path, expected_sha256: str | None = None) -> dict[str, Tensor]:
    """Return all tensors of a file or a folder of weights, by their names there.

    Reads ``.safetensors``, files of torch.save (:data:`PICKLES`), and folders of Hugging Face's libraries with one file or several and an
    index. From pickles only plain data is read (:mod:`lutbench.models.pickled`). Names of tensors in nested mappings are joined by dots,
    such as ``teacher.backbone.norm.weight``; other content (epoch, arguments, optimiser state by number, lists) is skipped. Values stay on
    disk until they are used, except for pickles of PyTorch before 1.6.

    Raises:
        UserError: if the file is missing, truncated, has another hash, is not a checkpoint, or would run code.
    """
    files = weight_files(path)
    if expected_sha256 is not None and (found := sha256_of(path)) != expected_sha256:
        raise UserError(
            f"{path}: expected sha256 {expected_sha256}, found {found}: the file is damaged or was changed. "
            "Restore it from a copy, or make it again."
        )
    where = weight_map(index) if (index := index_of(path)) else {}
    tensors = {
        name: tensor
        for file in files
        for name, tensor in _read(file).items()
        if where.get(name, file.name) == file.name  # another file may hold one of that name too
    }
    if absent := sorted(where.keys() - tensors.keys()):
        raise UserError(
            f"{index}: {len(absent)} of the listed tensors are missing in the files ({listed(absent, 3)}). Download or save the folder again."
        )
    return tensors


def read_shapes(path: Path) -> dict[str, Tensor]:
    """Return what :func:`read_tensors` does on the meta device: names and shapes without values; of a file that did not change read once.

    Tensors that :func:`check_kinds` refuses stay as they are.

    Raises:
        UserError: as :func:`read_tensors`.
    """
    return dict(_shapes(path, tuple((file, file.stat().st_mtime_ns) for file in weight_files(path))))


@lru_cache
def _shapes(path: Path, modified: tuple[tuple[Path, int], ...]) -> dict[str, Tensor]:
    return {name: tensor if _is_odd(tensor) else tensor.to("meta") for name, tensor in read_tensors(path).items()}


def check_values(tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that ``tensors`` are plain and finite.

    Raises:
        UserError: naming the first that are quantised, sparse, without values or not finite.
    """
    check_kinds(tensors, where)
    if without := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise _unusable(without, len(tensors), _ODD, where)
    if wrong := not_finite(tensors):
        raise _unusable(wrong, len(tensors), "not finite", where)


def check_kinds(tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that ``tensors`` are plain ones, as far as that is known without their values.

    Raises:
        UserError: naming the first that are quantised or sparse.
    """
    if odd := [name for name, tensor in tensors.items() if _is_odd(tensor)]:
        raise _unusable(odd, len(tensors), _ODD, where)


_ODD = "quantised, sparse or without values"


def _is_odd(tensor: Tensor) -> bool:
    return tensor.is_quantized or tensor.layout != torch.strided


def _unusable(names: list[str], of: int, found: str, where: str) -> UserError:
    return UserError(
        f"{where}: {len(names)} of {of} tensors are {found} ({listed(names, 3)}). Such weights cannot be used: "
        "save the plain state_dict() of a model from a successful training."
    )


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _damaged(path, "safetensors", str(error)) from error
    if path.suffix in PICKLES:
        content = read_pickle(
            path,
            "Ask its authors for plain weights, or, if you trust the file, convert it: "
            "safetensors.torch.save_file(state_dict, 'weights.safetensors').",
            BESIDE_WEIGHTS,
        )
        return _tensors_in(content, path)
    raise UserError(
        f"{path}: expected a weight file with suffix .safetensors, {', '.join(PICKLES)}, or a folder with "
        f"{IN_FOLDERS[0]}."
    )


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the first of :data:`WRAPPINGS` that is there, without it; all if none is."""
    for key in WRAPPINGS:
        if inside := {n.removeprefix(f"{key}."): t for n, t in tensors.items() if n.startswith(f"{key}.")}:
            return inside
    return dict(tensors)


def without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a classifier without what training scripts put before all names, such as ``module.``."""
    for before in ("module.", "_orig_mod.", "encoder.", "backbone."):
        if all(name.startswith(before) for name in tensors):
            return without_prefix({name.removeprefix(before): tensor for name, tensor in tensors.items()})
    return dict(tensors)


def pooled_norm(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether weights of a ViT have their last norm behind the pooling, as fine-tuning in MAE's way puts it."""
    return "fc_norm.weight" in tensors and "norm.weight" not in tensors


def read_pickle(path: Path, remedy: str, allowed: Iterable[Any] = (argparse.Namespace,)) -> Any:
    """Return the plain data in a file that torch.save wrote, on the CPU; its tensors' values are read when they are used.

    ``allowed`` is what :func:`torch.serialization.safe_globals` takes.

    Raises:
        UserError: if it is damaged, or would run code; ``remedy`` says what to do then.
    """
    with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols; what matters is raised
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:  # torch's unpickler lets through whatever a damaged pickle trips over
            needed = re.search(r"GLOBAL (\S+)", str(error))
            # operands that pickle protocols 4 and 5 added
            if re.search(r"Unsupported operand 1(4\d|5[0-2])\b", str(error)):
                raise UserError(
                    f"{path}: expected torch.save's default pickle protocol, found a later one, which cannot be read without running code in it. "
                    "If you trust the file, save it again: torch.save(torch.load(PATH, weights_only=False), PATH)."
                ) from error
            if needed is None:
                raise _damaged(path, "a checkpoint of torch.save", _last_line(error)) from error
            raise UserError(
                f"{path}: expected tensors and plain values, found a pickle that needs {needed[1]}, which could run "
                f"code and is not loaded. {remedy}"
            ) from error


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors in what a checkpoint holds, in mappings in mappings, under names joined by dots."""
    tensors: dict[str, Tensor] = {}
    waiting, met = deque([("", content)]), {id(content)}  # a pickle may hold itself
    while waiting:
        before, values = waiting.popleft()
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(key, str) and isinstance(value, Tensor):
                tensors[before + key] = value
            elif isinstance(key, str) and isinstance(value, Mapping) and id(value) not in met:
                met.add(id(value))
                waiting.append((f"{before}{key}.", value))
    if tensors:
        return tensors
    found = f"the keys {listed(map(str, content), 8)}" if isinstance(content, Mapping) else type(content).__name__
    raise UserError(
        f"{path}: expected named tensors, directly or under keys such as {' and '.join(WRAPPINGS)}, found {found}. "
        "Save the model's state_dict() and use that file."
    )


def _damaged(path: Path, expected: str, found: str) -> UserError:
    size = path.stat().st_size
    return UserError(
        f"{path}: expected {expected}, but its {size} bytes cannot be read as such ({found}). The file is truncated or of another "
        "type; download or save it again."
    )


def _last_line(error: Exception) -> str:
    """Return the part of torch's long message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "torch.load" not in line]
    return (lines[-1] if lines else type(error).__name__)[:200]
