"""Batches are put together from units of bounded size; loader processes hear no signal, and end with the process that started them."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import tree
from PIL import Image
from processes import lives
from torch import Tensor
from torch.utils.data import Dataset

from lutbench.data.images import ImageDataset, open_dataset
from lutbench.interruption import SIGNALS
from lutbench.recipes import base
from lutbench.recipes.base import DataRecipe, default_workers
from lutbench.train import loader
from lutbench.train.batches import Schedule, stream
from lutbench.train.loader import IN_FLIGHT, UNIT, Flight, Loader, cut, loaded, loader_options

VIEWS = 2 * 3 * 224 * 224
"""Bytes of the two views of an image."""


@pytest.fixture
def images(tmp_path: Path) -> ImageDataset:
    tree(tmp_path / "set" / "train")
    return open_dataset(DataRecipe(path="set"), "train", tmp_path)


def look(image: Image.Image) -> dict[str, Tensor]:
    return {"pixels": torch.from_numpy(np.array(image.resize((8, 8)))), "draw": torch.rand(3)}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("batch", [1, 8, 64, 100, 128, 1000])
@pytest.mark.parametrize("workers", [1, 10, 190])
@pytest.mark.parametrize("sample", [6_000, VIEWS, 30_000_000])
def test_no_more_bytes_are_under_way_than_allowed_whatever_the_batch(batch: int, workers: int, sample: int) -> None:
    flight = Flight.of(batch, sample, workers)
    assert 1 <= flight.unit <= min(UNIT, batch)
    assert flight.ahead >= 1
    assert workers * flight.unit * flight.ahead * sample <= max(IN_FLIGHT, workers * sample)


@pytest.mark.parametrize("batch", [1_000, 46_000_000, 2**30, 2**32])
@pytest.mark.parametrize("workers", [1, 8, 32])
def test_no_more_bytes_of_whole_batches_are_under_way_than_allowed(batch: int, workers: int) -> None:
    options = loader_options(workers, batch)
    assert 1 <= options["num_workers"] <= workers
    assert 1 <= options["prefetch_factor"] <= 2
    assert options["num_workers"] * options["prefetch_factor"] * batch <= max(IN_FLIGHT, batch)


def test_whole_batches_that_are_small_are_prefetched_two_for_each_worker() -> None:
    assert loader_options(32, 1_000) | {"pin_memory": False} == {
        "num_workers": 32,
        "prefetch_factor": 2,
        "pin_memory": False,
    }
    assert loader_options(0, 1_000)["num_workers"] == 0
    assert "prefetch_factor" not in loader_options(0, 1_000)


def test_a_batch_is_cut_into_few_units_of_nearly_one_size() -> None:
    assert [len(unit) for unit in cut(range(128), 64)] == [64, 64]
    assert [len(unit) for unit in cut(range(130), 64)] == [43, 43, 44]
    assert [item for unit in cut(range(130), 64) for item in unit] == list(range(130))
    assert cut([5], 64) == [[5]]


@pytest.mark.parametrize("unit", [1, 2, 3, 64])
def test_batches_of_units_are_those_made_in_this_process(
    images: ImageDataset, monkeypatch: pytest.MonkeyPatch, unit: int
) -> None:
    schedule = Schedule(images=len(images), epochs=4, batch=8, micro_batch=4, seed=0)
    expected = list(stream(images, look, schedule))
    monkeypatch.setattr(loader, "UNIT", unit)
    found = list(stream(images, look, schedule, workers=2))
    assert len(found) == len(expected) == schedule.steps * 2
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_a_stream_goes_on_in_the_middle_of_an_epoch(images: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule(images=len(images), epochs=4, batch=4, micro_batch=4, seed=0)
    monkeypatch.setattr(loader, "UNIT", 3)
    whole = list(stream(images, look, schedule))
    for start in (1, 2, 5):
        rest = list(stream(images, look, schedule, start, workers=1))
        assert len(rest) == len(whole) - start
        assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


class Counted(Dataset[Tensor]):
    """Samples of a kilobyte; counts those that were begun."""

    def __init__(self) -> None:
        self.begun = multiprocessing.Value("i", 0)

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> Tensor:
        with self.begun.get_lock():
            self.begun.value += 1
        return torch.full((1024,), index % 256, dtype=torch.uint8)


def test_a_loop_that_does_not_come_for_its_batches_stops_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "IN_FLIGHT", 96 * 1024)
    samples = Counted()
    batches = [list(range(first, first + 32)) for first in range(0, 9600, 32)]
    flight = Flight.of(32, 1024, workers=2)
    coming = loaded(samples, batches, 2, flight)
    taken = 0
    for number in range(3):
        assert torch.equal(next(coming)[:, 0], torch.arange(32 * number, 32 * number + 32, dtype=torch.uint8))
        taken += 32
    begun = -1
    while begun != samples.begun.value:  # until nothing happens any more
        begun = samples.begun.value
        time.sleep(0.5)
    assert taken < begun <= taken + 96, f"{begun - taken} kilobytes are held, of 96 allowed"


def test_an_error_in_a_loader_process_is_told_in_this_one(images: ImageDataset, tmp_path: Path) -> None:
    broken = next((tmp_path / "set").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:40])
    schedule = Schedule(images=len(images), epochs=1, batch=len(images), micro_batch=len(images), seed=0)
    with pytest.raises(Exception, match=f"{broken.name} cannot be decoded"):
        list(stream(images, look, schedule, workers=2))


class Dropped:
    """Garbage of this process: a cycle, which notes where it is finalised."""

    def __init__(self, notes: Path) -> None:
        self.itself, self.notes = self, notes

    def __del__(self) -> None:
        (self.notes / str(os.getpid())).touch()


class Collecting(Dataset[int]):
    """A sample that collects garbage."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        gc.collect()
        return os.getpid()


