"""``at`` makes rows of the encoders on the way, each from its own file, and a curve of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from snapshot_runs import SUITE
from toy_runs import opened, the_run, write_images

from lutbench.errors import UserError
from lutbench.lineage import lineage
from lutbench.models.encoders import create_encoder
from lutbench.models.pretrained import encoder_of
from lutbench.plan.costs import Rates
from lutbench.plan.show import show_plan
from lutbench.recipes.suite import Study, StudyPoint
from lutbench.record import read_records
from lutbench.report.entries import entries
from lutbench.run_status import RunState
from lutbench.stages import run_suite
from lutbench.status import show_status

TASKS = """
[defaults.knn]
workers = 0
threads = 1
[defaults.analysis]
workers = 0
threads = 1
measures = ["attention"]
[downstream.near]
title = "k-NN"
kind = "knn"
data = "toy"
neighbours = 3
methods = ["lut", "lut-teacher", "drawn"]
at = [0, 0.25, 1]
[analysis.looks]
data = "toy"
methods = ["mae"]
at = [0.25]
"""

NEAR = "downstream/near"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a suite whose runs have all finished; to be read only."""
    folder = tmp_path_factory.mktemp("rows")
    write_images(folder)
    (folder / "toy.toml").write_text(SUITE + TASKS)
    run_suite(opened(folder)[0], [], [], opened(folder)[1])
    return folder


def test_rows_are_those_of_every_share_of_methods_that_a_run_makes_and_no_others(done: Path) -> None:
    suite, _ = opened(done)
    assert [run.method for run in suite.runs if run.task == "near"] == [
        *("lut", "lut-at-0", "lut-at-0.25", "lut-teacher", "lut-teacher-at-0", "lut-teacher-at-0.25", "drawn"),
    ]
    assert [run.method for run in suite.runs if run.task == "looks"] == ["mae", "mae-at-0.25", "untrained"]
    assert suite.study_rows == {
        *(("downstream", "near", f"{method}-at-{at}") for method in ("lut", "lut-teacher") for at in ("0", "0.25")),
        ("analysis", "looks", "mae-at-0.25"),
    }


def test_every_task_with_shares_has_a_curve_whose_base_is_the_end(done: Path) -> None:
    def point(share: float, ending: str) -> StudyPoint:
        rows = {("near", method): ("downstream", "near", f"{method}{ending}") for method in ("lut", "lut-teacher")}
        return StudyPoint({"at": share}, rows)

    near, looks = opened(done)[0].studies
    points = (point(0.0, "-at-0"), point(0.25, "-at-0.25"), point(1.0, ""))
    assert near == Study("at.near", "k-NN, on the way", ("at",), points, 2)
    assert (looks.name, looks.title, looks.base) == ("at.looks", "looks, on the way", 1)
    assert [of.values["at"] for of in looks.points] == [0.25, 1.0]
    assert looks.points[0].rows == {("looks", "mae"): ("analysis", "looks", "mae-at-0.25")}
    suite = opened(done)[0]
    known = {(run.stage, run.task, run.method) for run in suite.runs}
    assert all(row in known for study in suite.studies for of in study.points for row in of.rows.values())


@pytest.mark.parametrize(
    ("row", "file"),
    [
        ("lut", "encoder"),
        ("lut-at-0", "encoder-at-0"),
        ("lut-at-0.25", "encoder-at-0.25"),
        ("lut-teacher-at-0.25", "teacher-at-0.25"),
    ],
)
def test_a_row_starts_from_its_own_file_and_its_identity_says_so(done: Path, row: str, file: str) -> None:
    run = the_run(done, name=f"{NEAR}/{row}/seed0")
    pretrained = the_run(done)
    assert run.status().state is RunState.FINISHED
    assert run.weights == pretrained.folder / f"{file}.safetensors"
    expected, found = load_file(run.weights), encoder_of(run, None).state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    sha256 = json.loads((pretrained.folder / f"{file}.json").read_text())["sha256"]
    assert run.identity_inputs["encoder"] == {"run": pretrained.identity, "sha256": sha256}
    assert ("at" in run.identity_inputs["recipe"]["encoder"]) == ("-at-" in row), "of the end as before there were any"


