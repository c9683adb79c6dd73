"""Which images make a step depends on the seed and the step alone."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from image_files import tree
from torch import Tensor
from torch.utils.data import Dataset

from lutbench.data.images import open_dataset
from lutbench.errors import UserError
from lutbench.recipes.base import DataRecipe
from lutbench.train.batches import Schedule, stream
from lutbench.train.loader import Loader


def test_every_image_is_seen_once_per_epoch_and_no_step_is_partial() -> None:
    schedule = Schedule(images=10, epochs=3, batch=4, micro_batch=4, seed=0)
    keys = [key for step in range(schedule.steps) for key in schedule.batch_keys(step)]
    assert schedule.steps == 8
    assert len(keys) == 32
    for epoch in range(3):
        assert sorted(index for e, index in keys if e == epoch) == list(range(10))


def test_fewer_images_than_a_batch_still_make_a_step() -> None:
    schedule = Schedule(images=3, epochs=1, batch=8, micro_batch=8, seed=0)
    assert schedule.steps == 1
    assert {index for _, index in schedule.batch_keys(0)} == {0, 1, 2}


def test_an_image_is_seen_in_another_way_in_every_epoch(tmp_path: Path) -> None:
    tree(tmp_path / "set" / "train")
    images = open_dataset(DataRecipe(path="set"), "train", tmp_path)
    schedule = Schedule(images=9, epochs=2, batch=9, micro_batch=9, seed=0)
    first, second = (
        dict(zip(part["index"].tolist(), part["draw"].tolist(), strict=True))
        for part in stream(images, lambda image: {"draw": torch.rand(())}, schedule)
    )
    assert first.keys() == second.keys()
    assert len({*first.values(), *second.values()}) == 18


def test_another_seed_gives_another_order() -> None:
    orders = [Schedule(images=50, epochs=1, batch=50, micro_batch=50, seed=s).batch_keys(0) for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(("micro_batch", "processes"), [(12, 1), (12, 2), (6, 1), (4, 2), (12, 3)])
def test_however_a_batch_is_cut_a_flip_pairs_the_same_images(micro_batch: int, processes: int) -> None:
    pairs, seen = set(), []
    for rank in range(processes):
        schedule = Schedule(24, 1, 12, micro_batch, 0, rank, processes)
        for accumulated in range(schedule.micro_batches):
            rows = schedule.rows(accumulated)
            seen += rows
            pairs |= {frozenset(pair) for pair in zip(rows, rows[::-1], strict=True)}
    assert sorted(seen) == list(range(12))
    assert pairs == {frozenset((k, k + 1)) for k in range(0, 12, 2)}


def test_passes_that_do_not_divide_over_the_processes_are_refused() -> None:
    with pytest.raises(UserError, match="cannot be divided among 4 processes"):
        Schedule(images=10, epochs=1, batch=6, micro_batch=6, seed=0, rank=0, processes=4)


class Slow(Dataset[Tensor]):
    """Images of which the last never comes in time."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(60 if index == 2 else 0)
        return torch.zeros(1)


def test_a_batch_that_does_not_come_ends_in_an_error_that_says_so() -> None:
    with pytest.raises(UserError, match=r"No batch came from the 1 loader processes in 2 seconds\."):
        list(Loader(Slow(), patience=2, num_workers=1))


FEW_FILES = """
import resource, torch
from torch.utils.data import TensorDataset
from lutbench.system_errors import explanation
from lutbench.train.loader import Loader

resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
loader = Loader(TensorDataset(*torch.zeros(4, 64, 100)), batch_size=4, num_workers=2)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64, flush=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
try:
    kept = list(loader)
except Exception as error:
    print(explanation(error)[0])
"""


def test_a_loader_process_that_may_open_no_more_files_says_so_and_is_not_waited_for() -> None:
    command = [sys.executable, "-c", FEW_FILES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.split("\n")[:2] == ["True", "Too many files are open"]
