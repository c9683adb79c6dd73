"""The weights that a run starts from: those of another run, a file, or none."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutbench.errors import UserError, listed
from lutbench.models.export import export_of
from lutbench.run_files import read_finished
from lutbench.run_status import RunState
from lutbench.smoke.mark import refuse_smoke_weights

if TYPE_CHECKING:
    from lutbench.run import Run


class NotKeptError(UserError):
    """A run did not keep such weights: its version could not, or its settings did not ask for them."""


FIRST = "First run"
"""Begins the last sentence of a message about a run that lacks another one."""

BESIDE = ("teacher", "decoder")
"""The NAMEs of the ``NAME.safetensors`` files that a pre-training keeps beside its encoder (the checkpoint in its record) and its
snapshots, such as ``encoder-at-0.1``."""


def weights_of(run: "Run[Any]") -> Path | None:
    """Return the file or folder of weights that a run starts from, if there is one.

    Raises:
        UserError: if the user's file is absent or from a smoke run, or the run it depends on has not finished.
    """
    source, part = run.recipe.source, run.planned.kind.starts_from
    if source is None:
        return None
    if run.needs is not None:
        return run.needs.finished_in / f"{source.export_name}.safetensors"
    if source.kind != "checkpoint":
        return None
    weights = Path(source.path).expanduser()
    if not weights.exists():
        table = "classifier" if part == "classifier" else "method"
        raise UserError(
            f"{table}.{run.planned.method}.checkpoint: there is no file or folder {weights.absolute()}. Relative paths start from the "
            "current folder of the command."
        )
    if not run.planned.smoke:
        refuse_smoke_weights(weights)
    return weights


def weights_inputs(run: "Run[Any]") -> dict[str, Any]:
    """Return what identifies the weights that a run starts from: their hash, and how images are prepared for them.

    Raises:
        UserError: if a file of weights is absent, or the run it depends on has not finished, or left no such weights.
    """
    part = run.planned.kind.starts_from
    if run.needs is not None:
        sha256 = needed_weights(run, run.needs)
        return {part: {"run": run.needs.identity, "sha256": sha256}}
    inputs: dict[str, Any] = {}
    if (weights := run.weights) is not None:
        inputs[part] = {"sha256": run.hash_of(weights)}
        if part == "classifier" and (export := export_of(weights, run.hash_of)):
            inputs[part]["export"] = export.content
    elif part == "classifier":
        inputs[part] = {}  # timm's, by the name in the recipe
    if prepared := run.preprocessing.unlike_imagenets(run.recipe.prepared_by):
        inputs[part] = {**inputs.get(part, {}), "preprocessing": prepared}
    return inputs


def needed_weights(run: "Run[Any]", needs: "Run[Any]") -> str:
    """Return the sha256 of the encoder or classifier that a run takes from the run it ``needs``.

    Raises:
        UserError: if that one has not finished, with the command to run, or did not keep these weights.
    """
    status, other = needs.status(), needs.planned
    if status.state is not RunState.FINISHED:
        uses = "evaluates the classifier" if run.planned.kind.starts_from == "classifier" else "starts from the encoder"
        raise UserError(
            f"{run.name} {uses} of {other.name}, which is {status}. "
            f"{FIRST}: nox -s {other.stage} -- {run.command} (or: lutbench run {run.command} --stage {other.stage})."
        )
    return weights_made(needs, run.recipe.source.export_name)


def weights_made(run: "Run[Any]", name: str) -> str:
    """Return the sha256 of the ``NAME.safetensors`` that a finished run left.

    Raises:
        NotKeptError: if its version did not keep such weights, or it has no such snapshot.
        UserError: if it has no weights, or they are damaged.
    """
    folder = run.finished_in
    finished = read_finished(folder, run.identity)
    export, _, share = name.partition("-at-")
    made = finished.files.get(f"{name}.safetensors") if share or name in BESIDE else finished.checkpoint
    if made is None:
        if share:
            kept = [file.removesuffix(".safetensors") for file in finished.files if file.startswith(f"{export}-at-")]
            raise NotKeptError(
                f"{run.name} finished without keeping {name}, its snapshot at that share of the run. Snapshots in {folder}: "
                f"{listed([file for file in kept if not file.endswith('.json')]) or 'none'}. To get it, repeat the run: "
                f"lutbench run {run.command} --again {run.name}."
            )
        if name in BESIDE:
            raise NotKeptError(
                f"{folder}: {run.name} has no {name}: it was made by an earlier version that did not keep it. To get it, repeat the run: "
                f"lutbench run {run.command} --again {run.name}."
            )
        raise UserError(f"{folder}: the run finished without weights. Remove the folder, and repeat the run.")
    return made
