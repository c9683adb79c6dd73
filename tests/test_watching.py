"""What is seen of a training while it goes on: curves, the reference's band, collapse, and a teacher that will stay as it was drawn."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from snapshot_runs import SUITE, killed, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_runs import SUITE as TASK
from toy_runs import in_processes, opened, the_run, toy_run, write_images

from lutbench.interruption import Interrupted
from lutbench.losses import POINTS, LossCurve, band_of, departures, smoothed
from lutbench.plan.costs import Rates
from lutbench.plan.show import show_plan
from lutbench.recipes.loading import load_suite
from lutbench.record import Record, read_record, read_records
from lutbench.record_writing import copy_record
from lutbench.run import Run
from lutbench.stages import perform, run_suite
from lutbench.status import show_status
from lutbench.train.batches import Schedule
from lutbench.train.curve import CURVE, CurveRecorder
from lutbench.train.logger import TrainingLogger
from lutbench.train.momentum import initial_share, kept_of_the_first_weights, momentum_at
from pretrain import health, train
from pretrain.health import Watch, health_of
from pretrain.student import build_student
from pretrain.teacher import Teacher

ROOT = Path(__file__).parents[1]
LUT = "pretrain.lut"
NAME = "pretrain/lut/seed0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path)
    (tmp_path / "toy.toml").write_text(SUITE)
    return tmp_path


def record_of(run: Run[Any]) -> Record:
    return read_records(run.workspace.results, "toy")[run.name]


def curve_of(run: Run[Any]) -> LossCurve:
    curve = record_of(run).curve
    assert curve is not None
    return curve


# Curves


def test_a_record_has_the_losses_of_every_step_of_a_short_run(folder: Path) -> None:
    run = the_run(folder, "here", f"{LUT}.log_every=1")
    trained(run)
    found = EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    curve = curve_of(run)
    assert curve.steps == list(range(1, 21))
    for name in ("total", "mim", "context"):
        assert curve.losses[name] == pytest.approx([event.value for event in found.Scalars(name)], rel=1e-6), name


def test_a_curve_has_at_most_200_points_that_are_means_over_as_many_steps() -> None:
    for steps in (1, 7, POINTS, POINTS + 1, 333, 4321):
        recorder = CurveRecorder(steps)
        losses = np.random.default_rng(0).random((steps, 2))
        for step, row in enumerate(losses.tolist()):
            for scale in (0.5, 1.5):  # two micro-batches, whose mean it is
                recorder.add(step, ["a", "b"], [scale * value for value in row])
        curve = recorder.curve(steps)
        assert curve is not None
        assert len(curve.steps) == min(POINTS, steps)
        assert curve.steps[-1] == steps
        begins = [0, *curve.steps[:-1]]
        widths = np.diff([0, *curve.steps])
        assert widths.max() - widths.min() <= 1
        for place, name in enumerate("ab"):
            expected = [losses[a:b, place].mean() for a, b in zip(begins, curve.steps, strict=True)]
            assert curve.losses[name] == pytest.approx(expected, rel=5e-7)


def test_a_curve_has_no_point_of_which_steps_are_to_come() -> None:
    recorder = CurveRecorder(1000)
    assert recorder.curve(0) is None
    for step in range(12):
        recorder.add(step, ["loss"], [float(step)])
    curve = recorder.curve(12)
    assert curve is not None
    assert curve == LossCurve(steps=[5, 10], losses={"loss": [2.0, 7.0]})


def test_it_does_not_depend_on_how_often_losses_are_read_and_checkpoints_saved(folder: Path) -> None:
    runs = [
        the_run(folder, f"{log}-{save}", f"{LUT}.log_every={log}", f"{LUT}.save_every={save}")
        for log, save in ((1, 100), (7, 3), (20, 8))
    ]
    for run in runs:
        trained(run)
    assert curve_of(runs[0]) == curve_of(runs[1]) == curve_of(runs[2])


def behind_step_13(patched: pytest.MonkeyPatch, kill: Callable[[], None]) -> None:
    end_step = TrainingLogger.end_step

    def then_kill(self: TrainingLogger, step: int, *arguments: Any, **named: Any) -> bool:
        saving = end_step(self, step, *arguments, **named)
        if step == 13:
            kill()
        return saving

    patched.setattr(TrainingLogger, "end_step", then_kill)


def test_a_run_that_was_killed_has_the_curve_of_one_that_was_not(folder: Path) -> None:
    whole, run = the_run(folder, "whole"), the_run(folder, "killed")
    trained(whole)
    killed(run, behind_step_13)
    trained(run)
    assert curve_of(run) == curve_of(whole)


def test_a_run_that_was_stopped_between_two_readings_has_it_too(folder: Path) -> None:
    whole, run = the_run(folder, "whole"), the_run(folder, "stopped")
    trained(whole)
    run.start()
    with pytest.MonkeyPatch.context() as patched:
        behind_step_13(patched, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            perform(run)
    trained(run)
    assert curve_of(run) == curve_of(whole)


def test_two_processes_record_the_curve_of_one(folder: Path) -> None:
    changes = (f"{LUT}.batch=10", f"{LUT}.head_norm='none'")

    def whole(home: str) -> None:
        run = the_run(folder, home, *changes)
        run.start()
        perform(run)

    in_processes(lambda: whole("one"), 1)
    in_processes(lambda: whole("two"), 2)
    one, two = (curve_of(the_run(folder, home, *changes)) for home in ("one", "two"))
    assert one.steps == two.steps
    assert two.losses["mim"] == pytest.approx(one.losses["mim"], rel=1e-4)


def test_a_run_that_goes_on_from_a_checkpoint_without_a_curve_has_one_from_there(folder: Path) -> None:
    recorder = CurveRecorder(20, None)
    recorder.add(8, ["total"], [1.5])
    curve = recorder.curve(9)
    assert curve is not None
    assert curve == LossCurve(steps=[9], losses={"total": [1.5]})


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "finetune", "epochs": 2, "warmup_epochs": 0, "batch": 10},
        {"kind": "linear", "epochs": 2, "warmup_epochs": 0, "batch": 10},
        {"kind": "attentive", "epochs": 2, "warmup_epochs": 0, "batch": 10},
    ],
    ids=lambda settings: settings["kind"],
)
def test_whatever_is_trained_has_a_curve(folder: Path, settings: dict[str, Any]) -> None:
    run = toy_run(folder, suite_text=TASK, **settings)
    perform(run)
    record = record_of(run)
    assert record.curve is not None
    assert record.curve.steps == [1, 2, 3, 4, 5, 6]
    assert list(record.curve.losses) == ["loss"]
    since = 0 if record.kind.name == "finetune" else 3  # probes save, and so read their losses, after every epoch
    assert np.mean(record.curve.losses["loss"][since:]) == pytest.approx(record.extra["loss"], rel=1e-6)


def test_what_trains_nothing_has_none(folder: Path) -> None:
    run = toy_run(folder, kind="knn", neighbours=1)
    perform(run)
    assert record_of(run).curve is None
    assert '"curve"' not in next(run.workspace.results.rglob("seed0.json")).read_text(), "as before there were curves"


def test_a_record_of_before_is_read_and_copied_as_it_was(tmp_path: Path) -> None:
    old = ROOT / "results/reference/records/camvid/pretrain/mae/seed0.json"
    document = json.loads(old.read_text())
    document.pop("curve", None)
    document.pop("seal", None)
    path = tmp_path / "records/camvid/pretrain/mae/seed0.json"
    path.parent.mkdir(parents=True)
    document["code"]["sources"] = {}  # without which it may have no seal
    path.write_text(json.dumps(document))
    record = read_record(path)
    assert record.curve is None
    copied = json.loads(copy_record(record, tmp_path / "copy").read_text())
    assert "curve" not in copied


# The band


def noisy(seed: int, shift: float = 0.0, since: int = 0, scatter: float = 0.02) -> LossCurve:
    """A loss that falls as those of trainings do, of 100 points, with noise; shifted from a step on."""
    steps = np.arange(10, 1001, 10)
    values = 0.4 + 0.6 * np.exp(-steps / 150) + scatter * np.random.default_rng(seed).standard_normal(100)
    values += shift * (steps > since)
    return LossCurve(steps=steps.tolist(), losses={"total": values.tolist()})


def until(curve: LossCurve, step: int) -> LossCurve:
    count = sum(done <= step for done in curve.steps)
    return LossCurve(steps=curve.steps[:count], losses={name: v[:count] for name, v in curve.losses.items()})


def test_other_seeds_are_within_the_band_at_every_moment() -> None:
    reference = [noisy(0)]
    for seed in range(1, 6):
        for step in range(50, 1001, 50):
            assert not departures(until(noisy(seed), step), reference), (seed, step)


def test_a_run_that_goes_another_way_is_outside_since_it_did() -> None:
    reference = [noisy(0), noisy(1), noisy(2)]
    wrong = noisy(7, shift=0.2, since=600)
    assert not departures(until(wrong, 600), reference)
    [found] = departures(until(wrong, 800), reference)
    assert found.loss == "total"
    assert 590 <= found.step <= 640
    assert found.value > found.high > found.low
    assert "total loss outside the reference's band since step" in str(found)


def test_a_single_bad_step_is_no_departure() -> None:
    curve = noisy(3)
    curve.losses["total"][-1] = 9.0
    assert not departures(curve, [noisy(0)])


def test_the_same_bits_are_within_however_little_they_scatter() -> None:
    curve = noisy(0, scatter=0.0)
    assert not departures(curve, [curve])
    assert not departures(until(curve, 60), [curve])


def test_a_band_is_three_deviations_and_at_least_two_percent_wide() -> None:
    plain = band_of([noisy(0, scatter=0.0)], "total")
    assert plain is not None
    assert plain.half_width == pytest.approx(0.02 * plain.middle)
    scattered = band_of([noisy(0, scatter=0.02)], "total")
    assert scattered is not None
    assert scattered.half_width.min() == pytest.approx(3 * 0.02, rel=0.4)
    seeds = band_of([noisy(seed, shift=seed, scatter=0.0) for seed in range(3)], "total")
    assert seeds is not None
    assert seeds.half_width == pytest.approx(3 * np.ones(100))


def test_nothing_is_said_without_a_reference_of_these_steps_or_after_few_points() -> None:
    wrong = noisy(7, shift=5.0)
    assert departures(wrong, [noisy(0)])
    assert not departures(wrong, [])
    assert not departures(until(wrong, 40), [noisy(0)])
    other = LossCurve(steps=[step + 1 for step in wrong.steps], losses=noisy(0).losses)
    assert not departures(wrong, [other])
    assert not departures(LossCurve(steps=wrong.steps, losses={"else": wrong.losses["total"]}), [noisy(0)])


def test_smoothing_is_a_running_median() -> None:
    values = [1.0, 9.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert smoothed(values).tolist() == [2.5, 3.0, 3.5, 4.0, 5.0, 5.0, 5.5, 6.0, 6.5]


def as_reference(run: Run[Any]) -> None:
    results = run.workspace.results
    shutil.copytree(results / "records", results / "reference/records", dirs_exist_ok=True)


def shown(folder: Path, home: str, capsys: pytest.CaptureFixture[str], *changes: str) -> str:
    capsys.readouterr()
    show_status(*opened(folder, home, *changes))
    return capsys.readouterr().out


def test_status_says_when_a_run_in_progress_leaves_the_references_band(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = (f"{LUT}.save_every=10", f"{LUT}.log_every=1")
    reference = the_run(folder, "here", *changes)
    trained(reference)
    as_reference(reference)
    expected = curve_of(reference)
    reference.set_aside()
    killed(run := the_run(folder, "here", *changes), behind_step_13)
    progress = run.folder / CURVE
    assert json.loads(progress.read_text()) == until(expected, 14).model_dump()
    assert "resumable at step 10" in shown(folder, "here", capsys, *changes)
    assert "band" not in shown(folder, "here", capsys, *changes), "it is the reference's to the last bit"
    curve = until(expected, 14)
    curve.losses["mim"][6:] = [2 * value for value in curve.losses["mim"][6:]]
    progress.write_text(json.dumps(curve.model_dump()))
    told = shown(folder, "here", capsys, *changes)
    assert f"{NAME}: mim loss outside the reference's band since step " in told
    other = (*changes, f"{LUT}.base_lr=0.02")
    assert "band" not in shown(folder, "here", capsys, *other), "another recipe is not compared"
    progress.write_text("{")
    assert "band" not in shown(folder, "here", capsys, *changes), "a damaged file tells nothing, and stops nothing"


def test_tables_draw_the_curves_with_the_reference_and_name_what_left_its_band(folder: Path) -> None:
    from lutbench.report.sections import View
    from lutbench.report.tables import all_sections

    changes = ("defaults.pretrain.log_every=1",)
    run = the_run(folder, "here", *changes)
    trained(run)
    suite, workspace = opened(folder, "here", *changes)

    def losses() -> Any:
        [section] = [one for one in all_sections(View.read(suite, workspace.results)) if one.title == "Losses"]
        return section

    alone = losses()
    assert [drawing.name for drawing in alone.figures] == ["losses-pretrain.png"]
    assert "around these records" in alone.legend
    axes = alone.figures[0].draw().axes
    assert [one.get_title() for one in axes if one.get_title()] == [
        "Pre-training: total loss", "Pre-training: loss on masked patches", "Pre-training: context loss",
    ]  # fmt: skip
    assert [len(one.lines) for one in axes[:3]] == [1, 1, 1]
    as_reference(run)
    beside = losses()
    assert "the reference records" in beside.legend
    assert "outside" not in beside.legend.split("expected")[1]
    assert [len(one.lines) for one in beside.figures[0].draw().axes[:3]] == [2, 2, 2]
    record = record_of(run)
    assert record.curve is not None
    worse = {name: [3 * value for value in values] for name, values in record.curve.losses.items()}
    changed = record.model_copy(update={"curve": LossCurve(steps=record.curve.steps, losses=worse)})
    copy_record(changed, workspace.results)
    assert f"Runs that ended outside the reference band: `{NAME}` (total loss outside" in losses().legend


def test_records_without_curves_have_no_section(tmp_path: Path) -> None:
    from lutbench.report.loss_curves import loss_sections
    from lutbench.report.sections import View

    shutil.copytree(ROOT / "results/reference/records/camvid", tmp_path / "records/camvid")
    view = View.read(load_suite("camvid"), tmp_path)
    bare = {name: record.model_copy(update={"curve": None}) for name, record in view.records.items()}
    assert loss_sections(replace(view, records=bare)) == []


# A teacher that stays as it was drawn


@pytest.mark.parametrize("schedule", ["cosine", "fixed"])
@pytest.mark.parametrize(("momentum", "steps"), [(0.9, 7), (0.996, 179), (0.0, 3), (0.999, 2563)])
def test_the_share_is_the_product_of_the_momenta_of_all_updates(momentum: float, steps: int, schedule: Any) -> None:
    product = math.prod(momentum_at(momentum, step, steps, schedule) for step in range(steps))
    assert initial_share(momentum, steps, schedule) == pytest.approx(product, rel=1e-9)


def test_the_share_is_what_is_left_of_the_teachers_first_weights(folder: Path) -> None:
    student = build_student(the_run(folder).recipe, 0)
    teacher = Teacher(student)
    with torch.no_grad():
        for tensor in student.parameters():
            tensor.zero_()
    first = teacher.encoder.pos_embed.clone()
    for step in range(10):
        teacher.update(student, momentum_at(0.8, step, 10))
    assert torch.allclose(teacher.encoder.pos_embed, first * initial_share(0.8, 10))


def test_it_is_about_what_the_formula_says() -> None:
    assert initial_share(0.999, 2563) == pytest.approx(math.exp(-0.001 * 2563 / 2), rel=0.01)


def test_what_is_proposed_leaves_next_to_nothing_and_one_that_was_asked_to_stay_is_not_warned_of() -> None:
    told = kept_of_the_first_weights(0.996, 179, "cosine")
    assert told.startswith("at the end, 70 % of the teacher would still be its random initial weights")
    assert "0.88 would leave" in told
    assert not kept_of_the_first_weights(0.88, 179, "cosine")
    assert not kept_of_the_first_weights(1.0, 179, "fixed")
    assert initial_share(0.99996, 125114) < 0.1
    assert not kept_of_the_first_weights(0.99996, 125114, "cosine")


@pytest.mark.parametrize("suite", ["tiny", "camvid"])
def test_the_suites_that_are_shipped_with_records_have_a_momentum_for_their_steps(suite: str) -> None:
    images = {"tiny": 2850, "camvid": 6559}[suite]
    runs = [run for run in load_suite(suite).runs if run.stage == "pretrain" and run.recipe.has_context]  # type: ignore[attr-defined]
    assert runs
    for run in runs:
        recipe: Any = run.recipe
        steps = math.ceil(recipe.epochs * images / recipe.batch)
        assert 20 < (1 - recipe.momentum) * steps < 22, run.name
        assert not recipe.warning({"train": images})


def test_plan_status_and_run_warn_of_it_before_any_compute(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = f"{LUT}.momentum=0.99"
    suite, workspace = opened(folder, "here", change)
    warned = f"{NAME}: at the end, {100 * initial_share(0.99, 20):.0f} % of the teacher would still be its random initial weights"
    show_plan(suite, workspace, Rates())
    assert warned in " ".join(capsys.readouterr().out.split())
    assert warned in shown(folder, "here", capsys, change)
    run_suite(suite, [], ["pretrain/lut"], workspace)
    told = capsys.readouterr().out
    assert told.index(warned) < told.index("total loss")
    assert warned not in shown(folder, "here", capsys, change), "what has finished is not warned of"
    assert "random initial weights" not in shown(folder, "other", capsys, f"{LUT}.momentum=0.0")
    assert "pretrain/mae" not in warned


# Health


def test_health_tells_features_that_point_everywhere_from_those_that_are_all_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    everywhere = health_of(torch.randn(512, 16, generator=generator))
    assert everywhere.spread == pytest.approx(1, abs=0.05)
    assert everywhere.mean_cosine == pytest.approx(0, abs=0.01)
    assert everywhere.effective_rank > 15
    assert not everywhere.is_collapsed
    same = health_of(torch.ones(64, 16) + 1e-4 * torch.randn(64, 16, generator=generator))
    assert same.spread < 0.01
    assert same.mean_cosine > 0.999
    assert same.is_collapsed
    line = health_of(torch.randn(64, 1, generator=generator) * torch.randn(1, 16, generator=generator))
    assert line.effective_rank == pytest.approx(1, abs=0.01)
    assert line.is_collapsed
    spread = torch.nn.functional.normalize(torch.randn(9, 4, generator=generator), dim=1)
    assert health_of(3 * spread).spread == pytest.approx(float(spread.std(0, correction=0).mean()) * 2, rel=1e-6)


def test_it_is_logged_at_every_save(folder: Path) -> None:
    run = the_run(folder)
    trained(run)
    found = EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    for name in ("spread", "mean cosine", "effective rank"):
        assert [event.step for event in found.Scalars(name)] == [8, 16, 20], name


def test_a_collapsed_encoder_is_warned_of_once_and_a_healthy_one_is_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = the_run(folder)
    run.start()
    images = run.dataset("train")
    student = build_student(run.recipe, run.seed).train()
    watch = Watch(run, images)
    with TrainingLogger(run, train.schedule_of(run.recipe, 30, run.seed), 0, {}, 8) as logger:
        watch.measure(1, student, logger)
        assert "hardly differ" not in capsys.readouterr().out
        healthy = {name: tensor.clone() for name, tensor in student.encoder.state_dict().items()}
        with torch.no_grad():
            student.encoder.patch_embed.proj.weight.zero_()  # whatever the image, the same tokens
        for done in (2, 3):
            watch.measure(done, student, logger)
        told = capsys.readouterr().out
        assert told.count("after step 2 the features of different images hardly differ: spread 0.000") == 1
        assert "after step 3" not in told
        student.encoder.load_state_dict(healthy)
        watch.measure(4, student, logger)
        with torch.no_grad():
            student.encoder.patch_embed.proj.weight.zero_()
        watch.measure(5, student, logger)
        assert "after step 5" in capsys.readouterr().out, "it was well meanwhile"


def test_looking_changes_no_bit_of_the_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = the_run(folder, "with", f"{LUT}.save_every=1")
    expected = trained(run)
    monkeypatch.setattr(Watch, "__init__", lambda self, run, images: None)
    monkeypatch.setattr(Watch, "measure", lambda self, done, student, logger: None)
    assert trained(the_run(folder, "without", f"{LUT}.save_every=1")) == expected
    assert not list((folder / "without").rglob("tracker*"))


def test_looking_leaves_modes_and_random_states_and_takes_none_of_the_trainings_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    run = the_run(folder)
    run.start()
    student = build_student(run.recipe, run.seed).train()
    watch = Watch(run, run.dataset("train"))
    measure = health.health_of
    monkeypatch.setattr(health, "health_of", lambda features: (time.sleep(2), measure(features))[1])
    with TrainingLogger(run, train.schedule_of(run.recipe, 30, run.seed), 0, {}, 8) as logger:
        before = torch.get_rng_state(), {name: tensor.clone() for name, tensor in student.state_dict().items()}
        watch.measure(8, student, logger)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert all(torch.equal(before[1][name], tensor) for name, tensor in student.state_dict().items())
        assert all(module.training for module in student.modules())
        logger.note(0, {"total": torch.tensor(1.0)}, torch.arange(9))
        logger.end_step(7, 0.1)
    assert logger.seconds < 1
    assert logger.watched > 2


def test_a_block_that_is_left_out_is_left_out_once_within_another(tmp_path: Path) -> None:
    import time

    schedule = Schedule(images=40, epochs=1, batch=10, micro_batch=10, seed=0)
    run: Any = SimpleNamespace(name="toy", folder=tmp_path, recipe=SimpleNamespace(log_every=1, trackers=[]))
    with TrainingLogger(run, schedule, 0, {}, save_every=100) as logger:
        with logger.evaluation(), logger.watching():
            time.sleep(0.3)
        time.sleep(0.2)
        logger.note(0, {"total": torch.tensor(1.0)}, torch.arange(10))
        logger.end_step(0, 0.1)
    assert 0.2 <= logger.seconds < 0.4


def test_simmim_and_a_plain_mae_are_looked_at_too(folder: Path) -> None:
    simmim = (f"{LUT}.framework='simmim'", f"{LUT}.mask_unit=4", f"{LUT}.mask_ratio=0.5")
    for name, changes in (("lut", simmim), ("mae", ())):
        run = the_run(folder, name, *changes, name=f"pretrain/{name}/seed0")
        trained(run)
        found = EventAccumulator(str(run.folder / "tensorboard"))
        found.Reload()
        assert found.Images("reconstructions")
        assert found.Scalars("spread")
