"""Snapshots are the encoder as it was on the way, whole or not there, however often the run was stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from snapshot_runs import NAMES, SUITE, killed, snapshots_of, trained
from toy_runs import in_processes, the_run, write_images

from lutbench.checkpoint_names import newest_step
from lutbench.errors import UserError
from lutbench.locks import lock
from lutbench.models import encoders, weights
from lutbench.models.export import export_of
from lutbench.run import Run
from pretrain import snapshots, train
from pretrain.student import build_student

LUT = "pretrain.lut"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path)
    (tmp_path / "toy.toml").write_text(SUITE)
    return tmp_path


def test_snapshots_are_what_checkpoints_hold_at_their_steps_and_the_first_is_the_initial_encoder(folder: Path) -> None:
    run = the_run(folder, "here", f"{LUT}.save_every=11")
    trained(run)
    [file] = run.checkpoints.glob("step-00000011/tensors.safetensors")
    held, initial = load_file(file), build_student(run.recipe, run.seed).encoder.state_dict()
    for name, expected in (
        (
            "encoder-at-0.55",
            {k.removeprefix("student.encoder."): t for k, t in held.items() if "student.encoder." in k},
        ),
        (
            "teacher-at-0.55",
            {k.removeprefix("teacher.encoder."): t for k, t in held.items() if "teacher.encoder." in k},
        ),
        ("encoder-at-0", initial),
        ("teacher-at-0", initial),
    ):
        found = load_file(run.folder / f"{name}.safetensors")
        assert found.keys() == expected.keys() != set()
        assert all(torch.equal(found[key], expected[key]) for key in found), name
        assert export_of(run.folder / f"{name}.safetensors") is not None
    assert len({sha256 for name, sha256 in snapshots_of(run).items() if name.endswith("safetensors")}) == len(NAMES) - 1
    listed = json.loads((run.folder / "finished.json").read_text())["files"]
    assert {name: sha256 for name, sha256 in listed.items() if "-at-" in name} == snapshots_of(run)
    assert {Path(name).stem for name in snapshots_of(run)} == set(NAMES)


def test_a_run_that_keeps_snapshots_is_the_run_that_keeps_none(folder: Path) -> None:
    without = the_run(folder, "without", f"{LUT}.snapshots=[]", f"{LUT}.snapshot_teacher=false")
    run = the_run(folder, "with")
    assert run.identity == without.identity
    assert trained(run) == trained(without)
    assert not snapshots_of(without)


def test_without_asking_no_teacher_is_kept(folder: Path) -> None:
    run = the_run(folder, "here", f"{LUT}.snapshot_teacher=false")
    trained(run)
    assert {Path(name).stem for name in snapshots_of(run)} == {name for name in NAMES if name.startswith("encoder")}


def after_the_second(patched: pytest.MonkeyPatch, kill: Callable[[], None]) -> None:
    """Step 5 lies before the checkpoint of step 8."""

    def keep(run: Run, share: float, found: Any) -> None:
        snapshots.keep_snapshot(run, share, found)
        if share == 0.25:
            kill()

    patched.setattr(train, "keep_snapshot", keep)


def after_the_third(patched: pytest.MonkeyPatch, kill: Callable[[], None]) -> None:
    """Step 11 lies behind the checkpoint of step 8, and before that of 16."""

    def keep(run: Run, share: float, found: Any) -> None:
        snapshots.keep_snapshot(run, share, found)
        if share == 0.55:
            kill()

    patched.setattr(train, "keep_snapshot", keep)


def between_weights_and_description(patched: pytest.MonkeyPatch, kill: Callable[[], None]) -> None:
    write = encoders.write_sealed

    def write_sealed(path: Path, values: Any) -> None:
        if path.name == "teacher-at-0.55.json":
            kill()
        write(path, values)

    patched.setattr(encoders, "write_sealed", write_sealed)


def in_the_middle_of_the_weights(patched: pytest.MonkeyPatch, kill: Callable[[], None]) -> None:
    save = weights.save_file

    def save_file(tensors: Any, path: Path) -> None:
        save(tensors, path)
        if "encoder-at-0.55" in path.name:
            path.write_bytes(path.read_bytes()[:100])
            kill()

    patched.setattr(weights, "save_file", save_file)


@pytest.mark.parametrize(
    ("where", "start"),
    [
        (after_the_second, None),
        (after_the_third, 8),
        (between_weights_and_description, 8),
        (in_the_middle_of_the_weights, 8),
    ],
)
def test_a_run_killed_around_a_snapshot_goes_on_to_the_same_bits_and_has_each_once(
    folder: Path, where: Callable[..., None], start: int | None
) -> None:
    whole = the_run(folder, "whole")
    expected = trained(whole)
    run = the_run(folder, "killed")
    killed(run, where)
    assert newest_step(run.checkpoints) == start
    if where is in_the_middle_of_the_weights:
        assert not (run.folder / "encoder-at-0.55.safetensors").exists()
        assert list(run.folder.glob(".encoder-at-0.55.safetensors.partial-*"))
    earlier = {path: path.stat().st_mtime_ns for path in run.folder.glob("*-at-0.25.*")} if start else {}
    train.check(run)
    with lock(run):
        assert trained(run) == expected
    assert snapshots_of(run) == snapshots_of(whole)
    assert len(snapshots_of(run)) == 2 * len(NAMES)
    assert not list(run.folder.glob(".*partial*"))
    assert all(path.stat().st_mtime_ns == then for path, then in earlier.items()), "those behind are not made again"
    record = json.loads(next(run.workspace.results.rglob("seed0.json")).read_text())
    assert record["extra"]["snapshots"] == {name: snapshots_of(whole)[f"{name}.safetensors"] for name in NAMES}


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        (lambda folder: (folder / "encoder-at-0.25.safetensors").unlink(), "it is missing"),
        (lambda folder: (folder / "encoder-at-0.25.json").unlink(), "it is missing"),
        (lambda folder: spoil(folder / "encoder-at-0.25.safetensors"), "expected sha256"),
    ],
)
def test_a_snapshot_that_was_lost_stops_a_run_before_it_goes_on_and_says_what_to_do(
    folder: Path, spoilt: Callable[[Path], None], told: str
) -> None:
    run = the_run(folder)
    killed(run, after_the_third)
    spoilt(run.folder)
    for begin in (train.check, trained):
        with pytest.raises(
            UserError,
            match=rf"encoder-at-0.25.*has reached step 8 and .* at step 5, 0.25 of the run: .*{told}.*Remove it from",
        ) as error:
            begin(run)
    assert str(run.checkpoints) in str(error.value)
    assert trained(the_run(folder, "here", f"{LUT}.snapshots=[0, 0.55]"))["weights"]


def test_snapshots_asked_for_when_their_steps_are_past_are_refused(folder: Path) -> None:
    killed(the_run(folder, "here", f"{LUT}.snapshots=[0.55]"), after_the_third)
    with pytest.raises(
        UserError, match=r"encoder-at-0.safetensors: .* has reached step 8 and should have saved this at step 0"
    ):
        train.check(the_run(folder))
    later = the_run(folder, "here", f"{LUT}.snapshots=[0.55, 0.75]")
    train.check(later)
    trained(later)
    assert {Path(name).stem for name in snapshots_of(later)} == {
        f"{e}-at-{at}" for e in ("encoder", "teacher") for at in (0.55, 0.75)
    }


def test_of_two_processes_the_first_alone_writes(folder: Path) -> None:
    def written() -> list[str]:
        names = []

        def export(*arguments: Any, name: str = "encoder", **options: Any) -> str:
            names.append(name)
            return encoders.export_encoder(*arguments, name=name, **options)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(snapshots, "export_encoder", export)
            run = the_run(folder, "two", f"{LUT}.batch=10")
            run.start()
            train.perform(run)
        return names

    assert in_processes(written, 2) == [NAMES, []]
    assert len(snapshots_of(the_run(folder, "two", f"{LUT}.batch=10"))) == 2 * len(NAMES)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("snapshots=[0.25, 0.26]", "0.25 and 0.26 of 20 optimiser steps are both step 5"),
        ("snapshots=[0.01]", "0 and 0.01 of 20 optimiser steps are both step 0"),
        ("snapshots=[0.99]", "0.99 and 1 of 20 optimiser steps are both step 20"),
    ],
)
def test_shares_that_fall_on_one_step_are_refused_before_compute(folder: Path, change: str, told: str) -> None:
    run = the_run(folder, "here", f"{LUT}.{change}")
    with pytest.raises(UserError, match=told):
        train.check(run)
    assert not run.workspace.runs.exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["lut.snapshots=[1]"], "pretrain.lut.snapshots: expected shares below 1: the final encoder"),
        (["lut.snapshots=[-0.1]"], "expected shares of the run"),
        (["lut.snapshots=[0.5, 0.25]"], "expected different shares in ascending order"),
        (["lut.snapshots=[0.5, 0.5]"], "expected different shares in ascending order"),
        (["lut.snapshots=[0.33333333]"], "at most six digits"),
    ],
)
def test_what_cannot_be_kept_is_refused(folder: Path, changes: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        the_run(folder, "here", *(f"pretrain.{change}" for change in changes))


def test_a_run_without_a_teacher_keeps_none_whatever_all_runs_are_told(folder: Path) -> None:
    run = the_run(folder, "here", "defaults.pretrain.snapshot_teacher=true", name="pretrain/mae/seed0")
    trained(run)
    assert {Path(name).stem for name in snapshots_of(run)} == {"encoder-at-0.25"}


@pytest.mark.parametrize("name", ["lut", "mae"])
def test_the_plan_counts_the_disk_that_snapshots_take(folder: Path, name: str) -> None:
    run = the_run(folder, name=f"pretrain/{name}/seed0")
    trained(run)
    held = [load_file(path) for path in run.folder.glob("*.safetensors")]
    assert len(held) == (9 if name == "lut" else 3)
    assert train.cost(run, 3).exported == sum(tensor.numel() for tensors in held for tensor in tensors.values())
