"""Online k-NN is the task k-NN on the way, at every epoch that it should be, and the training knows nothing of it."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from snapshot_runs import SUITE, killed, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_runs import in_processes, opened, the_run, write_images

from lutbench.checkpoint_names import newest_step
from lutbench.errors import UserError
from lutbench.interruption import Interrupted
from lutbench.plan.costs import Rates, costs_of
from lutbench.plan.surveys import survey_all
from lutbench.record import read_records
from lutbench.run import Run
from lutbench.stages import run_suite
from lutbench.train.logger import TrainingLogger
from pretrain import online_knn, train
from pretrain.online_knn import METRIC, OnlineKnn
from pretrain.student import build_student

LUT = "pretrain.lut"
EVERY = tuple(f"{LUT}.{change}" for change in ("knn_every=2", "knn_neighbours=3"))
EPOCHS = [2, 4, 6]
"""The ends of which are steps 7, 14 and 20."""

NEAR = """
[downstream.near]
kind = "knn"
data = "toy"
neighbours = 3
methods = ["lut"]
workers = 0
threads = 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path)
    (tmp_path / "toy.toml").write_text(SUITE + NEAR)
    harder(tmp_path)
    return tmp_path


def harder(folder: Path) -> None:
    """Give the validation images of one class to another, so that not all answers are right."""
    for number in range(3):
        (folder / f"toy/val/amber/{number}.png").rename(folder / f"toy/val/blue/amber-{number}.png")


def curve(run: Run) -> dict[int, float]:
    """What the record has: top-1 by epoch."""
    record = read_records(run.workspace.results, "toy")["pretrain/lut/seed0"]
    epochs, top1 = record.array("online-knn-epoch"), record.array("online-knn-top-1")
    assert record.extra[METRIC] == top1[-1]
    assert len(set(epochs.tolist())) == len(epochs)
    return dict(zip(epochs.tolist(), top1.tolist(), strict=True))


def events(run: Run) -> dict[int, list[float]]:
    """What TensorBoard shows: the values at every step."""
    found = EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    shown: dict[int, list[float]] = {}
    for event in found.Scalars(METRIC):
        shown.setdefault(event.step, []).append(event.value)
    return shown


def teacher_of(run: Run) -> dict[str, torch.Tensor]:
    held = load_file(max(run.checkpoints.glob("step-*")) / "tensors.safetensors")
    return {key: tensor for key, tensor in held.items() if key.startswith("teacher.")}


def test_the_training_has_the_same_bits_with_and_without(folder: Path) -> None:
    without, run = the_run(folder, "without"), the_run(folder, "with", *EVERY)
    assert run.identity == without.identity
    assert trained(run) == trained(without)
    one, other = teacher_of(run), teacher_of(without)
    assert one.keys() == other.keys() != set()
    assert all(torch.equal(one[key], other[key]) for key in one), "its BatchNorm's statistics too"
    assert list(curve(run)) == EPOCHS
    assert not json.loads(next(without.workspace.results.rglob("seed0.json")).read_text())["attachments"]


def test_the_last_is_what_the_task_measures_on_the_exported_encoder(folder: Path) -> None:
    suite, workspace = opened(folder, "here", *EVERY)
    run_suite(suite, [], ["pretrain/lut", "near"], workspace)
    task = read_records(workspace.results, "toy")["downstream/near/lut/seed0"].measured("top-1")
    assert task is not None
    assert 30 < task.value < 100
    assert curve(the_run(folder, "here", *EVERY))[6] == pytest.approx(task.value)


def test_an_evaluation_leaves_modes_and_random_states_as_they_were(folder: Path) -> None:
    run = the_run(folder, "here", *EVERY, f"{LUT}.workers=1")
    run.start()
    student = build_student(run.recipe, run.seed).train()
    schedule = train.schedule_of(run.recipe, 30, run.seed)
    states: list[Any] = []
    extra_state: dict[str, Any] = {}
    with TrainingLogger(run, schedule, 0, extra_state, 8) as logger:
        online = OnlineKnn(run, schedule, extra_state)
        for done in (0, 7, 7, 8):
            before = {key: tensor.clone() for key, tensor in student.state_dict().items()}
            states.append((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()))  # noqa: NPY002
            online.measure(done, lambda: student.encoder, logger)
            assert all(module.training for module in student.modules())
            assert all(torch.equal(before[key], tensor) for key, tensor in student.state_dict().items())
            assert len(online.rows) == (done >= 7)
    assert all(state == states[0] for state in states)
    assert extra_state["knn"] == online.rows