def test_tables_have_an_entry_for_each_and_records_tell_where_it_comes_from(done: Path) -> None:
    suite, workspace = opened(done)
    records = read_records(workspace.results, "toy")
    near = {entry.method: entry for entry in entries(suite, records) if entry.task == "near"}
    assert len(near) == 7
    assert all(entry.measured is not None and not entry.stale for entry in near.values())
    first = records[f"{NEAR}/lut-at-0/seed0"]
    [made, link] = lineage(first, [workspace.results])
    assert made.facts["encoder-at-0"] == first.identity_inputs["encoder"]["sha256"]
    assert "but" not in made.facts
    assert link.name == f"toy/{NEAR}/lut-at-0/seed0"


def test_a_snapshot_of_another_run_of_that_identity_is_told(done: Path) -> None:
    _, workspace = opened(done)
    records = read_records(workspace.results, "toy")
    row, made = records[f"{NEAR}/lut-at-0/seed0"], records["pretrain/lut/seed0"]
    other = made.model_copy(update={"extra": {**made.extra, "snapshots": {"encoder-at-0": "f" * 64}}})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lutbench.lineage.record_of", lambda *_: other)
        [link, _] = lineage(row, [workspace.results])
    assert link.facts["but"] == f"its record now has other weights, {'f' * 64}: the run was repeated since then"


def test_reconstructions_are_of_the_end_alone(done: Path) -> None:
    records = read_records(opened(done)[1].results, "toy")
    kept = {
        row: [one.name for one in records[f"analysis/looks/{row}/seed0"].attachments] for row in ("mae", "mae-at-0.25")
    }
    assert "reconstructions" in kept["mae"]
    assert "reconstructions" not in kept["mae-at-0.25"]
    assert "maps" in kept["mae-at-0.25"]


def test_classifiers_of_rows_on_the_way_are_measured_where_they_are_listed(tmp_path: Path) -> None:
    tuned = """
[downstream.tuned]
kind = "finetune"
data = "toy"
methods = ["lut"]
at = [0.25]
[shifted.r]
path = "r"
[robustness.all]
tasks = ["tuned"]
sets = ["r"]
[robustness.one]
tasks = ["tuned"]
sets = ["r"]
methods = ["lut-at-0.25"]
"""
    (tmp_path / "toy.toml").write_text(SUITE + tuned)
    runs = opened(tmp_path)[0].runs
    assert [(run.task, run.method) for run in runs if run.stage == "robustness"] == [
        ("all/r", "lut"),
        ("one/r", "lut-at-0.25"),
    ]


def test_the_untrained_encoder_is_the_floor_of_frozen_tasks(done: Path) -> None:
    run = the_run(done, name=f"{NEAR}/drawn/seed0")
    assert run.status().state is RunState.FINISHED
    assert run.weights is None
    first, second = (encoder_of(run, None).state_dict()["blocks.0.attn.qkv.weight"] for _ in range(2))
    assert torch.equal(first, second), "of its seed alone"
    drawn = create_encoder(run.recipe.encoder.architecture).state_dict()["blocks.0.attn.qkv.weight"]
    assert drawn.std() == pytest.approx(float(first.std()), rel=0.1), "timm's initialisation"


