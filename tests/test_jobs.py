"""Runs side by side (``--jobs N``): the same bits, nothing twice, nothing lost, nobody left behind; with real processes and signals."""

import json
import os
import re
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable
from io import StringIO
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from commands import start, wait_for
from processes import lives
from rich.console import Console
from toy_runs import HIDDEN, SCRATCH, TOY, defaults, in_processes, opened, write_images

from lutbench.checkpoint_names import newest_step
from lutbench.errors import UserError
from lutbench.jobs import worker
from lutbench.jobs.crew import Crew, visible_devices
from lutbench.jobs.order import Queue, longest_first
from lutbench.jobs.view import View
from lutbench.jobs.worker import Line, Step
from lutbench.recipes import base
from lutbench.run import Run, open_run
from lutbench.stages import run_suite

ROOT = Path(__file__).parents[1]

SUITE = f"""{TOY}
{defaults("pretrain", epochs=2, save_every=1000)}
{defaults("finetune", mixup=0.0, cutmix=0.0, threads=1)}
{defaults("knn", neighbours=3, threads=1)}
[defaults.robustness]
threads = 1
workers = 0
[pretrain.lut]
[pretrain.mae]
context_weight = 0.0
[method.lut]
pretrain = "lut"
[method.mae]
pretrain = "mae"
{SCRATCH}
[downstream.tuned]
kind = "finetune"
[downstream.near]
kind = "knn"
[downstream.white]
kind = "knn"
feature_transform = "whiten"
{HIDDEN}
[robustness.shift]
tasks = ["tuned"]
sets = ["hidden"]
"""

PROVENANCE = ("created", "seal", "wall_seconds", "images_per_second")
"""What a record has that tells of its making, and not of what was measured; with two entries of ``extra``."""

LONG = ("pretrain.lut.epochs=1000", "pretrain.mae.epochs=1000")
"""Some thousand steps."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path)
    (tmp_path / "toy.toml").write_text(SUITE)
    return tmp_path


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """What was measured, by run."""
    found = {}
    for path in folder.rglob("results/**/*.json"):
        record = json.loads(path.read_text())
        for name in PROVENANCE:
            del record[name]
        for name in ("waiting_for_data", "features_kept"):
            record["extra"].pop(name, None)
        found[record["run"]] = record
    return found


def holders(folder: Path) -> dict[str, int]:
    """The processes that are at work on runs, by the name of the run."""
    home = folder / "here/runs/toy"
    found = home.rglob(".holder.json")
    return {path.parent.relative_to(home).as_posix(): json.loads(path.read_text())["process"] for path in found}


def both_in_their_loops(folder: Path) -> Callable[[], bool]:
    loops = "here/runs/toy/pretrain/{}/seed0/*/tensorboard/*"
    return lambda: all(list(folder.glob(loops.format(name))) for name in ("lut", "mae"))


# What comes out


def test_side_by_side_leaves_the_records_that_one_after_the_other_leaves(folder: Path) -> None:
    for home, jobs in (("one", 1), ("three", 3)):
        suite, workspace = opened(folder, home)
        run_suite(suite, [], [], workspace, jobs=jobs)
    one, three = records(folder / "one"), records(folder / "three")
    assert sorted(one) == sorted(run.name for run in suite.runs)
    assert one == three


def faults() -> int:
    """Page faults of an array of 128 MB that is written to and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def working_on_arrays(*arguments: Any) -> None:
    """A worker whose k-NN runs allocate two large arrays, of which the first is freed, and print the page faults of the second."""
    from downstream import knn

    def perform(run: Run[Any]) -> None:
        faults()
        print(f"faults {faults()}")
        knn_performs(run)

    knn_performs = knn.perform
    knn.perform = perform
    worker.work(*arguments)