def test_loader_processes_finalise_nothing_that_this_process_dropped(tmp_path: Path) -> None:
    gc.disable()
    try:
        Dropped(tmp_path)
        workers = {int(batch) for batch in Loader(Collecting(), batch_size=None, num_workers=2)}
        assert len(workers - {os.getpid()}) == 2
        assert not list(tmp_path.iterdir())
        gc.collect()
        assert [file.name for file in tmp_path.iterdir()] == [str(os.getpid())]
    finally:
        gc.enable()


def test_the_garbage_collector_closes_no_file_that_the_end_of_a_loader_closes_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two workers one has nothing to load, so that nothing was put into its queue before its end."""
    closed = Counter[int]()
    close = Connection._close  # type: ignore[attr-defined]

    def slowly(connection: Any) -> None:
        closed[id(connection)] += 1
        if closed[id(connection)] == 1:
            close(connection)
        time.sleep(0.2 if threading.current_thread() is threading.main_thread() else 2)

    coming = loaded(Pairs(), [[(0, 0), (0, 1)]], 2, Flight(2, 1))
    assert next(coming).tolist() == [0, 1]
    ends = {thread.name for thread in threading.enumerate()}
    monkeypatch.setattr(Connection, "_close", slowly)
    itself: list[Any] = [coming]
    itself.append(itself)
    del coming, itself
    gc.collect()
    assert wait_for(lambda: {thread.name for thread in threading.enumerate()} < ends)
    assert max(closed.values()) == 1
    assert len(closed) >= 6, "both ends of three queues"


class Pairs(Dataset[int]):
    """The second of every key."""

    def __getitem__(self, key: tuple[int, int]) -> int:
        return key[1]


class Slowly(Dataset[Tensor]):
    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(0.02)
        return torch.tensor([index, os.getpid()])


def test_signals_sent_to_loader_processes_do_not_stop_them() -> None:
    batches = iter(Loader(Slowly(), patience=60, batch_size=1, num_workers=2))
    found = [next(batches), next(batches)]
    workers = {int(batch[0, 1]) for batch in found}
    assert len(workers - {os.getpid()}) == 2
    for number in SIGNALS:  # by another process than their parent, as a scheduler does
        subprocess.run(["/bin/sh", "-c", f"kill -{int(number)} {' '.join(map(str, workers))}"], check=True)
    found += list(batches)
    assert [int(batch[0, 0]) for batch in found] == list(range(60))


@pytest.mark.parametrize("blocked", [set(), {signal.SIGHUP}])
def test_starting_loader_processes_leaves_this_processs_signals_as_they_were(blocked: set[signal.Signals]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        batches = iter(Loader(Slowly(), batch_size=1, num_workers=1))
        next(batches)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_loader_process_that_is_given_up_ends_at_once_and_without_an_error() -> None:
    batches = Loader(Endless(), batch_size=1, num_workers=1)
    began = time.monotonic()
    coming = iter(batches)
    worker = int(next(coming))
    (process,) = [child for child in multiprocessing.active_children() if child.pid == worker]
    process.terminate()
    process.join(20)
    assert process.exitcode == 0
    assert time.monotonic() - began < 300
    with suppress(RuntimeError):  # which torch raises for a worker that is missed
        coming.close()


class Endless(Dataset[Tensor]):
    """Samples of which the second is never made."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(600 * index)
        return torch.tensor([os.getpid()])


ABANDONED = """
import os, signal, time, torch
from torch.utils.data import Dataset
from lutbench.train.loader import Loader

class Endless(Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, index):
        time.sleep(600 if index > 3 else 0)
        return torch.tensor([os.getpid()])

batches = iter(Loader(Endless(), batch_size=1, num_workers=2))
print(int(next(batches)), int(next(batches)), flush=True)
{end}
"""


def wait_for(true: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def shared_memory() -> set[Path]:
    return set(Path("/dev/shm").glob("torch_*"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's own watch ends them, some seconds later")
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit(3)", "os._exit(3)"])
def test_loader_processes_end_with_the_process_that_started_them_and_leave_nothing(end: str) -> None:
    """However it ends, and though each of them is in the middle of an image."""
    before = shared_memory()
    command = [sys.executable, "-c", ABANDONED.format(end=end)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(number) for number in process.stdout.readline().split()]
        assert len(workers) == 2
        process.wait(60)
    assert wait_for(lambda: all(not lives(worker) for worker in workers))
    assert shared_memory() <= before


def test_there_are_as_many_loader_processes_as_cores_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    found = []
    for processes in ("1", "8", "100"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        found.append(default_workers())
    assert found == [16, 2, 1]
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert default_workers() == 16
