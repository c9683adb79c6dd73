"""Snapshots: encoders saved during pre-training, in the same format as the final encoder."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from lutbench.errors import UserError
from lutbench.files import DamagedError, read_sealed
from lutbench.finite import check_finite
from lutbench.models.encoders import export_encoder
from lutbench.models.export import Export
from lutbench.models.weight_files import sha256_of
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.shares import at_share
from lutbench.run import Run
from lutbench.train.processes import accelerator


def snapshot_steps(recipe: PretrainRecipe, steps: int) -> dict[int, float]:
    """Return the optimiser steps (of ``steps``) after which a snapshot is taken, each with its share of the run.

    Raises:
        UserError: if two shares, including the start and the end, fall on the same step.
    """
    found: dict[int, float] = {0: 0.0}
    for share in (*(share for share in recipe.snapshots if share), 1.0):
        step = round(share * steps)
        if step in found:
            raise UserError(
                f"snapshots: the shares {found[step]:g} and {share:g} of {steps} optimiser steps are both step {step}, but every snapshot "
                "needs a different step (0 is the start, 1 the end). Remove one, or train longer."
            )
        found[step] = share
    return {step: share for step, share in found.items() if share in recipe.snapshots}


def keep_snapshot(run: Run[PretrainRecipe], share: float, encoders: Mapping[str, nn.Module]) -> None:
    """Write a snapshot of the run's ``encoders``, by name, as exports such as ``encoder-at-0.1``; call it on every process.

    A run that resumes from an earlier step writes the same snapshot again.

    Raises:
        UserError: on every process, if a weight is not finite; on a full disk.
    """
    for export in run.recipe.snapshot_exports:
        name, encoder = at_share(export, share), encoders[export]
        check_finite(encoder.state_dict(), f"{run.name}, {name}")
        if accelerator().is_main_process:
            export_encoder(encoder, run.recipe.encoder, run.folder, name=name)


def kept_snapshots(run: Run[PretrainRecipe], snapshots: Mapping[int, float], done: int) -> dict[str, str]:
    """Return the sha256, by name, of the snapshots that a run has saved after ``done`` steps; reads every file.

    Raises:
        UserError: if one is missing or was changed, as it cannot be made again later.
    """
    found: dict[str, str] = {}
    for step, share in snapshots.items():
        for export in run.recipe.snapshot_exports:
            name = at_share(export, share)
            weights = run.folder / f"{name}.safetensors"
            if step > done:
                continue
            try:
                found[name] = _sha256(weights)
            except (FileNotFoundError, DamagedError) as error:
                why = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
                raise UserError(
                    f"{weights}: {run.name} has reached step {done} and should have saved this at step {step}, {share:g} of the run: {why}. It "
                    f"cannot be made afterwards. Remove it from the run's snapshots, or remove {run.checkpoints} to start from the beginning."
                ) from error
    return found


def _sha256(weights: Path) -> str:
    """Return the sha256 of weights that are those of the export beside them; raises FileNotFoundError or DamagedError."""
    expected, found = read_sealed(weights.with_suffix(".json"), Export, "").sha256, sha256_of(weights)
    if found != expected:
        raise DamagedError(f"expected sha256 {expected[:12]}, found {found[:12]}")
    return found