# Bad input


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["near.at=[0.25, 0.3, 0.4]"], r"downstream.near.at: lut comes from pretrain.lut, which saves no snapshot at 0.3, 0.4. Its snapshots: 0, 0.25, 0.55"),
        (["near.at=[1.5]"], "downstream.near.at: expected shares of the run from 0 to 1: 0 is the start"),
        (["near.at=[-0.5]"], "expected shares of the run"),
        (["near.at=[]"], "at least 1 item"),
        (["near.at=[0.55, 0.25]"], "expected different shares in ascending order"),
        (["near.at=[1]"], "downstream.near.at: expected a share below 1"),
        (['near.methods=["drawn"]'], "a method that a pre-training run of this suite makes; found none"),
    ],
)  # fmt: skip
def test_shares_that_cannot_be_measured_are_refused(done: Path, changes: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        opened(done, "here", *(f"downstream.{change}" for change in changes))


def test_a_run_without_snapshots_is_told_with_what_it_keeps(done: Path) -> None:
    with pytest.raises(UserError, match=r"saves no snapshot at 0.25. Its snapshots: none. Add the share to snapshots"):
        opened(done, "here", "pretrain.mae.snapshots=[]")
    with pytest.raises(
        UserError, match=r"snapshots contain only the student. Set snapshot_teacher = true in .pretrain.lut."
    ):
        opened(done, "here", "pretrain.lut.snapshot_teacher=false")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('[method."lut-at-0.25"]\nscratch = true\nencoder = "toy"', "the row for lut at 0.25 of its pre-training would be named lut-at-0.25"),
        (f"[method.{'m' * 60}]\npretrain = 'lut'\n[downstream.long]\nkind = 'knn'\ndata = 'toy'\nmethods = ['{'m' * 60}']\nat = [0.25]", "is not a valid name of a row"),
    ],
)  # fmt: skip
def test_names_that_do_not_do_are_refused(tmp_path: Path, more: str, told: str) -> None:
    (tmp_path / "toy.toml").write_text(f"{SUITE}{TASKS}{more}\n")
    with pytest.raises(UserError, match=told):
        opened(tmp_path)


def test_a_run_that_finished_without_snapshots_says_so_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path)
    (tmp_path / "toy.toml").write_text(SUITE)
    bare = opened(tmp_path, "here", "pretrain.lut.snapshots=[0.55]")
    run_suite(*bare[:1], ["pretrain"], ["lut"], bare[1])
    (tmp_path / "toy.toml").write_text(SUITE + TASKS)
    suite, workspace = opened(tmp_path)
    command = f"lutbench run {suite.given}{workspace.options} --again pretrain/lut/seed0."
    capsys.readouterr()
    with pytest.raises(UserError, match="see above"):
        run_suite(suite, ["downstream"], ["near"], workspace)
    said = [" ".join(capsys.readouterr().out.split())]
    for show in (show_status, lambda *of, check: show_plan(*of, Rates(), ["near"], check)):
        show(suite, workspace, check=True)
        said.append(" ".join(capsys.readouterr().out.split()))
    for one in said:
        assert one.count("pretrain/lut/seed0 finished without keeping encoder-at-0, ") == 1, "all snapshots in one"
        assert "encoder-at-0.55. To get it, repeat the run" in one
        assert "".join(command.split()) in "".join(one.split()), "with the folders that were given"
    assert "downstream/near/lut-at-0/seed0 cannot run" in said[1]
    assert "not here" not in said[1]
    run_suite(suite, [], ["near", "pretrain/lut"], workspace, again=["pretrain/lut"])
    assert the_run(tmp_path, name=f"{NEAR}/lut-teacher-at-0/seed0").status().state is RunState.FINISHED


def test_a_snapshot_that_was_changed_is_not_taken(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "toy.toml").write_text(SUITE + TASKS)
    suite, workspace = opened(tmp_path)
    run_suite(suite, ["pretrain"], ["lut"], workspace)
    path = the_run(tmp_path).folder / "encoder-at-0.25.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(
        UserError, match=r"encoder-at-0.25.safetensors: expected sha256 \w+, found \w+: the file is damaged"
    ):
        encoder_of(the_run(tmp_path, name=f"{NEAR}/lut-at-0.25/seed0"), None)
