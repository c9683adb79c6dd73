"""Nothing is lost when a command is stopped: real processes, and real signals as terminals, launchers and schedulers send them."""

import functools
import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from commands import Command, paragraph_of, start, wait_for
from PIL import Image
from processes import children_of, lives
from toy_runs import CLASSES, NARROW, SCENES, SCRATCH, TOY, in_processes, the_run, write_images, write_scenes

from lutbench.checkpoint_names import newest_step
from lutbench.interruption import Interrupted, hearing, interrupt
from lutbench.run import Run
from lutbench.train.processes import accelerator
from pretrain.train import perform

SUITE = f"""{TOY}
[defaults.robustness]
workers = 0
threads = 1
[pretrain.lut]
data = "toy"
encoder = "toy"
epochs = 10
warmup_epochs = 1
batch = 8
base_lr = 1e-3
{NARROW}
save_every = 10000
log_every = 10000
workers = 1
threads = 1
{SCRATCH}
[downstream.knn]
data = "toy"
kind = "knn"
neighbours = 3
workers = 1
threads = 1
eval_batch = 4
[downstream.tune]
data = "toy"
kind = "finetune"
epochs = 1
warmup_epochs = 0
batch = 8
mixup = 0.0
cutmix = 0.0
workers = 0
threads = 1
[shifted.broken]
path = "broken"
kind = "corruptions"
[robustness.shift]
tasks = ["tune"]
sets = ["broken"]
"""
"""Losses are read once, at the end, over all steps; no checkpoint is saved before."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path, train=60, val=20)
    (tmp_path / "toy.toml").write_text(SUITE)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an uninterrupted pre-training makes."""
    folder = tmp_path_factory.mktemp("whole")
    write_images(folder, train=60, val=20)
    (folder / "toy.toml").write_text(SUITE)
    run = pretraining(folder, "whole")
    perform(run)
    return made(run)


def pretraining(folder: Path, home: str, *changes: str) -> Run:
    run = the_run(folder, home, *changes)
    run.start()
    return run


def in_its_loop(folder: Path, home: str) -> Callable[[], Any]:
    return lambda: list((folder / home).glob("runs/toy/pretrain/lut/seed0/*/tensorboard/*"))


def made(run: Run) -> dict[str, Any]:
    return made_below(run.workspace.results)


def made_below(folder: Path) -> dict[str, Any]:
    record = json.loads(next(folder.rglob("seed0.json")).read_text())
    losses = {name: value for name, value in record["extra"].items() if name != "waiting_for_data"}
    return {"weights": record["checkpoint"], "measurements": record["measurements"], "losses": losses}


# Training


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ([signal.SIGINT, signal.SIGTERM], 130),  # as nox does
        ([signal.SIGTERM, signal.SIGTERM], 143),  # of a scheduler, and of what it has started
        ([signal.SIGHUP], 129),
        ([signal.SIGUSR1], 138),
        ([signal.SIGUSR2, signal.SIGTERM], 140),
    ],
)
def test_a_signal_is_heard_at_the_next_step_and_the_run_goes_on_to_the_same_bits_and_losses(
    folder: Path, whole: dict[str, Any], sent: list[int], status: int
) -> None:
    process = start(folder, "here", "--only", "pretrain/lut")
    wait_for(in_its_loop(folder, "here"), process)
    for number in sent:
        os.killpg(process.pid, number)
    told = paragraph_of(process)
    assert process.returncode == status
    found = re.match(
        rf"lutbench: Stopped by {signal.Signals(sent[0]).name}\. pretrain/lut/seed0 stopped at step (\d+) of 225, "
        "which is saved",
        told,
    )
    assert found, told
    run = pretraining(folder, "here")
    assert newest_step(run.checkpoints) == int(found[1]) < 225
    perform(run)
    assert made(run) == whole


def test_a_sigterm_to_every_process_loaders_included_saves_too(folder: Path) -> None:
    """As schedulers send it that know of a job's processes one by one."""
    process = start(folder, "here", "--only", "pretrain/lut")
    wait_for(in_its_loop(folder, "here"), process)

    def loaders() -> list[int]:
        """Those that have left the process group."""
        return [worker for worker in children_of(process.pid) if os.getpgid(worker) == worker]

    wait_for(loaders, process)
    workers = loaders()
    for number in (*workers, process.pid):
        os.kill(number, signal.SIGTERM)
    assert re.search(r"pretrain/lut/seed0 stopped at step \d+ of 225, which is saved", paragraph_of(process))
    assert process.returncode == 143
    assert not [worker for worker in workers if psutil.pid_exists(worker)], "they end with their parent"