@pytest.mark.slow
def test_workers_that_are_started_anew_do_the_same_as_forked_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where there are GPUs. Both keep freed memory."""
    monkeypatch.setattr("lutbench.jobs.crew.work", working_on_arrays)
    for home, spawned in (("forked", False), ("spawned", True)):
        monkeypatch.setattr("lutbench.jobs.crew.is_spawned", lambda devices, spawned=spawned: spawned)
        suite, workspace = opened(folder, home)
        run_suite(suite, [], ["tuned/scratch", "near/scratch", "shift/*/scratch"], workspace, jobs=2)
        (found,) = re.findall(r"faults (\d+)", capsys.readouterr().out)
        assert int(found) < 100 or "CS_GNU_LIBC_VERSION" not in os.confstr_names
    forked, spawned = records(folder / "forked"), records(folder / "spawned")
    assert len(forked) == 3
    assert forked == spawned


# GPUs


@pytest.mark.parametrize(
    ("named", "count", "expected"),
    [
        (None, 3, ["0", "1", "2"]),
        ("2,3", 2, ["2", "3"]),
        ("GPU-8b4c, GPU-11aa", 2, ["GPU-8b4c", "GPU-11aa"]),
        ("3,-1,2", 1, ["3"]),  # CUDA reads up to the first that does not exist
        ("", 0, []),
        (None, 0, []),
    ],
)
def test_the_gpus_are_those_that_the_user_made_visible(
    named: str | None, count: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_devices() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("named", [None, "2,GPU-8b4c"])
def test_each_worker_sees_one_gpu_from_its_first_moment_on(
    named: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there are more workers than GPUs, they take turns; one that takes the place of another sees the same."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)

    def seen() -> list[str]:
        """What the environment of each worker said when its program began."""
        found = []
        for of in crew.workers:
            while b"spawn_main" not in Path(f"/proc/{of.process.pid}/cmdline").read_bytes():
                time.sleep(0.001)
            lines = Path(f"/proc/{of.process.pid}/environ").read_text().split("\0")
            found += [line.partition("=")[2] for line in lines if line.startswith("CUDA_VISIBLE_DEVICES=")]
        return found

    expected = [*(named or "0,1").split(",")] * 2
    with Crew(*opened(folder), count=4) as crew:
        assert [of.device for of in crew.workers] == expected
        assert seen() == expected
        gone = crew.workers.pop(1)
        gone.process.kill()
        crew.replace(gone)
        assert seen() == [expected[0], *expected[2:], expected[1]]
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == named


@pytest.mark.gpu
def test_two_runs_at_once_share_the_gpu_if_there_is_one(folder: Path) -> None:
    command = start(folder, "here", "--jobs", "2", "--stage", "pretrain")
    out, err = command.communicate()
    assert command.returncode == 0, err + out
    records = [json.loads(path.read_text()) for path in (folder / "here/results/records").rglob("seed0.json")]
    assert len(records) == 2
    assert all(record["hardware"]["gpus"] for record in records)


def test_on_gpus_the_threads_of_runs_are_not_counted(folder: Path) -> None:
    suite, workspace = opened(folder, "here", "downstream.tuned.threads=64")
    near, tuned = (
        open_run(suite, suite.run(f"downstream/{name}/scratch/seed0"), workspace) for name in ("near", "tuned")
    )
    assert Queue(suite, [tuned], threads=2, all_threads=2).take([near], 0.0) is None
    assert Queue(suite, [tuned], threads=None, all_threads=2).take([near], 0.0) is tuned


def test_gpus_that_are_not_used_are_named_with_the_option_that_uses_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, workspace = opened(folder, "here")

    def line(*only: str, devices: int = 8) -> str:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        capsys.readouterr()
        run_suite(suite, [], only, workspace)
        return "".join(of for of in capsys.readouterr().out.splitlines() if "--jobs" in of)

    monkeypatch.setattr("lutbench.stages.run_one", lambda run, again: None)
    assert line(devices=1) == ""
    assert line() == "8 GPUs are visible, and one is used; --jobs 8 would use all."
    assert line("pretrain") == "8 GPUs are visible, and one is used; --jobs 2 would use 2 of them."
    assert line("near/scratch") == ""


def test_a_run_without_enough_memory_on_its_gpu_fails_and_the_others_continue(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: Run[Any]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("downstream.finetune.perform", full)
    suite, workspace = opened(folder, "here")
    with pytest.raises(UserError) as error:
        run_suite(suite, [], ["tuned/scratch", "near/scratch"], workspace, jobs=2)
    assert "downstream/tuned/scratch/seed0" in str(error.value)
    assert list(records(folder)) == ["downstream/near/scratch/seed0"]


def test_independent_runs_are_done_at_once_and_dependent_ones_after_what_they_need(folder: Path) -> None:
    suite, workspace = opened(folder, "here")
    run_suite(suite, [], [], workspace, jobs=2)
    times = {}
    for planned in suite.runs:
        run_folder = open_run(suite, planned, workspace).folder
        times[planned.name] = [(run_folder / f"{name}.json").stat().st_mtime for name in ("run", "finished")]
    for planned in suite.runs:
        if planned.needs:
            assert times[planned.needs][1] <= times[planned.name][0]
    assert any(max(a[0], b[0]) < min(a[1], b[1]) for a, b in combinations(times.values(), 2))


def test_a_second_command_does_nothing_twice_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite, workspace = opened(folder, "here")
    run_suite(suite, [], ["near/scratch", "white/scratch", "tuned/scratch"], workspace, jobs=2)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("here/**/*.json")}
    capsys.readouterr()
    run_suite(suite, [], ["near/scratch", "white/scratch", "tuned/scratch"], opened(folder, "here")[1], jobs=2)
    assert capsys.readouterr().out.count("finished already") == 3
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("here/**/*.json")} == before


def test_runs_that_want_the_same_features_encode_them_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two probes of one encoder, which begin at the same moment."""
    suite, workspace = opened(folder, "here", "defaults.knn.eval_batch=1")
    run_suite(suite, [], ["near/scratch", "white/scratch"], workspace, jobs=2)
    kept = [split for _, record in every_extra(folder) for split in record.get("features_kept", [])]
    assert sorted(kept) == ["train", "val"], "each is encoded by one of them, and there for the other"
    assert sorted(path.suffix for path in workspace.features.iterdir()) == [".crops"] * 2 + [".safetensors"] * 2
    assert capsys.readouterr().out.count("are in the cache and are not computed again") == 2


