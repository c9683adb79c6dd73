"""Checkpoints: all tensors in one safetensors file, and a JSON file that describes it and holds its hash. No pickles.

A checkpoint is a folder that is written under a temporary name and then renamed, so it is complete or absent. A run resumes from the
newest intact one.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lutbench.checkpoint_names import KEEP, step_of
from lutbench.errors import UserError, listed
from lutbench.files import DamagedError, read_sealed, whole_folder, write_sealed
from lutbench.finite import not_finite, require_finite
from lutbench.models.weight_files import sha256_of
from lutbench.train.processes import accelerator
from lutbench.train.sharding import load, load_optimizer, whole

T = TypeVar("T")

TENSORS, SEAL = "tensors.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to resume after ``step`` optimiser steps."""

    step: int
    tensors: dict[str, Tensor]
    """What :func:`finite_state` returned."""
    extra_state: dict[str, Any]
    """Plain values that the loop needs to resume, and that do not follow from the step."""

    def restore(self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
        """Load everything back, strictly. The optimiser's settings are the recipe's, as the loop has them."""
        for name, module in modules.items():
            load(module, self._under(name))
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self._under("optimizer").items():
            parameter, entry = key.split(".", 1)
            state.setdefault(int(parameter), {})[entry] = tensor
        load_optimizer(optimizer, state)

    def _under(self, name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}."): t for key, t in self.tensors.items() if key.startswith(f"{name}.")}


def finite_state(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, where: str) -> dict[str, Tensor]:
    """Return the tensors of all modules by ``MODULE.NAME``, and of the optimiser by ``optimizer.PARAMETER.ENTRY``.

    Call this on every process, so that all stop if one must. Sharded tensors are gathered, one by one, to the memory of the first
    process, and are missing on the others.

    Raises:
        UserError: which begins with ``where``, if one is not finite.
    """
    named = {f"{name}.{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()}
    for parameter, entries in optimizer.state_dict()["state"].items():
        named |= {f"optimizer.{parameter}.{entry}": t for entry, t in entries.items()}
    tensors, wrong = dict[str, Tensor](), list[str]()
    for name, tensor in named.items():
        found = whole(tensor)
        wrong += not_finite({name: found})
        if found is tensor:
            tensors[name] = tensor
        elif accelerator().is_main_process:
            tensors[name] = found.cpu()
    require_finite(wrong, len(named), where)
    return tensors


def save_checkpoint(folder: Path, identity: str, checkpoint: Checkpoint) -> None:
    """Save under ``folder`` as ``step-NNNNNNNN``, replacing a damaged one of that step, and remove all but the last few.

    Raises:
        UserError: on a full disk; earlier checkpoints are untouched.
    """
    with whole_folder(folder / f"step-{checkpoint.step:08d}") as partial:
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in checkpoint.tensors.items()}
        save_file(tensors, partial / TENSORS)
        write_seal(partial / SEAL, partial / TENSORS, identity, checkpoint.step, checkpoint.extra_state)
    keep_last(folder, checkpoint.step)


def keep_last(folder: Path, step: int) -> None:
    """Remove all checkpoints but the last few up to ``step``, which was saved just now.

    Later ones are damaged: else the run would have resumed from them.
    """
    steps = {path: found for path in folder.iterdir() if (found := step_of(path)) is not None}
    kept = sorted({found for found in steps.values() if found <= step})[-KEEP:]
    for path in (path for path, found in steps.items() if found not in kept):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def newest_checkpoint(
    folder: Path, identity: str, steps: int, restore: Callable[[Checkpoint], None] = lambda _: None
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest intact checkpoint of a run of ``steps`` steps, and a line about each newer, damaged one.

    Raises:
        UserError: if a checkpoint belongs to another recipe, or if there are checkpoints and all are damaged.
    """

    def read(path: Path) -> Checkpoint:
        checkpoint = _read(path, identity, steps)
        restore(checkpoint)
        return checkpoint

    return newest_whole(folder, [path for path in folder.glob("step-*") if path.is_dir()], read)


def newest_whole(folder: Path, paths: Iterable[Path], read: Callable[[Path], T]) -> tuple[T | None, list[str]]:
    """Return what ``read`` returns for the newest intact checkpoint among ``paths``, and a line about each newer, damaged one.

    Paths that are not named like a checkpoint are ignored.

    Raises:
        UserError: if ``read`` does, or if there are checkpoints and all are damaged.
    """
    damage: list[str] = []
    steps = {path: step for path in paths if (step := step_of(path)) is not None}
    for path in sorted(steps, key=steps.__getitem__, reverse=True):
        try:
            return read(path), damage
        except (OSError, DamagedError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            damage.append(f"{path.name} is damaged ({str(error).rstrip('. ')}) and is skipped")
    if damage:
        raise UserError(
            f"No checkpoint in {folder} is intact: {'; '.join(damage)}. Restore one from a backup, "
            "or remove the folder to start the run from the beginning."
        )
    return None, damage


def _read(path: Path, identity: str, steps: int) -> Checkpoint:
    seal = read_seal(path / SEAL, path / TENSORS, path, identity, steps)
    tensors = load_file(path / TENSORS)
    check_usable(tensors)
    return Checkpoint(seal.step, tensors, seal.extra_state.model_dump(exclude_unset=True))


def check_usable(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a tensor of a checkpoint is not finite: the run would end again."""
    if wrong := not_finite(tensors):
        raise ValueError(f"not finite: {listed(wrong, 3)}")


class _Closed(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class CurveState(_Closed):
    """See :class:`lutbench.train.curve.CurveRecorder`."""

    losses: list[str] = []
    parts: list[list[float]] = []


class ExtraState(_Closed):
    """The values that training loops keep; each loop keeps some of them."""

    digest: float = 0.0
    """Digest of the initial weights, see :func:`lutbench.train.schedule.weights_digest`."""
    losses: dict[str, float] = {}
    seconds: NonNegativeFloat = 0.0
    waited: NonNegativeFloat = 0.0
    skipped: NonNegativeInt = 0
    unread: list[list[float]] = []
    """See :class:`lutbench.train.logger.TrainingLogger`, like the four before."""
    knn: list[list[float]] = []
    """For a pre-training that is evaluated during training: epoch, top-1 in percent, and seconds of each evaluation."""
    curve: CurveState | None = None
    """The loss curve so far; None in checkpoints of earlier versions."""


class Seal(_Closed):
    """The JSON file of a checkpoint."""

    identity: str
    """Identity of the run."""
    step: PositiveInt
    sha256: str
    """sha256 of the tensors file."""
    extra_state: ExtraState = Field(alias="facts")
    param_groups: Any = None
    """The optimiser's settings in checkpoints of earlier versions; now they follow from the recipe and the step."""


def write_seal(path: Path, tensors: Path, identity: str, step: int, extra_state: Mapping[str, Any]) -> None:
    """Write the JSON file with the hash of the file ``tensors``, and with its own hash."""
    said = {"identity": identity, "step": step, "sha256": sha256_of(tensors), "facts": dict(extra_state)}
    write_sealed(path, said)


def read_seal(path: Path, tensors: Path, checkpoint: Path, identity: str, steps: int) -> Seal:
    """Read the JSON file at ``path`` and verify the file ``tensors``, both of ``checkpoint`` of a run of ``steps`` steps.

    Raises:
        UserError: if the checkpoint belongs to another recipe.
        OSError, DamagedError, ValueError: if it is damaged.
    """
    seal = read_sealed(path, Seal, "")
    if seal.identity != identity:
        raise UserError(
            f"{checkpoint} belongs to another recipe: expected identity {identity[:12]}, found {seal.identity[:12]}. "
            "Move it away, or run the recipe it belongs to."
        )
    if seal.step != step_of(checkpoint) or seal.step > steps:
        raise ValueError(f"it states step {seal.step} of {steps}, which does not fit its name or the run")
    if (found := sha256_of(tensors)) != seal.sha256:
        raise ValueError(f"expected sha256 {seal.sha256[:12]}, found {found[:12]}")
    return seal