def test_a_second_ctrl_c_stops_at_once_and_a_sigterm_after_the_first_does_not(folder: Path) -> None:
    """The one step of this run takes some seconds."""
    options = ("--only", "pretrain/lut", "--set", "pretrain.lut.batch=7200", "--set", "pretrain.lut.epochs=20")
    process = start(folder, "here", *options)
    wait_for(in_its_loop(folder, "here"), process)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(process.pid, number)
        time.sleep(0.3)
        assert process.returncode is None
    os.killpg(process.pid, signal.SIGINT)
    assert "pretrain/lut/seed0 has saved nothing yet" in paragraph_of(process)
    assert process.returncode == 130
    assert not list(folder.glob("here/runs/**/step-*"))


def test_a_signal_that_is_ignored_stays_ignored(folder: Path) -> None:
    """As nohup has it."""
    options = ("--only", "pretrain/lut", "--set", "pretrain.lut.epochs=4")
    process = start(folder, "here", *options, ignored=[signal.SIGHUP])
    wait_for(in_its_loop(folder, "here"), process)
    os.killpg(process.pid, signal.SIGHUP)
    assert process.communicate()[1] == ""
    assert process.returncode == 0


def test_of_two_processes_one_hears_a_signal_and_both_stop_at_the_same_step(folder: Path) -> None:
    changes = ("pretrain.lut.epochs=10", "pretrain.lut.batch=60", "pretrain.lut.workers=0", "pretrain.lut.log_every=1")

    def stop_this_process() -> None:
        while signal.getsignal(signal.SIGTERM) == signal.SIG_DFL or not in_its_loop(folder, "here")():
            time.sleep(0.01)  # until both processes are in their loops
        os.kill(os.getpid(), signal.SIGTERM)

    def trained(home: str, interrupted: bool) -> tuple[int, int] | None:
        run = pretraining(folder, home, *changes)
        if interrupted and accelerator().process_index == 1:
            threading.Thread(target=stop_this_process, daemon=True).start()
        try:
            perform(run)
        except Interrupted as stop:
            found = re.search(r"at step (\d+) of 30", str(stop))
            assert found
            return stop.number, int(found[1])
        accelerator().wait_for_everyone()
        return None

    in_processes(lambda: trained("whole", interrupted=False), 2)
    first, second = in_processes(lambda: trained("here", interrupted=True), 2)
    assert first == second
    assert first[0] == signal.SIGTERM
    run, whole = (pretraining(folder, home, *changes) for home in ("here", "whole"))
    assert newest_step(run.checkpoints) == first[1] < 30
    in_processes(lambda: trained("here", interrupted=False), 2)
    assert made(run) == made(whole)


def test_after_its_last_step_a_run_is_saved_so_that_its_evaluation_can_be_stopped(folder: Path) -> None:
    options = ("--only", "tune", "--stage", "downstream", "--set", "downstream.tune.eval_batch=1")
    process = start(folder, "here", *options)
    wait_for(lambda: list(folder.glob("here/runs/**/step-00000023")), process)
    os.killpg(process.pid, signal.SIGINT)
    assert re.search(r"downstream/tune/scratch/seed0 (is resumable|stopped) at step 23", paragraph_of(process))
    assert process.returncode == 130
    again = start(folder, "here", *options)
    assert "resumes from step 23" in again.communicate()[0]
    assert again.returncode == 0


def test_an_evaluation_on_the_way_is_stopped_at_once_and_the_run_goes_on_from_it_to_the_same_bits(folder: Path) -> None:
    """Each of its two, before each of which a checkpoint is saved, takes far longer than a step."""
    for number in range(600):
        (folder / f"toy/val/amber/link{number}.png").hardlink_to(folder / "toy/val/amber/0.png")
    options = ("--only", "tune", "--stage", "downstream", "--set", "downstream.tune.eval_batch=1")
    options += ("--set", "downstream.tune.epochs=3", "--set", "downstream.tune.workers=2")
    whole = start(folder, "whole", *options)
    options += ("--set", "downstream.tune.eval_every=1")
    for step in (22, 45):
        process = start(folder, "here", *options)
        wait_for(lambda saved=step: list(folder.glob(f"here/runs/**/step-{saved:08d}")), process)  # type: ignore[misc]
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
        assert f"downstream/tune/scratch/seed0 is resumable at step {step}; " in paragraph_of(process)
        assert process.returncode == 130
    again = start(folder, "here", *options)
    assert "resumes from step 45" in again.communicate()[0]
    assert whole.wait() == again.returncode == 0
    assert made_below(folder / "here") == made_below(folder / "whole")


