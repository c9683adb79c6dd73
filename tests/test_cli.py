"""The command line, as a person types it: what it prints, where, and with which exit status."""

import json
import multiprocessing
import os
import platform
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import MagicMock

import commands
import numpy as np
import pytest
from toy_runs import defaults, encoder, write_images

from lutbench.cli import main
from lutbench.data.catalogue import CATALOGUE, MEASURED_ON
from lutbench.errors import UserError
from lutbench.locks import lock
from lutbench.provenance import code
from lutbench.recipes.loading import load_suite
from lutbench.run import open_run
from lutbench.workspace import Workspace
from pretrain.parity import TOLERANCES

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "fixtures" / "lut_steps.npz"

SUITE = f"""
title = "Toy"
about = "for tests"
kind = "pipeline"
compare = [["lut", "mae"]]
[data.toy]
path = "toy"
{encoder()}
{defaults("pretrain", epochs=2, warmup_epochs=1, batch=8, base_lr=0.01)}
{defaults("finetune", epochs=2, warmup_epochs=1, batch=8, threads=1)}
{defaults("knn", neighbours=3, threads=1)}
[pretrain.lut]
[pretrain.mae]
context_weight = 0.0
crop = "random"
[method.lut]
label = "LUT"
pretrain = "lut"
[method.mae]
label = "MAE"
pretrain = "mae"
[downstream.toy-finetune]
kind = "finetune"
methods = ["lut"]
[downstream.toy-knn]
kind = "knn"
"""

RUNS = (
    *("pretrain/lut/seed0", "pretrain/mae/seed0"),
    *("downstream/toy-finetune/lut/seed0", "downstream/toy-knn/lut/seed0", "downstream/toy-knn/mae/seed0"),
)


