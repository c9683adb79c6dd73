"""Files of weights: written whole, read without running anything that is in them."""

import argparse
import hashlib
import re
import warnings
from collections.abc import Mapping
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

PICKLES = (".pth", ".pt", ".bin", ".tar")
"""Endings of files that torch.save wrote."""

WRAPPINGS = ("model", "state_dict")
"""Where a training script's checkpoint keeps the weights: MAE's, and most others'."""


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write safetensors, whole or not at all, and return the file's sha256.

    Raises:
        UserError: if a number is not finite, or on a full disk; what stood at ``path`` before is untouched.
    """
    check_finite(tensors, str(path))
    with whole_file(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
    return sha256_of(path)


def read_weights(path: Path, expected_sha256: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors``, or of a ``.pth`` as MAE releases them, by the names that they have there.

    Of a pickle, plain data alone is read; of classes only ``argparse.Namespace``, which MAE's files hold, as data.

    Raises:
        UserError: if the file is missing, truncated, not what its hash says, not a checkpoint, or would run code; or if a tensor
            is quantised, sparse or without values, or not finite.
    """
    tensors = _read(path, expected_sha256)
    odd = [name for name, t in tensors.items() if t.is_quantized or t.layout != torch.strided or t.is_meta]
    if odd or (wrong := not_finite(tensors)):
        found = "quantised, sparse or without values" if odd else "not finite"
        raise UserError(
            f"{path}: {len(odd or wrong)} of {len(tensors)} tensors are {found} ({listed(odd or wrong, 3)}). Nothing can be measured with "
            "such weights: save the model's plain state_dict() of a training that went well."
        )
    return tensors


def _read(path: Path, expected_sha256: str | None) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"There is no file of weights {path}. Check the path, or make it first.")
    if expected_sha256 is not None and (found := sha256_of(path)) != expected_sha256:
        raise UserError(
            f"{path}: expected sha256 {expected_sha256}, found {found}: the file was damaged or changed. "
            "Restore it from a copy, or make it again."
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _damaged(path, "safetensors", str(error)) from error
    if path.suffix in PICKLES:
        content = read_pickle(
            path,
            "Ask its authors for plain weights, or convert it where you trust it: "
            "safetensors.torch.save_file(state_dict, 'weights.safetensors').",
        )
        return _tensors_in(content, path)
    raise UserError(f"{path}: expected a file of weights ending in .safetensors, {', '.join(PICKLES)}.")


def read_shapes(path: Path) -> dict[str, Tensor]:
    """Return what :func:`read_weights` does on the meta device: names and shapes without values; of a file that did not change read once.

    Raises:
        UserError: as :func:`read_weights`.
    """
    return dict(_shapes(path, path.stat().st_mtime_ns if path.exists() else 0))


@lru_cache
def _shapes(path: Path, modified: int) -> dict[str, Tensor]:
    return {name: tensor.to("meta") for name, tensor in read_weights(path).items()}


def without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a classifier without what training scripts put before all names, such as ``module.``."""
    for before in ("module.", "encoder.", "backbone."):
        if all(name.startswith(before) for name in tensors):
            return without_prefix({name.removeprefix(before): tensor for name, tensor in tensors.items()})
    return dict(tensors)


def pooled_norm(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether weights of a ViT have their last norm behind the pooling, as fine-tuning in MAE's way puts it."""
    return "fc_norm.weight" in tensors and "norm.weight" not in tensors


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_pickle(path: Path, remedy: str) -> Any:
    """Return the plain data in a file that torch.save wrote, on the CPU.

    Raises:
        UserError: if it is damaged, or would run code; ``remedy`` says what to do then.
    """
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols; what matters is raised
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's unpickler lets through whatever a damaged pickle trips over
            needed = re.search(r"GLOBAL (\S+)", str(error))
            if needed is None:
                raise _damaged(path, "a checkpoint of torch.save", _last_line(error)) from error
            raise UserError(
                f"{path}: expected tensors and plain values, found a pickle that needs {needed[1]}, which could run "
                f"code and is not loaded. {remedy}"
            ) from error


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the weights in what a checkpoint holds, bare or under ``model`` or ``state_dict``."""
    weights = content
    if isinstance(content, Mapping):
        weights = next((content[key] for key in WRAPPINGS if isinstance(content.get(key), Mapping)), content)
    if (
        isinstance(weights, Mapping)
        and weights
        and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in weights.items())
    ):
        return dict(weights)
    found = f"the keys {listed(map(str, weights), 8)}" if isinstance(weights, Mapping) else type(weights).__name__
    raise UserError(
        f"{path}: expected named tensors, bare or under {' or '.join(WRAPPINGS)}, found {found}. "
        "Save the model's state_dict() and give that."
    )


def _damaged(path: Path, expected: str, found: str) -> UserError:
    size = path.stat().st_size
    return UserError(
        f"{path}: expected {expected}, found {size} bytes that cannot be read as that ({found}). The file is truncated "
        "or something else; fetch or save it again."
    )


def _last_line(error: Exception) -> str:
    """Return the part of torch's long message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "torch.load" not in line]
    return (lines[-1] if lines else type(error).__name__)[:200]
