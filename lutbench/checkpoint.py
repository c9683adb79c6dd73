"""Checkpoints: every tensor in one safetensors file, and a JSON that describes and seals it by hash. No pickles.

A checkpoint is a folder, written beside and renamed, so that it is whole or not there. The newest good one wins.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lutbench.errors import UserError
from lutbench.files import NotJsonError, read_json, whole_folder, write_json
from lutbench.models.weights import sha256_of

T = TypeVar("T")

KEEP = 2
"""How many checkpoints stay: the newest, and one to fall back on."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on after ``step`` optimiser steps."""

    step: int
    tensors: dict[str, Tensor]
    """Tensors of all modules under ``MODULE.`` and their own names, and of the optimiser under ``optimizer.PARAMETER.``."""
    param_groups: list[dict[str, Any]]
    """Parameter groups of the optimiser."""
    extra_state: dict[str, Any]
    """Plain values that the loop keeps: what is needed to go on, and nothing that the step determines."""

    def restore(self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
        """Load everything back, strictly."""
        for name, module in modules.items():
            module.load_state_dict(self._under(name))
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self._under("optimizer").items():
            parameter, entry = key.split(".", 1)
            state.setdefault(int(parameter), {})[entry] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": self.param_groups})

    def _under(self, name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}."): t for key, t in self.tensors.items() if key.startswith(f"{name}.")}


def save_checkpoint(
    folder: Path,
    identity: str,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    extra_state: Mapping[str, Any],
) -> None:
    """Save under ``folder`` as ``step-NNNNNNNN`` and remove all but the last few.

    Raises:
        UserError: on a full disk; earlier checkpoints are untouched.
    """
    path = folder / f"step-{step:08d}"
    if path.exists():  # written by a run that was killed right after; the bits are the same
        return
    tensors = {
        f"{name}.{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()
    }
    saved = optimizer.state_dict()
    for parameter, entries in saved["state"].items():
        tensors |= {f"optimizer.{parameter}.{entry}": tensor for entry, tensor in entries.items()}
    with whole_folder(path) as partial:
        save_file({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, partial / "tensors.safetensors")
        write_json(
            partial / "checkpoint.json",
            {
                "identity": identity,
                "step": step,
                "sha256": sha256_of(partial / "tensors.safetensors"),
                "param_groups": saved["param_groups"],
                "facts": dict(extra_state),
            },
        )
    for old in _paths(folder)[KEEP:]:
        shutil.rmtree(old)


def newest_checkpoint(folder: Path, identity: str) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint, and a line about each newer one that is damaged.

    Raises:
        UserError: if a checkpoint belongs to another recipe, or if there are checkpoints and all are damaged.
    """
    return newest_whole(folder, _paths(folder), lambda path: _read(path, identity))


def newest_whole(folder: Path, paths: Iterable[Path], read: Callable[[Path], T]) -> tuple[T | None, list[str]]:
    """Return what ``read`` makes of the first of ``paths`` in ``folder`` that is whole, and a line about each damaged one before.

    Raises:
        UserError: if ``read`` does, or if there are paths and all are damaged.
    """
    damage: list[str] = []
    for path in paths:
        try:
            return read(path), damage
        except (OSError, NotJsonError, SafetensorError, KeyError, TypeError, ValueError) as error:
            damage.append(f"{path.name} is damaged ({error}) and is passed over")
    if damage:
        raise UserError(
            f"No checkpoint in {folder} is whole: {'; '.join(damage)}. Restore one from a copy, "
            "or remove the folder to start the run from the beginning."
        )
    return None, damage


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint, by its name alone: a folder, or the JSON that seals a file."""
    whole = [path for path in folder.glob("step-*") if path.is_dir() or path.suffix == ".json"]
    return max((int(path.stem.removeprefix("step-")) for path in whole), default=None)


def _paths(folder: Path) -> list[Path]:
    """Return the checkpoints in ``folder``, the newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _read(path: Path, identity: str) -> Checkpoint:
    seal = read_seal(path / "checkpoint.json", path / "tensors.safetensors", path, identity)
    tensors = load_file(path / "tensors.safetensors")
    return Checkpoint(int(seal["step"]), tensors, seal["param_groups"], seal["facts"])


def read_seal(seal: Path, tensors: Path, checkpoint: Path, identity: str) -> dict[str, Any]:
    """Return what the JSON ``seal`` says of ``tensors``, both of ``checkpoint``.

    Raises:
        UserError: if the checkpoint belongs to another recipe.
        OSError, NotJsonError, KeyError, TypeError, ValueError: if it is damaged.
    """
    value: dict[str, Any] = read_json(seal)
    if value["identity"] != identity:
        raise UserError(
            f"{checkpoint} belongs to another recipe: expected identity {identity[:12]}, found {value['identity'][:12]}. "
            "Move it away, or run the recipe that it belongs to."
        )
    found = sha256_of(tensors)
    if found != value["sha256"]:
        raise ValueError(f"expected sha256 {value['sha256'][:12]}, found {found[:12]}")
    return value