class Answer(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def lutbench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, called in this process on a terminal so wide that no line is broken."""
    monkeypatch.setenv("COLUMNS", "300")

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["lutbench", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Answer(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with images and a suite file, and nothing run."""
    write_images(tmp_path / "data")
    (tmp_path / "toy.toml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole_suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole suite was run, through the command line."""
    folder = tmp_path_factory.mktemp("whole")
    write_images(folder / "data")
    (folder / "toy.toml").write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["lutbench", "run", "toy.toml"])
        with pytest.raises(SystemExit, match="0"):
            main()
    return folder


@pytest.fixture
def finished(whole_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of the folder in which the whole suite was run."""
    shutil.copytree(whole_suite, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def files(*folders: Path) -> dict[str, tuple[bytes, int]]:
    """What is in every file below the folders and when it was written; locks apart."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def line_of(text: str, beginning: str) -> str:
    """The line that begins so."""
    return next(line for line in text.splitlines() if line.startswith(beginning))


# Help


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ((), "Pre-train encoders with LUT (Learning with Unmasked Tokens) and MAE (masked autoencoders)"),
        (("run",), "Run a suite. Finished runs are reused"),
        (("status",), "finished, resumable, stale or missing"),
        (("tables",), "Rebuild a suite's tables from its records"),
        (("parity",), "Compare this LUT training step with recorded steps"),
        (("data",), "Datasets: which are present"),
        (("data", "list"), "List the known datasets"),
        (("data", "check"), "Check a dataset: count images"),
        (("data", "prepare"), "Prepare a dataset: build it"),
    ],
)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_says_what_a_command_does(lutbench: Command, command: tuple[str, ...], told: str, option: str) -> None:
    answer = lutbench(*command, option)
    assert (answer.status, answer.err) == (0, "")
    assert told in " ".join(answer.out.split())


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--help"], 0), *(([command, "tny"], 1) for command in ("run", "status", "tables"))]
)
def test_help_and_a_mistyped_suite_are_answered_without_importing_anything_slow(
    arguments: list[str], status: int
) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "lutbench", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == status
    imported = {line.split("|")[-1].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")}
    assert "lutbench.cli" in imported
    assert not imported & {"torch", "timm", "pandas", "datasets", "matplotlib", "mmengine", "accelerate", "sklearn"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "Usage"),
        (("rnu",), "No such command 'rnu'"),
        (("run",), "Missing argument 'SUITE'"),
        (("run", "tiny", "--onyl", "lut"), "No such option"),
        (("run", "tiny", "--stage"), "requires an argument"),
        (("parity",), "Missing argument 'FILE.npz'"),
    ],
)
def test_a_command_that_cannot_be_read_ends_with_status_2(
    lutbench: Command, arguments: tuple[str, ...], told: str
) -> None:
    answer = lutbench(*arguments)
    assert answer.status == 2
    assert told in answer.out + answer.err
    assert "Traceback" not in answer.err


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("run", "tny"),
            "There is no suite 'tny'. Did you mean 'tiny'? Shipped suites: camvid, evidence, evidence-ablations, evidence-gpu, evidence-settings, paper, small, tiny",
        ),
        (("status", "tny"), "Did you mean 'tiny'?"),
        (
            ("tables", "toy.toml", "--data-root", "x"),
            "--data-root x: tables are built only from the records in --results",
        ),
        (
            ("show", "toy-knn/lut", "--data-root", "x"),
            "--data-root x: this command reads the record only, not the images.",
        ),
        (
            ("plan", "toy.toml", "--only", "toy-kn"),
            "--only toy-kn: no run of suite toy matches. Did you mean 'toy-knn'?",
        ),
        (("tables", "tny"), "Did you mean 'tiny'?"),
        (("run", "toy.toml", "--set", "defaults.pretrain.epchs=3"), "no such setting. Did you mean 'epochs'?"),
        (("run", "toy.toml", "--set", "pretrain.lut"), "expected PATH=VALUE"),
        (("status", "toy.toml", "--set", "pretrain.ltu.epochs=3"), "no table pretrain.ltu. Did you mean 'lut'?"),
        (("run", "toy.toml", "--only", "lut", "--only", "mea"), "--only mea: no run of suite toy matches."),
        (
            ("run", "toy.toml", "--stage", "pretrain", "--only", "toy-knn"),
            "no run of suite toy in stage pretrain matches",
        ),
        (("run", "toy.toml", "--stage", "downstraem"), "--stage downstraem: unknown stage."),
        (("run", "toy.toml", "--set", "encoder.toy.model=vit_tiny_patch16_242"), "vit_tiny_patch16_242"),
        (("run", "toy.toml", "--set", "encoder.toy.patch_size=5"), "patch_size"),
        (("parity", "none.npz"), "There is no file none.npz"),
        (("data", "check", "imagenet1k"), "Did you mean 'imagenet-1k'?"),
        (("data", "prepare", "imagenet1k"), "Did you mean 'imagenet-1k'?"),
    ],
)
def test_a_mistake_is_one_paragraph_and_status_1(
    fresh: Path, lutbench: Command, arguments: tuple[str, ...], told: str
) -> None:
    before = files(fresh)
    answer = lutbench(*arguments)
    assert answer.status == 1
    assert answer.err.startswith("lutbench: ")
    assert answer.err.count("\n") == 1
    assert told in answer.err
    assert answer.out == ""
    assert files(fresh) == before


@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_with_traceback_anywhere_a_mistake_is_a_traceback(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    arguments = ["run", "toy.toml", "--only", "mea"]
    arguments.insert(place, "--traceback")
    monkeypatch.setattr(sys, "argv", ["lutbench", *arguments])
    with pytest.raises(UserError, match="--only mea"):
        main()


def test_a_real_process_prints_the_paragraph_or_the_traceback() -> None:
    command = [sys.executable, "-m", "lutbench", "run", "tny"]
    told, traced = (
        subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True) for more in ([], ["--traceback"])
    )
    assert (told.returncode, told.stdout) == (traced.returncode, traced.stdout) == (1, "")
    assert told.stderr.startswith("lutbench: There is no suite 'tny'.")
    assert told.stderr.count("\n") == 1
    assert traced.stderr.startswith("Traceback (most recent call last)")
    assert "in load_suite" in traced.stderr


def spoil_nothing_there(data: Path) -> None:
    shutil.rmtree(data)


def spoil_empty(data: Path) -> None:
    shutil.rmtree(data / "toy")


def spoil_class_without_images(data: Path) -> None:
    for image in (data / "toy/train/blue").iterdir():
        image.unlink()


def spoil_val_of_other_classes(data: Path) -> None:
    (data / "toy/val/blue").rename(data / "toy/val/bleu")


