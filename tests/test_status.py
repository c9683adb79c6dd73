"""What ``status`` shows on a terminal, which may be narrow, and in a file."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from toy_runs import SUITE, performed, toy_run, write_images

from lutbench.changes import changes
from lutbench.errors import UserError
from lutbench.files import content_sha256
from lutbench.recipes.loading import load_suite
from lutbench.run import open_run
from lutbench.run_status import RunState
from lutbench.stages import run_suite
from lutbench.status import show_status
from lutbench.workspace import Workspace

NAME = "downstream/task/scratch/seed0"


def shown(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **size: bool | int) -> str:
    """What is printed about a suite of one run that was not started, whose folder has a long name."""
    write_images(folder, train=1, val=1)
    (folder / "toy.toml").write_text(f'{SUITE}kind = "finetune"')
    console = Console(soft_wrap=True, highlight=False, markup=False, **size)  # type: ignore[arg-type]
    monkeypatch.setattr("lutbench.status.console", console)
    workspace = Workspace(data=folder, runs=folder / ("r" * 60), results=folder / "results")
    show_status(load_suite(str(folder / "toy.toml")), workspace)
    return capsys.readouterr().out


@pytest.mark.parametrize("size", [{"force_terminal": False, "width": 80}, {"force_terminal": True, "width": 500}])
def test_a_file_and_a_wide_terminal_have_a_run_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: dict[str, int]
) -> None:
    title, line = shown(tmp_path, monkeypatch, capsys, **size).splitlines()
    assert title == "Suite toy"
    name, state, folder = line.split()
    assert (name, state) == (NAME, "missing")
    assert folder.startswith(f"{tmp_path}/rrr")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda values: values.clear(), "checkpoint: Field required"),
        (lambda values: values.update(checkpoint="a" * 64), "its hash does not match its seal"),
        (lambda values: values.update(identity="a" * 64), "its hash does not match its seal"),
        (lambda values: resealed(values, identity="a" * 64), "it belongs to another run, aaaaaaaaaaaa"),
        (lambda values: resealed(values, checkpoint="../x"), "checkpoint: String should match"),
        (lambda values: resealed(values, note="\x1b[31m"), "the control character"),
        (lambda values: values.pop("seal"), "it has no seal"),
        (lambda values: resealed(values, checkpoint="a" * 64), "there is no intact record of it"),
        (None, "expected JSON"),
    ],
)
def test_a_run_whose_end_is_not_as_it_was_written_is_not_finished_and_the_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], object] | None, told: str
) -> None:
    write_images(tmp_path, train=2, val=1)
    run = toy_run(tmp_path, kind="knn", neighbours=1)
    performed(run)
    assert run.status().state is RunState.FINISHED
    finished = run.folder / "finished.json"
    values = json.loads(finished.read_text())
    if change:
        change(values)
    finished.write_text(json.dumps(values) if change else "{")
    assert run.status().state is RunState.MISSING
    suite, workspace = load_suite(str(tmp_path / "toy.toml")), run.workspace
    show_status(suite, workspace)
    run_suite(suite, [], [], workspace)
    shown, ran = capsys.readouterr().out.split(f"{NAME}: ", 1)
    assert str(finished) in shown
    assert told in shown
    assert told in ran
    assert run.status().state is RunState.FINISHED, "it was run again"
    assert json.loads(finished.read_text())["identity"] == run.identity


def resealed(values: dict[str, Any], **changes: Any) -> None:
    del values["seal"]
    values.update(changes)
    values["seal"] = content_sha256(values)


def test_a_run_that_finished_before_there_were_seals_is_finished(tmp_path: Path) -> None:
    write_images(tmp_path, train=2, val=1)
    run = toy_run(tmp_path, kind="knn", neighbours=1)
    finished = run.folder / "finished.json"
    for old in ({"checkpoint": None}, {"encoder": None}):
        finished.write_text(json.dumps(old))
        assert run.status().state is RunState.MISSING, "nothing says what it measured"
        assert run.status().damage[0].startswith(f"{finished} says that the run has finished, but there is no intact")
    performed(run)
    for copy in (run.folder, run.workspace.results):  # either is enough
        finished.write_text(json.dumps(old))
        assert run.status().state is RunState.FINISHED
        finished.write_text(json.dumps({"encoder": "b" * 64}))
        assert run.status().state is RunState.MISSING, "the record is of other weights"
        shutil.rmtree(copy / "records")
    finished.write_text(json.dumps(old))
    assert run.status().state is RunState.MISSING


def test_a_stale_run_whose_description_is_damaged_is_passed_over_by_name(tmp_path: Path) -> None:
    write_images(tmp_path, train=2, val=1)
    old = toy_run(tmp_path, kind="knn", neighbours=1)
    performed(old)
    new = toy_run(tmp_path, kind="knn", neighbours=2)
    assert "recipe.neighbours changed from 1 to 2" in str(new.status())
    description = old.folder / "run.json"
    description.write_text(description.read_text().replace('"neighbours": 1', '"neighbours": 7'))
    status = new.status()
    assert status.state is RunState.MISSING
    assert status.damage[0].startswith(f"{description}: damaged or changed since it was written")


def test_the_record_of_another_run_in_a_runs_folder_is_not_brought_back(tmp_path: Path) -> None:
    write_images(tmp_path, train=2, val=1)
    runs = [toy_run(tmp_path, kind="knn", neighbours=k) for k in (1, 2)]
    for run in runs:
        performed(run)
    for folder in ("records", "finished.json"):
        assert (runs[0].folder / folder).exists()
    shutil.rmtree(runs[1].folder / "records")
    shutil.copytree(runs[0].folder / "records", runs[1].folder / "records")
    shutil.rmtree(runs[1].workspace.results)
    assert runs[1].status().state is RunState.STALE
    assert "there is no intact record" in runs[1].status().damage[0]
    runs[1].restore_record()
    assert not runs[1].workspace.results.exists()


@pytest.mark.parametrize("damage", ["removed", "edited", "seal", "folder"])
@pytest.mark.parametrize("ending", [".json", ".npz"])
def test_what_is_damaged_in_the_results_is_mended_from_the_runs_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str, damage: str
) -> None:
    write_images(tmp_path, train=2, val=1)
    run = toy_run(tmp_path, kind="knn", neighbours=1)
    performed(run)
    [file] = run.workspace.results.rglob(f"*{ending}")
    whole = file.read_bytes()
    if damage == "seal" and ending == ".json":  # the number in the tables, without the seal that it does not fit
        values = json.loads(whole)
        del values["seal"]
        values["measurements"][0]["value"] = 99.0
        file.write_text(json.dumps(values))
    elif damage == "edited":
        file.write_bytes(whole[:-20] + bytes(20))
    else:
        file.unlink()
        if damage == "folder":
            file.mkdir()
    suite = load_suite(str(tmp_path / "toy.toml"))
    show_status(suite, run.workspace)
    shown = capsys.readouterr().out
    assert f"{NAME}  finished" in shown
    assert "99.0" not in shown
    if ending == ".json" and damage in ("edited", "seal"):
        assert str(file) in shown
        assert f"repeat run {NAME}." in shown or damage == "edited"
    if damage == "folder":
        file.rmdir()
    run_suite(suite, [], [], run.workspace)
    assert "finished already" in capsys.readouterr().out
    assert file.read_bytes() == whole


def test_a_run_has_no_folder_outside_that_of_the_runs(tmp_path: Path) -> None:
    write_images(tmp_path, train=2, val=1)
    run = toy_run(tmp_path, kind="knn", neighbours=1)
    for change in ({"suite": "../x"}, {"task": "../../x"}, {"method": "/x"}):
        with pytest.raises(UserError, match="not a valid path below"):
            _ = replace(run, planned=replace(run.planned, **change)).home


def test_a_narrow_terminal_has_the_folder_below_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, line, below = shown(tmp_path, monkeypatch, capsys, force_terminal=True, width=80).splitlines()
    assert line == f"{NAME}  missing"
    assert below.startswith(f"    {tmp_path}/rrr")


def lines(suite: str, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """What ``status`` prints of each run, in its columns by name."""
    capsys.readouterr()
    show_status(load_suite(suite), workspace)
    shown = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    return {columns[0]: columns[1:] for columns in shown if columns[0].endswith("/seed0")}


def test_a_run_whose_data_or_weights_are_not_here_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, train=2, val=1)
    suite, taken = str(tmp_path / "toy.toml"), "downstream/task/taken/seed0"
    run = toy_run(tmp_path, kind="knn", neighbours=1)
    weights = tmp_path / "own.safetensors"
    method = f'\n[method.taken]\ncheckpoint = "{weights}"\nencoder = "toy"\n'
    (tmp_path / "toy.toml").write_text((tmp_path / "toy.toml").read_text() + method)
    fresh = Workspace(tmp_path, tmp_path / "none", tmp_path / "results")
    assert lines(suite, fresh, capsys)[taken][0] == "missing", "nothing was run there"
    performed(run)
    assert lines(suite, run.workspace, capsys)[NAME][0] == "finished"
    assert lines(suite, run.workspace, capsys)[taken] == ["unknown", "weights not found"]
    weights.write_bytes(b"not weights")
    assert lines(suite, run.workspace, capsys)[taken][0] == "missing", "any file has a hash"
    (tmp_path / "toy").rename(tmp_path / "elsewhere")
    workspace = Workspace(tmp_path, run.workspace.runs, run.workspace.results)
    assert lines(suite, workspace, capsys)[NAME] == ["unknown", "data not found"]
    (tmp_path / "toy").mkdir()
    workspace = Workspace(tmp_path, run.workspace.runs, run.workspace.results)
    assert lines(suite, workspace, capsys)[NAME] == ["unknown", "data not as expected"]


def test_what_starts_from_a_run_whose_data_are_not_here_is_unknown_too(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(chain, tmp_path / "copy"))
    (folder / "toy/train").rename(folder / "toy/gone")
    workspace = Workspace(folder, folder / "runs", folder / "results")
    shown = lines(str(folder / "toy.toml"), workspace, capsys)
    for run in ("pretrain/lut", "downstream/tuned/lut", "robustness/shift/hidden/lut", "analysis/looks/lut"):
        assert shown[f"{run}/seed0"] == ["unknown", "data not as expected"]


def test_a_change_of_how_images_are_prepared_is_named_once(tmp_path: Path) -> None:
    write_images(tmp_path, train=2, val=1)
    toy_run(tmp_path, kind="knn", neighbours=1)
    (tmp_path / "own.safetensors").write_bytes(b"weights")
    suite = tmp_path / "toy.toml"
    text = suite.read_text().replace("scratch = true", f'checkpoint = "{tmp_path / "own.safetensors"}"')
    inputs = []
    for mean in ("", "mean = [0.5, 0.4, 0.3]\ncrop_pct = 0.9\n"):
        suite.write_text(text.replace("[method.scratch]\n", f"[method.scratch]\n{mean}"))
        loaded = load_suite(str(suite))
        run = open_run(loaded, loaded.run(NAME), Workspace(tmp_path, tmp_path / "runs", tmp_path / "results"))
        inputs.append(run.identity_inputs)
    assert inputs[1]["encoder"]["preprocessing"]["mean"] == [0.5, 0.4, 0.3]
    told = changes(*inputs)
    assert [line.split()[0] for line in told if "[0.5, 0.4, 0.3]" in line] == ["recipe.encoder.mean"]
    beside = {"encoder": {"preprocessing": {"mean": [0.5]}}}
    assert changes({}, beside) == ["encoder.preprocessing.mean changed from not set to [0.5]"], (
        "a file beside it says it"
    )