def every_extra(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    found = [json.loads(path.read_text()) for path in folder.rglob("results/**/*.json")]
    return [(record["run"], record["extra"]) for record in found]


# What goes wrong


def test_a_run_that_fails_stops_no_other_and_what_needs_it_is_told_as_not_done(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, workspace = opened(folder, "here", "pretrain.lut.base_lr=1e30")
    with pytest.raises(UserError) as error:
        run_suite(suite, [], [], workspace, jobs=2)
    lost = [run.name for run in suite.runs if "/lut/" in run.name]
    assert str(error.value).startswith(
        f"{len(lost)} of {len(suite.runs)} runs cannot be completed.\npretrain/lut/seed0: see above"
    )
    assert str(error.value).endswith(
        "each needs the run before it (pretrain/lut/seed0, downstream/tuned/lut/seed0), which cannot be completed."
    )
    assert "pretrain/lut/seed0: a loss was not finite" in capsys.readouterr().out
    assert sorted(records(folder)) == sorted(run.name for run in suite.runs if "/lut/" not in run.name)


def test_a_worker_that_is_killed_is_told_of_and_another_takes_its_place(folder: Path) -> None:
    process = start(folder, "here", "--jobs", "2", changes=LONG[:1])
    wait_for(both_in_their_loops(folder), process)
    wait_for(lambda: "pretrain/lut/seed0" in holders(folder), process)
    os.kill(holders(folder)["pretrain/lut/seed0"], signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == 1
    assert "pretrain/lut/seed0: its process was killed by signal 9" in out
    assert "5 of 14 runs cannot be completed" in err
    assert len([name for name in records(folder) if "/lut/" not in name]) == len(records(folder)) == 9


def test_two_commands_share_the_work(folder: Path) -> None:
    """Each waits for what the other is at, and both end when all is done."""
    commands = [start(folder, "here", "--jobs", "2") for _ in range(2)]
    told = [command.communicate() for command in commands]
    assert [command.returncode for command in commands] == [0, 0], told
    names = [run.name for run in opened(folder, "here")[0].runs]
    for name in names:
        lines = [line for out, _ in told for line in out.splitlines() if line.startswith(f"{name}: ")]
        assert sum("finished already" in line for line in lines) == 1, lines
    done = [{name for name in names if f"{name}: finished already" not in out} for out, _ in told]
    assert all(done)


def test_several_processes_of_torchrun_are_refused(folder: Path) -> None:
    def refused() -> str:
        suite, workspace = opened(folder, "here")
        with pytest.raises(UserError) as error:
            run_suite(suite, [], [], workspace, jobs=2)
        return str(error.value)

    for text in in_processes(refused, 2):
        assert text.startswith("--jobs 2: torchrun started 2 processes")


# When it is stopped


def test_a_signal_has_every_worker_save_and_all_go_on_to_the_same_bits(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As nox has it after Ctrl-C: SIGTERM follows SIGINT, and is no second Ctrl-C."""
    changes = ("pretrain.lut.epochs=30", "pretrain.mae.epochs=30")
    suite, workspace = opened(folder, "here", *changes)
    process = start(folder, "here", "--jobs", "2", "--stage", "pretrain", changes=changes)
    wait_for(both_in_their_loops(folder), process)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, number)
    err = process.communicate()[1]
    assert process.returncode == 130, err
    (told,) = (line for line in err.splitlines() if line and ": saves after this step" not in line)
    assert told.startswith("lutbench: Stopped by SIGINT. ")
    assert told.endswith("Repeat the same command to continue.")
    for planned in suite.runs[:2]:
        found = re.search(rf"{planned.name} stopped at step (\d+) of 90, which is saved\.", told)
        assert found, told
        assert newest_step(open_run(suite, planned, workspace).checkpoints) == int(found[1])
    run_suite(suite, ["pretrain"], [], workspace, jobs=2)
    assert capsys.readouterr().out.count("resumes from step") == 2
    run_suite(suite, ["pretrain"], [], opened(folder, "whole")[1])
    assert records(folder / "here") == records(folder / "whole")


def test_a_second_ctrl_c_stops_at_once_and_a_sigterm_after_the_first_does_not(folder: Path) -> None:
    """The one step of these runs takes some seconds."""
    changes = tuple(f"pretrain.{name}.{setting}" for name in ("lut", "mae") for setting in ("batch=7200", "epochs=240"))
    process = start(folder, "here", "--jobs", "2", "--stage", "pretrain", changes=changes)
    wait_for(both_in_their_loops(folder), process)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid, number)
        time.sleep(0.3)
        assert process.returncode is None
    os.kill(process.pid, signal.SIGINT)
    err = process.communicate()[1]
    assert process.returncode == 130
    assert "pretrain/lut/seed0 has saved nothing yet" in err
    assert "pretrain/mae/seed0 has saved nothing yet" in err
    assert not list(folder.glob("here/runs/**/step-*"))


def test_a_command_that_is_killed_leaves_no_worker_behind(folder: Path) -> None:
    process = start(folder, "here", "--jobs", "2", "--stage", "pretrain", changes=LONG)
    wait_for(both_in_their_loops(folder), process)
    workers = list(holders(folder).values())
    assert len(workers) == 2
    assert process.pid not in workers
    assert all(lives(worker) for worker in workers)
    assert {os.getsid(worker) for worker in workers} == {process.pid}, "in the command's session, whose share they get"
    assert process.pid not in {os.getpgid(worker) for worker in workers}, "and not among those that Ctrl-C tells"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(lives(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Which run is begun next


def toy_queue(*runs: tuple[str, str | None, int]) -> list[Run[Any]]:
    """Runs by name, what they need and threads, without anything else."""
    made: dict[str, Any] = {}
    for name, needs, threads in runs:
        recipe = SimpleNamespace(threads=threads)
        made[name] = SimpleNamespace(name=name, needs=made.get(needs or ""), recipe=recipe)
    return list(made.values())


def names(runs: list[Run[Any]]) -> list[str]:
    return [run.name for run in runs]


def test_the_run_with_most_to_come_is_first() -> None:
    runs = toy_queue(("short", None, 1), ("long", None, 1), ("base", None, 1), ("after", "base", 1))
    seconds = {"short": 1.0, "long": 5.0, "base": 2.0, "after": 4.0}
    assert names(longest_first(runs, seconds)) == ["base", "long", "after", "short"]


def test_without_known_seconds_runs_are_begun_as_in_the_suite_but_for_those_that_others_wait_for() -> None:
    runs = toy_queue(("a", None, 1), ("b", None, 1), ("base", None, 1), ("after", "base", 1))
    assert names(longest_first(runs, {})) == ["base", "a", "b", "after"]


def test_a_run_on_all_threads_is_begun_alone_so_that_its_bits_are_those_of_one_after_the_other(folder: Path) -> None:
    suite, workspace = opened(folder, "here", "downstream.tuned.threads=0")
    tuned, white = (
        open_run(suite, suite.run(f"downstream/{name}/scratch/seed0"), workspace) for name in ("tuned", "white")
    )
    queue = Queue(suite, [tuned, white], threads=2, all_threads=2)
    assert queue.take([], 0.0) is tuned
    assert queue.take([tuned], 0.0) is None
    assert queue.take([], 0.0) is white


def test_of_two_names_of_one_run_only_one_is_at_work(folder: Path) -> None:
    text = (folder / "toy.toml").read_text()
    (folder / "toy.toml").write_text(text.replace("[pretrain.mae]\ncontext_weight = 0.0", "[pretrain.mae]"))
    suite, workspace = opened(folder, "here")
    lut, mae = (open_run(suite, planned, workspace) for planned in suite.runs[:2])
    assert lut.identity == mae.identity
    assert Queue(suite, [mae], threads=2, all_threads=2).take([lut], 0.0) is None
    run_suite(suite, ["pretrain"], [], workspace, jobs=2)
    assert len(list(folder.glob("here/runs/toy/pretrain/*/seed0/*/encoder.safetensors"))) == 1


def test_a_run_whose_features_another_may_be_encoding_comes_after_others(folder: Path) -> None:
    suite, workspace = opened(folder, "here")
    near, white, tuned = (
        open_run(suite, suite.run(f"downstream/{name}/scratch/seed0"), workspace) for name in ("near", "white", "tuned")
    )
    queue = Queue(suite, [white, tuned], threads=2, all_threads=2)
    assert queue.take([near], 0.0) is tuned
    assert queue.take([near], 0.0) is white


# What is seen


def test_a_terminal_shows_a_line_for_every_run_and_what_is_said_above(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(force_terminal=True, file=StringIO(), width=120, color_system=None, markup=False)
    for module in ("lutbench.progress", "lutbench.jobs.view"):
        monkeypatch.setattr(f"{module}.console", screen)
    with View(3) as view:
        view.begin("pretrain/lut/seed0")
        view.begin("pretrain/mae/seed0")
        view.step("pretrain/lut/seed0", Step("pretrain/lut/seed0", 0, 40, ""))
        view.step("pretrain/lut/seed0", Step("pretrain/lut/seed0", 10, 40, "total 0.5"))
        view.line(Line("pretrain/mae/seed0: [half] done", error=False))
        view.step("pretrain/mae/seed0", Step("pretrain/mae/seed0 pictures", 3, 7, ""))
        view.step("pretrain/mae/seed0", Step("", 0, 0, ""))
        view._live.refresh()
        assert "/7" not in screen.file.getvalue().rpartition("pretrain/mae/seed0")[2]  # type: ignore[attr-defined]
        view.end("pretrain/mae/seed0", done=True)
        with view.paused():
            pass
        shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "pretrain/mae/seed0: [half] done\n" in shown
    (last,) = (line for line in shown.splitlines()[-2:] if "pretrain/lut/seed0" in line)
    assert "10/40" in last
    assert "total 0.5" in last
    assert "1/3" in shown


# Loader processes


def test_runs_side_by_side_share_the_cores_among_their_loader_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base.os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    before, of_knn = SUITE.split("[defaults.knn]")
    of_knn = of_knn.replace("workers = 0\n", "", 1).replace('kind = "knn"\n', 'kind = "knn"\nworkers = 1\n', 1)
    (folder / "toy.toml").write_text(f"{before}[defaults.knn]{of_knn}")
    for home, jobs, expected in (("one", 1, 6), ("two", 2, 3)):
        suite, workspace = opened(folder, home)
        run_suite(suite, [], ["near/scratch", "white/scratch"], workspace, jobs=jobs)
        found = records(folder / home)
        assert found["downstream/white/scratch/seed0"]["recipe"]["workers"] == expected
        assert found["downstream/near/scratch/seed0"]["recipe"]["workers"] == 1, "the suite says so"
    identities = {records(folder / home)["downstream/white/scratch/seed0"]["identity"] for home in ("one", "two")}
    assert len(identities) == 1


# nox


@pytest.mark.parametrize(
    ("given", "cores", "expected"),
    [
        (["tiny"], 2, ["--jobs", "2"]),
        (["tiny", "--runs", "here"], 8, ["--jobs", "2"]),
        (["tiny"], 1, []),
        (["tiny", "--jobs", "1"], 8, []),
        (["tiny", "--jobs=4"], 8, []),
        (["small", "--data-root", "here"], 8, []),
    ],
)
def test_nox_runs_tiny_on_two_cores(
    given: list[str], cores: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nox", MagicMock())
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert runpy.run_path(str(ROOT / "noxfile.py"))["jobs_option"](given) == expected