def spoil_no_val(data: Path) -> None:
    shutil.rmtree(data / "toy/val")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_nothing_there, "expected the images of split 'train' in DATA/toy/train, but there is no such folder"),
        (spoil_nothing_there, "Set --data-root to the folder that holds your datasets; `lutbench data list` shows"),
        (spoil_empty, "expected the images of split 'train' in DATA/toy/train, but there is no such folder"),
        (
            spoil_class_without_images,
            "no images in class folder blue of DATA/toy/train. Was the dataset unpacked completely?",
        ),
    ],
)
def test_unfit_data_stops_the_whole_suite_before_anything_is_run(
    fresh: Path, lutbench: Command, spoil: Callable[[Path], None], told: str
) -> None:
    (fresh / "data").rename(fresh / "sets")
    spoil(fresh / "sets")
    answer = lutbench("run", "toy.toml", "--data-root", "sets")
    assert answer.status == 1
    assert answer.err.startswith("lutbench: toy: ")
    assert told.replace("DATA", str(fresh / "sets")) in answer.err
    assert sorted(path.name for path in fresh.iterdir() if path.name != "sets") == ["toy.toml"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_val_of_other_classes, "only in train: blue; only in val: bleu"),
        (spoil_no_val, "expected the images of split 'val' in DATA/data/toy/val, but there is no such folder"),
    ],
)
def test_runs_that_cannot_be_done_are_told_before_the_others_which_are_done_and_named_after(
    fresh: Path, lutbench: Command, spoil: Callable[[Path], None], told: str
) -> None:
    spoil(fresh / "data")
    answer = lutbench("run", "toy.toml")
    assert answer.status == 1
    assert answer.out.startswith("3 of 5 runs cannot be completed.\ndownstream/toy-finetune/lut/seed0, ")
    assert answer.err.startswith("lutbench: 3 of 5 runs cannot be completed.\ndownstream/toy-finetune/lut/seed0, ")
    assert answer.err.endswith(": see above.\n")
    assert (answer.out + answer.err).count(told.replace("DATA", str(fresh))) == 1
    done = sorted(str(path.relative_to(fresh / "runs/toy").parents[1]) for path in fresh.rglob("finished.json"))
    assert done == ["pretrain/lut/seed0", "pretrain/mae/seed0"]


def test_what_needs_a_run_that_went_wrong_is_not_done_and_the_rest_is(fresh: Path, lutbench: Command) -> None:
    answer = lutbench("run", "toy.toml", "--set", "pretrain.lut.base_lr=1e30")
    assert answer.status == 1
    assert "pretrain/lut/seed0: a loss was not finite at step" in answer.out
    assert answer.err == (
        "lutbench: 3 of 5 runs cannot be completed.\npretrain/lut/seed0: see above.\ndownstream/toy-finetune/lut/seed0, "
        "downstream/toy-knn/lut/seed0: each needs pretrain/lut/seed0, which cannot be completed.\n"
    )
    done = sorted(str(path.relative_to(fresh / "runs/toy").parents[1]) for path in fresh.rglob("finished.json"))
    assert done == ["downstream/toy-knn/mae/seed0", "pretrain/mae/seed0"]


@pytest.mark.parametrize("option", ["--runs", "--results"])
def test_a_file_where_a_folder_belongs_is_named_before_anything_is_run(
    fresh: Path, lutbench: Command, option: str
) -> None:
    answer = lutbench("run", "toy.toml", option, "toy.toml")
    assert answer.status == 1
    assert answer.err.startswith(f"lutbench: {option} toy.toml: the folder cannot be created")
    assert not list(fresh.rglob("*.safetensors"))


def test_an_unknown_augmentation_is_named_before_anything_is_run(fresh: Path, lutbench: Command) -> None:
    answer = lutbench("run", "toy.toml", "--set", "defaults.finetune.rand_augment=randaug-9")
    assert answer.status == 1
    assert "toy-finetune.rand_augment: expected one of timm's policies, such as 'rand-m9-mstd0.5-inc1'" in answer.err
    assert "found 'randaug-9'" in answer.err
    assert not list((fresh / "runs").rglob("classifier.safetensors"))