def test_as_many_images_as_are_asked_for_are_taken(folder: Path) -> None:
    run = the_run(folder, "here", *EVERY, f"{LUT}.knn_images=6")
    trained(run)
    fewer = curve(run)
    assert all(round(value * 6 / 100, 9).is_integer() for value in fewer.values()), "of six images"


def in_the_second(patched: pytest.MonkeyPatch, kill: Callable[[], None]) -> None:
    """Killed while step 14 is evaluated, which is saved."""
    vote, calls = online_knn.knn_classify, []

    def classify(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            kill()
        return vote(*arguments)

    patched.setattr(online_knn, "knn_classify", classify)


def behind_the_second(patched: pytest.MonkeyPatch, kill: Callable[[], None]) -> None:
    """Killed when step 14 has been evaluated, and nothing was saved since."""
    measure = OnlineKnn.measure

    def then_kill(self: OnlineKnn, done: int, *arguments: Any) -> None:
        measure(self, done, *arguments)
        if done == 15:
            kill()

    patched.setattr(OnlineKnn, "measure", then_kill)


def in_the_last(patched: pytest.MonkeyPatch, kill: Callable[[], None]) -> None:
    """Killed while the end is evaluated: no step is left to do."""
    vote, calls = online_knn.knn_classify, []

    def classify(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            kill()
        return vote(*arguments)

    patched.setattr(online_knn, "knn_classify", classify)


@pytest.mark.parametrize(("where", "saved"), [(in_the_second, 14), (behind_the_second, 14), (in_the_last, 20)])
def test_a_run_killed_around_an_evaluation_has_every_epoch_once(
    folder: Path, where: Callable[..., None], saved: int
) -> None:
    whole, run = the_run(folder, "whole", *EVERY), the_run(folder, "killed", *EVERY)
    expected = trained(whole)
    killed(run, where)
    assert newest_step(run.checkpoints) == saved
    time.sleep(1)  # TensorBoard orders files by the second that they begin in, and then by process
    assert trained(run) == expected
    assert list(curve(run)) == EPOCHS
    assert curve(run) == curve(whole)
    assert events(run) == events(whole)
    assert {step: len(values) for step, values in events(run).items()} == {7: 1, 14: 1, 20: 1}


def test_a_signal_during_an_evaluation_stops_at_once_and_loses_nothing(folder: Path) -> None:
    """SIGTERM in place of SIGKILL, sent to itself from the vote."""
    run = the_run(folder, "here", *EVERY)
    run.start()
    with pytest.MonkeyPatch.context() as patched:
        in_the_second(patched, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train.perform(run)
    assert newest_step(run.checkpoints) == 14
    trained(run)
    assert list(curve(run)) == EPOCHS


def test_two_processes_measure_what_one_does(folder: Path) -> None:
    changes = (*EVERY, f"{LUT}.batch=10")

    def measured(home: str) -> list[list[float]]:
        run = the_run(folder, home, *changes)
        run.start()
        student = build_student(run.recipe, run.seed).train()
        schedule, extra_state = train.schedule_of(run.recipe, 30, run.seed), dict[str, Any]()
        online = OnlineKnn(run, schedule, extra_state)
        online.recipe = online.recipe.model_copy(update={"eval_batch": 4})
        with TrainingLogger(run, schedule, 0, extra_state, 8) as logger:
            online.measure(6, lambda: student.encoder, logger)
        return [row[:2] for row in online.rows]

    [one] = in_processes(lambda: measured("one"), 1)
    assert one
    assert one[0][0] == 2
    assert in_processes(lambda: measured("two"), 2) == [one, one]

    def whole() -> None:
        run = the_run(folder, "both", *changes)
        run.start()
        train.perform(run)

    in_processes(whole, 2)
    assert list(curve(the_run(folder, "both", *changes))) == EPOCHS


def test_it_is_read_from_the_images_where_the_training_reads_a_cache(folder: Path) -> None:
    suite, workspace = opened(folder, "cached", *EVERY, f"{LUT}.cache=true")
    run_suite(suite, [], ["pretrain/lut"], workspace)
    assert list(curve(the_run(folder, "cached", *EVERY, f"{LUT}.cache=true"))) == EPOCHS


# Its cost


def test_the_plan_counts_its_images_and_its_checkpoints(folder: Path) -> None:
    sizes = {"train": 30, "val": 21}
    plain, run = the_run(folder), the_run(folder, "here", *EVERY)
    assert plain.recipe.samples(sizes) == (180, 0)
    assert run.recipe.samples(sizes) == (180, 3 * 51)
    few = the_run(folder, "here", *EVERY, f"{LUT}.knn_images=25", f"{LUT}.knn_every=4")
    assert few.recipe.samples(sizes) == (180, 2 * 46)
    assert few.recipe.knn_epochs == [4, 6]
    assert the_run(folder, "here", f"{LUT}.save_every=100", *EVERY).recipe.checkpoints(sizes, 9) == 3
    assert train.cost(plain, 3).evaluate == 0
    cost = train.cost(run, 3)
    assert 0 < cost.evaluate < cost.train
    suite, workspace = opened(folder, "here", *EVERY)
    [planned] = [
        one
        for one in costs_of(suite, workspace, survey_all(suite, workspace), Rates()).runs
        if one.run.name == run.name
    ]
    assert planned.images == 180 + 153
    assert planned.flop == cost.train * 180 + cost.evaluate * 153


def test_its_time_is_told_and_is_none_of_the_trainings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vote = online_knn.knn_classify

    def slow(*arguments: Any) -> torch.Tensor:
        time.sleep(5)
        return vote(*arguments)

    monkeypatch.setattr(online_knn, "knn_classify", slow)
    run = the_run(folder, "here", f"{LUT}.knn_every=3", f"{LUT}.knn_neighbours=3")
    trained(run)
    record = json.loads(next(run.workspace.results.rglob("seed0.json")).read_text())
    assert record["extra"]["seconds of online k-NN"] > 10
    assert record["wall_seconds"] < 5


# Bad input


def unlabelled(folder: Path) -> None:
    for split in ("train", "val"):
        for number, path in enumerate(sorted((folder / "toy" / split).rglob("*.png"))):
            path.rename(folder / "toy" / split / f"{number}.png")
        for empty in [path for path in (folder / "toy" / split).iterdir() if path.is_dir()]:
            empty.rmdir()


@pytest.mark.parametrize(
    ("changes", "spoil", "told"),
    [
        ((), unlabelled, r"pretrain.lut.knn_every: k-NN during pre-training needs labels, but toy has none"),
        (('data.toy.val=""',), None, r"knn_every needs a training and a validation split.*data.val is empty"),
        (('data.toy.val="other"',), None, "other"),
        ((f"{LUT}.knn_neighbours=31",), None, "knn_neighbours = 31, but only 30 training images to search"),
        ((f"{LUT}.knn_images=2",), None, r"knn_neighbours = 3, but only 2 training images to search \(of 30; knn_images = 2 at most\)"),
        ((f"{LUT}.knn_every=0",), None, "knn_every: input should be greater than 0"),
        (('data.toy.source="huggingface"', "data.toy.undecodable='stop'", "data.toy.streaming=true"), None, "has no fixed order"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused_before_compute(
    folder: Path, changes: tuple[str, ...], spoil: Callable[[Path], None] | None, told: str
) -> None:
    if spoil is not None:
        (folder / "toy.toml").write_text(SUITE)
        spoil(folder)
    if changes and "toy" in changes[0]:
        (folder / "toy.toml").write_text(SUITE)
    with pytest.raises(UserError, match=told):
        train.check(the_run(folder, "here", *EVERY, *changes))
    assert not (folder / "here").exists()