EVALUATED = f"{SCENES}workers = 2\nthreads = 1\nval_every = 4\n"


@pytest.fixture(scope="module")
def whole_segmentation(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an uninterrupted segmentation makes that is evaluated on the way."""
    folder = tmp_path_factory.mktemp("segmentation")
    write_scenes(folder, val=50)
    (folder / "toy.toml").write_text(EVALUATED)
    assert start(folder, "whole").wait() == 0
    return made_below(folder / "whole")


def test_mmsegmentations_evaluation_on_the_way_is_stopped_at_once_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, whole_segmentation: dict[str, Any]
) -> None:
    write_scenes(tmp_path, val=50)
    (tmp_path / "toy.toml").write_text(EVALUATED)
    for step, sent in ((4, signal.SIGINT), (8, signal.SIGTERM)):
        stop_evaluation(tmp_path, step, after=0.3, sent=sent, loaders=4)  # two of training, and two of evaluation
    again = start(tmp_path, "here")
    assert "resumes from step 8" in again.communicate()[0]
    assert again.returncode == 0
    assert made_below(tmp_path / "here") == whole_segmentation


@pytest.mark.parametrize("settings", ["", "tta = true"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_mmsegmentations_evaluation_at_the_end_is_stopped_at_once_with_its_workers(
    tmp_path: Path, settings: str, sent: signal.Signals
) -> None:
    """Without settings at the moment when its workers are started."""
    write_scenes(tmp_path, val=100)
    (tmp_path / "toy.toml").write_text(f"{SCENES}workers = 2\nthreads = 1\n{settings}\n")
    workers = stop_evaluation(tmp_path, step=12, after=0.3 if settings else 0.0, sent=sent)
    deadline = time.monotonic() + 10
    while any(map(lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(lives, workers))
    assert not settings or workers, "the evaluation had begun"


def stop_evaluation(folder: Path, step: int, after: float, sent: signal.Signals, loaders: int = 0) -> list[int]:
    """Stop a segmentation so many seconds after it has saved a step and has so many loaders, before the evaluation has ended.

    Return the processes of its loaders.
    """
    process = start(folder, "here")
    wait_for(lambda: list(folder.glob(f"here/runs/**/step-{step:08d}.json")), process)
    wait_for(lambda: len(children_of(process.pid)) >= loaders, process)
    time.sleep(after)
    workers = children_of(process.pid)
    os.killpg(process.pid, sent)
    assert f"downstream/task/scratch/seed0 is resumable at step {step}; " in paragraph_of(process)
    assert process.returncode == 128 + sent
    return workers


def test_what_a_process_does_after_an_interruption_is_stopped_by_a_first_signal_again() -> None:
    """As in a notebook."""
    heard: list[tuple[int, bool]] = []
    for _ in range(2):
        with hearing(lambda *signal_and_again: heard.append(signal_and_again)):
            with hearing(lambda *signal_and_again: heard.append(signal_and_again)):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGUSR1)  # follows the first: nobody asked twice
    assert heard == [(signal.SIGTERM, False)] * 2


def test_a_signal_that_comes_while_a_lock_is_taken_leaves_it_free() -> None:
    """As a queue's is, for which other threads wait."""
    lock = threading.Lock()
    lock.acquire()
    signalled = functools.partial(signal.raise_signal, signal.SIGTERM)  # comes as soon as it is locked
    methods = {
        "acquire": lock.acquire,
        "release": lock.release,
        "__enter__": signalled,
        "__exit__": lock.__exit__,
        "locked": lock.locked,
    }

    def take() -> None:
        with threading.Condition(SimpleNamespace(**methods)):  # type: ignore[arg-type]
            pass
        time.sleep(600)

    with pytest.raises(Interrupted), hearing(interrupt):
        take()
    assert not lock.locked()


def test_an_interruption_that_a_library_catches_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lutbench.interruption.INSIST", 0.01)

    def swallowed() -> None:
        with suppress(BaseException):  # as libraries do
            signal.raise_signal(signal.SIGTERM)
        time.sleep(600)

    with pytest.raises(Interrupted) as stopped, hearing(interrupt):
        swallowed()
    assert stopped.value.number == signal.SIGTERM


def test_what_has_to_be_done_after_an_interruption_is_not_interrupted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lutbench.interruption.INSIST", 0.01)
    done: list[str] = []

    @contextmanager
    def saving() -> Iterator[None]:
        try:
            yield
        finally:
            with suppress(KeyError):
                raise KeyError  # which is handled meanwhile
            time.sleep(0.1)
            done.append("saved")

    def work() -> None:
        try:
            with saving():
                signal.raise_signal(signal.SIGTERM)
        except Interrupted as stop:
            time.sleep(0.1)
            raise Interrupted(stop.number, "kept") from stop
        finally:
            time.sleep(0.1)
            done.append("ended")

    with pytest.raises(Interrupted), hearing(interrupt):
        work()
    assert done == ["saved", "ended"]


def test_a_signal_that_the_main_thread_blocks_waits_though_another_thread_receives_it() -> None:
    """As while the processes of a loader start: half a loader cannot be ended, and torch's threads receive signals too."""
    heard: list[int] = []
    begun, ended = threading.Event(), threading.Event()

    def receive() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        begun.set()
        ended.wait()  # meanwhile this thread receives all that are sent again

    thread = threading.Thread(target=receive)
    with hearing(lambda number, again: heard.append(number)):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        thread.start()
        begun.wait()
        time.sleep(0.1)
        early = list(heard)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        limit = time.monotonic() + 60
        while not heard and time.monotonic() < limit:
            time.sleep(0.01)
        ended.set()
        thread.join()
    assert not early
    assert heard == [signal.SIGTERM]


@pytest.mark.skipif(not hasattr(logging, "_releaseLock"), reason="this Python runs no code of its own around a fork")
def test_a_signal_that_comes_while_a_process_is_forked_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the processes of a loader are, which is when Python takes the lock of logging and releases it."""
    signalled = functools.partial(signal.raise_signal, signal.SIGTERM)
    methods = {"acquire": lambda: None, "release": signalled, "_at_fork_reinit": lambda: None}

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(60)

    with monkeypatch.context() as patched:
        patched.setattr(logging, "_lock", SimpleNamespace(**methods))
        with pytest.raises(Interrupted), hearing(interrupt):
            fork()


# Where nothing is trained


def test_a_probe_that_is_stopped_says_that_nothing_is_kept(folder: Path) -> None:
    process = start(folder, "here", "--only", "knn")
    wait_for(lambda: list(folder.glob("here/runs/toy/downstream/knn/scratch/seed0/*/run.json")), process)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    assert "downstream/knn/scratch/seed0 has saved nothing yet" in paragraph_of(process)
    assert process.returncode == 130
    assert not list(folder.glob("here/results/**/*.json"))


def test_a_measurement_that_is_stopped_keeps_its_finished_conditions(folder: Path) -> None:
    generator = np.random.default_rng(1)
    for severity in range(1, 6):
        for name in CLASSES:
            place = folder / "broken/dark" / str(severity) / name
            place.mkdir(parents=True)
            for number in range(60):
                Image.fromarray(generator.integers(0, 200, (20, 20, 3), np.uint8)).save(place / f"{number}.png")
    options = ("--only", "tune", "--only", "shift", "--set", "defaults.robustness.eval_batch=1")
    process = start(folder, "here", *options)
    parts = "here/runs/toy/robustness/**/cells/*.npz"
    wait_for(lambda: list(folder.glob(parts)), process)
    os.killpg(process.pid, signal.SIGTERM)
    told = paragraph_of(process)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob(parts)}
    assert f"is resumable after {len(kept)} part" in told
    assert process.returncode == 143
    assert len(kept) < 5
    again = start(folder, "here", *options)
    assert again.wait() == 0
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in folder.glob(parts)}.items()


def test_a_cache_that_is_being_made_says_how_much_of_it_is_kept(folder: Path) -> None:
    big = folder / "big.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (150, 150, 3), np.uint8)).save(big)
    for number in range(2100):
        (folder / f"toy/train/amber/link{number}.png").hardlink_to(big)
    process = start(folder, "here", "--only", "pretrain/lut", "--set", "pretrain.lut.cache=true")
    wait_for(lambda: list(folder.glob(".lutbench/cache/*/00000.json")), process)
    os.killpg(process.pid, signal.SIGINT)
    assert re.search(r"[1-4] of 5 files of the cache of toy are finished and stay on disk\.", paragraph_of(process))
    assert process.returncode == 130


def test_a_set_that_is_being_built_leaves_nothing_half_built(tmp_path: Path) -> None:
    process = Command("data", "prepare", "photographs", "--data-root", str(tmp_path))
    wait_for((tmp_path / ".photographs.partial").is_dir, process)
    os.killpg(process.pid, signal.SIGINT)
    assert "photographs was being built; the unfinished copy is removed." in paragraph_of(process)
    assert process.returncode == 130
    assert {path.name for path in tmp_path.iterdir()} <= {".photographs.lock"}