def test_a_task_without_its_encoder_says_what_to_run_first(fresh: Path, lutbench: Command) -> None:
    answer = lutbench("run", "toy.toml", "--stage", "downstream")
    assert answer.status == 1
    assert answer.err.startswith(
        "lutbench: 3 of 3 runs cannot be completed.\ndownstream/toy-finetune/lut/seed0, downstream/toy-knn/lut/seed0, "
    )
    assert (
        "starts from the encoder of the run before it (pretrain/lut/seed0, pretrain/mae/seed0), which is missing"
        in answer.err
    )
    assert "lutbench run toy.toml --stage pretrain" in answer.err
    assert "nox -s pretrain -- toy.toml" in answer.err
    assert not (fresh / "runs").exists()
    assert not (fresh / "results").exists()


@pytest.fixture
def held(fresh: Path) -> Iterator[int]:
    """The number of a process that is at work on the suite's first run, ``pretrain/lut/seed0``."""
    loaded = load_suite("toy.toml")
    run = open_run(loaded, loaded.runs[0], Workspace(fresh / "data", fresh / "runs", fresh / "results"))
    context = multiprocessing.get_context("fork")
    holds = context.Event()

    def hold() -> None:
        with lock(run):
            holds.set()
            time.sleep(600)

    other = context.Process(target=hold)
    other.start()
    try:
        assert holds.wait(600)
        assert other.pid
        yield other.pid
    finally:
        other.kill()
        other.join()


def test_the_version_is_the_one_that_records_have(lutbench: Command) -> None:
    assert lutbench("--version").out == f"lutbench {code()}\n"


def test_a_plan_asks_for_no_split_that_no_run_reads(fresh: Path, lutbench: Command) -> None:
    shutil.rmtree(fresh / "data/toy/val")
    text = (fresh / "toy.toml").read_text()
    (fresh / "toy.toml").write_text(text[: text.index("[downstream.")])
    answer = lutbench("plan", "toy.toml")
    assert (answer.status, answer.err) == (0, "")
    assert "but there is no such folder" not in answer.out


def test_a_run_that_another_process_holds_is_left_to_it(fresh: Path, lutbench: Command, held: int) -> None:
    before = files(fresh)
    answer = lutbench("run", "toy.toml", "--only", "pretrain/lut")
    assert answer.status == 1
    assert f"lutbench: pretrain/lut/seed0 is being run already, by process {held} on " in answer.err
    assert files(fresh) == before


def test_what_needs_no_held_run_is_done_meanwhile(fresh: Path, lutbench: Command, held: int) -> None:
    answer = lutbench("run", "toy.toml")
    assert answer.status == 1
    assert "It is tried again after the other runs." in answer.out
    assert answer.err.startswith(
        "lutbench: 3 of 5 runs cannot be completed.\npretrain/lut/seed0 is being run already, by "
    )
    done = sorted(str(path.relative_to(fresh / "runs/toy").parents[1]) for path in fresh.rglob("finished.json"))
    assert done == ["downstream/toy-knn/mae/seed0", "pretrain/mae/seed0"]


def test_status_says_who_is_at_work_on_a_run(fresh: Path, lutbench: Command, held: int) -> None:
    line = next(line for line in lutbench("status", "toy.toml").out.splitlines() if line.startswith("pretrain/lut"))
    assert f"running, by process {held} on {platform.node()} since " in line


def test_a_killed_command_holds_nothing(fresh: Path, lutbench: Command, held: int) -> None:
    os.kill(held, signal.SIGKILL)
    os.waitid(os.P_PID, held, os.WEXITED | os.WNOWAIT)
    assert (fresh / "runs/toy/pretrain/lut/seed0/.holder.json").is_file()
    assert "running" not in lutbench("status", "toy.toml").out


# A whole suite


def test_a_suite_leaves_a_record_of_every_run_and_every_images_outcome(finished: Path) -> None:
    records = {
        str(path.relative_to("results/records/toy").with_suffix("")): json.loads(path.read_text())
        for path in Path("results/records/toy").rglob("*.json")
    }
    assert set(records) == set(RUNS)
    for name, record in records.items():
        outcomes = list(Path("results/records/toy").glob(f"{name}-*.npz"))
        assert len(outcomes) == (0 if name.startswith("pretrain") else 1), name
        assert (Path("runs/toy") / name / record["identity"][:12] / "finished.json").is_file()
    losses = [{m["metric"] for m in records[f"pretrain/{name}/seed0"]["measurements"]} for name in ("lut", "mae")]
    assert losses[0] > losses[1], "LUT has one loss more"


def test_the_same_line_again_finds_everything_finished_and_changes_no_file(finished: Path, lutbench: Command) -> None:
    before = files(finished)
    answer = lutbench("run", "toy.toml")
    assert (answer.status, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert [line.split(": finished already; ")[0] for line in lines] == list(RUNS)
    assert all("loss" in line for line in lines[:2])
    assert all("top-1" in line for line in lines[2:])
    assert files(finished) == before


def test_a_setting_that_cannot_change_a_result_does_not_run_anything_again(finished: Path, lutbench: Command) -> None:
    before = files(finished)
    answer = lutbench("run", "toy.toml", "--set", "defaults.pretrain.log_every=1", "--set", "data.toy.label=Toys")
    assert answer.out.count("finished already") == len(RUNS)
    assert files(finished) == before


def test_records_that_are_gone_come_back_byte_for_byte(finished: Path, lutbench: Command) -> None:
    before = {name: content for name, (content, _) in files(finished / "results").items()}
    assert len(before) == 8  # five records, three of them with outcomes
    shutil.rmtree("results/records/toy/downstream")
    Path("results/records/toy/pretrain/lut/seed0.json").unlink()
    assert lutbench("run", "toy.toml").status == 0
    assert {name: content for name, (content, _) in files(finished / "results").items()} == before


def test_results_can_be_kept_elsewhere(finished: Path, lutbench: Command) -> None:
    assert lutbench("run", "toy.toml", "--results", "elsewhere", "--stage", "downstream").status == 0
    there = {path.relative_to("elsewhere") for path in Path("elsewhere").rglob("*.*")}
    assert there == {
        path.relative_to("results")
        for stage in ("pretrain", "downstream")  # what they start from comes with them
        for path in Path("results/records").rglob(f"{stage}/**/*.*")
    }


# Status


def test_status_of_what_was_never_run_is_missing_and_says_what_is_waited_for(fresh: Path, lutbench: Command) -> None:
    answer = lutbench("status", "toy.toml")
    assert (answer.status, answer.err) == (0, "")
    for name in RUNS[:2]:
        assert re.match(rf"{name} +missing\b", line_of(answer.out, name))
    assert "needs pretrain/lut/seed0" in line_of(answer.out, "downstream/toy-finetune/lut/seed0")
    assert "needs pretrain/mae/seed0" in line_of(answer.out, "downstream/toy-knn/mae/seed0")
    assert not (fresh / "runs").exists()


def test_status_without_data_says_what_is_expected_where(fresh: Path, lutbench: Command) -> None:
    answer = lutbench("status", "toy.toml", "--data-root", "nowhere")
    assert answer.status == 0
    assert re.match(r"pretrain/lut/seed0 +missing$", line_of(answer.out, "pretrain/lut/seed0").rstrip())
    assert answer.out.count(str(fresh / "nowhere/toy/train")) == 1, "said once for all runs"


def test_status_of_a_finished_run_shows_its_result_and_its_folder(finished: Path, lutbench: Command) -> None:
    answer = lutbench("status", "toy.toml")
    assert answer.status == 0
    for name in RUNS:
        record = json.loads(Path(f"results/records/toy/{name}.json").read_text())
        first = record["measurements"][0]
        result = f"{first['metric']} {first['value']:.{3 if name.startswith('pretrain') else 1}f}"
        line = line_of(answer.out, name)
        assert re.match(rf"{name} +finished +{result}", line)
        assert line.rstrip().endswith(f"runs/toy/{name}/{record['identity'][:12]}")


def test_status_shows_a_damaged_record_of_a_run_that_needs_another(finished: Path, lutbench: Command) -> None:
    path = Path(f"results/records/toy/{RUNS[3]}.json")
    path.write_text(path.read_text().replace('"wall_seconds": ', '"wall_seconds": 1'))
    told = lutbench("status", "toy.toml").out
    assert line_of(told, RUNS[3]).split()[1] == "finished"
    assert "needs" not in told
    assert f"{path}: damaged or changed since it was written" in told
    assert f"repeat run {RUNS[3]}" in told


def test_status_of_a_changed_run_is_stale_because_of_the_field(finished: Path, lutbench: Command) -> None:
    answer = lutbench("status", "toy.toml", "--set", "pretrain.lut.epochs=3")
    assert "stale because recipe.epochs changed from 2 to 3" in line_of(answer.out, "pretrain/lut/seed0")
    assert "needs pretrain/lut/seed0" in line_of(answer.out, "downstream/toy-knn/lut/seed0")
    for name in ("pretrain/mae/seed0", "downstream/toy-knn/mae/seed0"):
        assert "finished" in line_of(answer.out, name)


def test_a_run_that_is_told_to_stop_saves_and_the_same_line_goes_on(fresh: Path, lutbench: Command) -> None:
    line = ["run", "toy.toml", "--only", "pretrain/lut"]
    settings = ["--set", "pretrain.lut.epochs=20", "--set", "pretrain.lut.save_every=1"]
    command = commands.Command(*line, *settings)
    commands.wait_for(lambda: list(fresh.glob("runs/toy/pretrain/lut/seed0/*/checkpoints/step-*")), command)
    os.kill(command.pid, signal.SIGTERM)
    told = commands.paragraph_of(command)
    stopped = re.fullmatch(
        r"lutbench: Stopped by SIGTERM\. .* at step (\d+) of 75, which is saved\. .*same command to continue.*", told
    )
    assert stopped, told
    assert command.returncode == 128 + signal.SIGTERM

    status = lutbench("status", "toy.toml", *settings)
    assert f" resumable at step {stopped[1]} " in line_of(status.out, "pretrain/lut/seed0")
    again = lutbench(*line, *settings[:2])
    assert again.status == 0
    assert f"pretrain/lut/seed0: resumes from step {stopped[1]}." in again.out
    assert " finished " in line_of(lutbench("status", "toy.toml", *settings).out, "pretrain/lut/seed0")


# Tables


def test_tables_are_written_and_shown_and_pass_their_check(finished: Path, lutbench: Command) -> None:
    answer = lutbench("tables", "toy.toml")
    assert (answer.status, answer.err) == (0, "")
    for told in ("toy-finetune", "toy-knn", "LUT", "MAE", "top-1", "LUT - MAE", "no evidence about the method"):
        assert told in " ".join(answer.out.split())
    assert {path.name for path in Path("results/tables/toy").iterdir()} == {
        "main.md", "main.csv", "main.tex", "wide.tex", "calibration.csv", "calibration.tex", "comparisons.csv", "compute.csv", "compute.tex", "comparisons.tex",
    }  # fmt: skip
    checked = lutbench("tables", "toy.toml", "--check")
    assert (checked.status, checked.err) == (0, "")


def test_a_table_edited_by_hand_fails_the_check_with_a_diff(finished: Path, lutbench: Command) -> None:
    lutbench("tables", "toy.toml")
    table = Path("results/tables/toy/main.md")
    table.write_text(table.read_text().replace("LUT", "SOTA"))
    before = files(finished)
    answer = lutbench("tables", "toy.toml", "--check")
    assert answer.status == 1
    assert answer.err.startswith("lutbench: The tables of toy.toml do not match its records.")
    assert "--- main.md in the folder" in answer.out
    assert re.search(r"^-.*SOTA", answer.out, re.MULTILINE)
    assert re.search(r"^\+.*LUT", answer.out, re.MULTILINE)
    assert files(finished) == before
    lutbench("tables", "toy.toml")
    assert lutbench("tables", "toy.toml", "--check").status == 0


def test_tables_that_are_missing_fail_the_check(finished: Path, lutbench: Command) -> None:
    assert lutbench("tables", "toy.toml", "--check").status == 1


@pytest.mark.parametrize("check", [(), ("--check",)])
def test_an_edited_record_makes_no_table(finished: Path, lutbench: Command, check: tuple[str, ...]) -> None:
    lutbench("tables", "toy.toml")
    path = Path("results/records/toy/downstream/toy-knn/lut/seed0.json")
    record = json.loads(path.read_text())
    record["measurements"][0]["value"] = 99.9
    path.write_text(json.dumps(record))
    before = files(finished)
    answer = lutbench("tables", "toy.toml", *check)
    assert answer.status == 1
    assert answer.err.startswith(f"lutbench: {path}: damaged or changed since it was written: ")
    assert files(finished) == before


def test_a_reference_without_records_is_named_before_anything_is_written(finished: Path, lutbench: Command) -> None:
    Path("empty").mkdir()
    before = files(finished)
    answer = lutbench("tables", "toy.toml", "--reference", "empty")
    assert (answer.status, answer.out) == (1, "")
    assert answer.err.startswith("lutbench: --reference empty: there are no records of suite toy in this folder.")
    assert files(finished) == before


def test_without_records_nothing_is_written(fresh: Path, lutbench: Command) -> None:
    answer = lutbench("tables", "toy.toml")
    assert answer.status == 0
    assert "There are no results yet" in answer.out
    assert not (fresh / "results").exists()


def test_a_changed_suite_file_makes_its_numbers_stale_in_the_tables(finished: Path, lutbench: Command) -> None:
    Path("toy.toml").write_text(SUITE.replace("neighbours = 3", "neighbours = 5"))
    lutbench("tables", "toy.toml")
    table = Path("results/tables/toy/main.md").read_text()
    assert table.count("stale: neighbours changed from 3 to 5") == 2
    lutbench("tables", "toy.toml", "--set", "defaults.knn.neighbours=3")
    assert "stale" not in Path("results/tables/toy/main.md").read_text(), "of the settings that the runs were given"


# Parity


def test_parity_passes_on_the_published_steps(lutbench: Command) -> None:
    answer = lutbench("parity", GOLDEN)
    assert (answer.status, answer.err) == (0, "")
    assert len(re.findall(r"\bpass\b", answer.out)) == len(TOLERANCES)
    assert "fail" not in answer.out


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("grad0/blocks.1.mlp.fc1.weight", "gradients"),
        ("final/blocks.0.attn.proj.weight", "student weights"),
        ("step1/bc_loss", "losses"),
    ],
)
def test_parity_fails_and_names_the_one_number_that_is_a_hundredth_off(
    tmp_path: Path, lutbench: Command, tensor: str, kind: str
) -> None:
    with np.load(GOLDEN) as file:
        entries = {name: file[name] for name in file.files}
    entries[tensor] = entries[tensor] * 1.01
    np.savez(tmp_path / "off.npz", **entries)
    answer = lutbench("parity", tmp_path / "off.npz")
    assert answer.status == 1
    rows = {what: next(row for row in answer.out.splitlines() if what in row) for what in TOLERANCES}
    for what, row in rows.items():
        assert ("fail" if what == kind else "pass") in row
    assert tensor in rows[kind]


# Data


def test_the_list_of_known_sets_leads_to_how_to_get_each(tmp_path: Path, lutbench: Command) -> None:
    answer = lutbench("data", "list", "--data-root", tmp_path)
    assert answer.status == 0
    assert {*CATALOGUE, *MEASURED_ON} <= set(answer.out.split())
    assert "lutbench data list NAME" in answer.out
    one = lutbench("data", "list", "caltech101", "--data-root", tmp_path)
    assert one.status == 0
    assert "https://data.caltech.edu" in one.out
    assert str(tmp_path / "caltech101") in "".join(one.out.split()), "where lines are broken, too"
    assert "Did you mean 'caltech101'?" in lutbench("data", "list", "caltech-101").err


def test_a_check_of_a_set_that_is_not_whole_fails_and_a_glance_at_the_list_does_not(
    fresh: Path, lutbench: Command
) -> None:
    (fresh / "data/toy").rename(fresh / "data/flowers17")
    answer = lutbench("data", "check", "flowers17")
    assert answer.status == 1
    assert "train, classes: expected 17, found 3 (-14)" in answer.out
    assert "incomplete or damaged" in answer.out
    assert lutbench("data", "list").status == 0
    prepared = lutbench("data", "prepare", "caltech101")
    assert prepared.status == 1
    assert "https://data.caltech.edu" in prepared.out


def test_without_a_name_every_set_that_is_there_is_checked(fresh: Path, lutbench: Command) -> None:
    assert "There is no known dataset below" in lutbench("data", "check").err
    (fresh / "data/toy").rename(fresh / "data/flowers17")
    (fresh / "data/caltech101").mkdir()
    answer = lutbench("data", "check")
    assert answer.status == 1
    assert "flowers17: " in answer.out
    assert "caltech101: " in answer.out
    assert "imagenet-1k: " not in answer.out


# nox


def test_a_stage_of_which_a_suite_has_no_runs_is_no_mistake(fresh: Path, lutbench: Command) -> None:
    """As nox asks for every stage, whatever the suite."""
    before = files(fresh)
    for options in ((), ("--only", "lut")):
        answer = lutbench("run", "camvid", "--stage", "robustness", *options)
        assert (answer.status, answer.err) == (0, "")
        assert answer.out == "Suite camvid has no runs of stage robustness.\n"
    assert files(fresh) == before


@pytest.mark.skipif(shutil.which("nox") is None, reason="nox has an environment of its own")
@pytest.mark.parametrize(
    ("ended", "begun"),
    [
        ("exit 1", ["run", "run", "tables"]),
        ("exit 143", ["run"]),
        ("exit 130", ["run"]),
        ("kill -TERM $$", ["run"]),
        ("kill -KILL $$", ["run", "run", "tables"]),
        ("kill -INT 0; exit 130", ["run"]),
    ],
)
def test_nox_goes_on_after_a_failure_and_not_after_an_interruption(
    tmp_path: Path, ended: str, begun: list[str]
) -> None:
    """The program that it runs is a script that notes what it is asked for; the last one is as Ctrl-C in a terminal."""
    for name in ("noxfile.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    program = tmp_path / ".venv/bin/lutbench"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\ntrap : INT\necho $1 >> {tmp_path}/begun\n{ended}\n")
    program.chmod(0o755)
    installed = (tmp_path / "pyproject.toml").read_text() + (tmp_path / "constraints.txt").read_text()
    (tmp_path / ".venv/installed.txt").write_text(installed)
    line = ["nox", "-f", str(tmp_path / "noxfile.py"), "-s", "pretrain", "downstream", "results", "--", "tiny"]
    assert subprocess.run(line, start_new_session=True, capture_output=True).returncode != 0
    assert (tmp_path / "begun").read_text().split() == begun


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["tiny"]),
        (["small"], ["small"]),
        (["--data-root", "sets"], ["tiny", "--data-root", "sets"]),
        (["mine.toml", "--only", "lut"], ["mine.toml", "--only", "lut"]),
    ],
)
def test_what_follows_two_dashes_is_a_suite_and_options(
    given: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nox", MagicMock())  # it has an environment of its own; only its names are needed
    session = SimpleNamespace(posargs=tuple(given))
    assert runpy.run_path(str(ROOT / "noxfile.py"))["suite_and_options"](session) == expected


def test_nox_prints_the_tables_and_writes_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    nox = MagicMock()
    nox.session.side_effect = lambda function=None, **options: function or (lambda decorated: decorated)
    monkeypatch.setitem(sys.modules, "nox", nox)
    results, called = runpy.run_path(str(ROOT / "noxfile.py"))["results"], []
    monkeypatch.setitem(results.__globals__, "run", lambda session, *line: called.append(" ".join(line)))
    results(SimpleNamespace(posargs=("small", "--results", "there", "--data-root", "sets", "--runs", "elsewhere")))
    assert called == [
        "lutbench tables small --results there",
        "lutbench report small --results there --data-root sets --runs elsewhere",
    ]


def test_nox_collates_the_results_where_they_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nox", MagicMock())
    options = runpy.run_path(str(ROOT / "noxfile.py"))["tables_options"]
    given = ["small", "--data-root", "sets", "--results", "there", "--set", "seeds=[0]"]
    assert options(given) == ["small", "--results", "there", "--set", "seeds=[0]"]
    assert options([*given, "--set", "a.b=1"])[-4:] == ["--set", "seeds=[0]", "--set", "a.b=1"]
    assert options(["small", "--results=there"]) == ["small", "--results", "there"]
    assert options(given[:3]) == ["small"]
    pictured = options([*given, "--runs", "elsewhere"], "data-root", "runs")
    assert pictured[-4:] == ["--data-root", "sets", "--runs", "elsewhere"], "the report's pictures are read there"
