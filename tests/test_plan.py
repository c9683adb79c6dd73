"""What a suite will cost is arithmetic on what is known, and what is not known is said."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from toy_runs import write_images

from lutbench.checkpoint import KEEP
from lutbench.errors import UserError
from lutbench.plan.compute import demand_of
from lutbench.plan.costs import COUNTED, GIVEN, MEASURED, NO_COUNT, NO_RATE, Costs, Rates, costs_of, read_rates
from lutbench.plan.counts import Counts
from lutbench.plan.disk import items_of, missing, rooms_of, too_little
from lutbench.plan.show import duration, gigabytes, show_plan, totals
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite
from lutbench.run import Workspace
from lutbench.stages import run_suite

TRAIN, VAL = 30, 21
"""Images that write_images writes of three classes: ten and seven of each."""

SUITE = """
title = "toy"
about = "for tests"
kind = "pipeline"
seeds = [0, 1]
[data.toy]
path = "toy"
[encoder.toy]
model = "vit_tiny_patch16_224"
image_size = 16
patch_size = 4
width = 16
depth = 1
heads = 2
[pretrain.lut]
data = "toy"
encoder = "toy"
epochs = 4
warmup_epochs = 1
batch = 10
decoder_width = 16
decoder_depth = 1
decoder_heads = 2
head_width = 24
workers = 0
[method.lut]
pretrain = "lut"
[downstream.tuned]
kind = "finetune"
data = "toy"
epochs = 3
warmup_epochs = 1
batch = 10
workers = 0
[downstream.neighbours]
kind = "knn"
data = "toy"
workers = 0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.toml").write_text(SUITE)
    return tmp_path


def opened(folder: Path, *changes: str) -> tuple[LoadedSuite, Workspace]:
    return load_suite(str(folder / "toy.toml"), changes), Workspace(folder, folder / "runs", folder / "results")


def costs(folder: Path, rates: Rates | None = None, *changes: str) -> Costs:
    suite, workspace = opened(folder, *changes)
    return costs_of(suite, workspace, Counts(workspace), rates or Rates())


def test_images_and_hours_are_those_of_the_hand(folder: Path) -> None:
    write_images(folder)
    suite, _ = opened(folder)
    rates = read_rates(suite, ["pretrain/lut=2", "tuned=0.5", "neighbours=4"])
    found = costs(folder, Rates(rates, gpus=8))
    images = {group.name: group.images for group in found.groups}
    assert images == {
        "lut": 2 * 4 * TRAIN,
        "tuned/lut": 2 * (3 * TRAIN + VAL),
        "neighbours/lut": 2 * (TRAIN + VAL),
    }
    seconds = 2 * (4 * TRAIN / 2 + (3 * TRAIN + VAL) / 0.5 + (TRAIN + VAL) / 4)
    assert found.hours == pytest.approx(seconds / 3600)
    assert found.gpu_hours == pytest.approx(8 * seconds / 3600)
    assert {cost.origin for cost in found.to_run} == {GIVEN}
    assert f"6 runs to go, 0 finished; {sum(n for n in images.values() if n):,} images" in totals(found)[0]


def test_flop_become_hours_where_nothing_was_measured(folder: Path) -> None:
    write_images(folder)
    found = costs(folder, Rates(flops=1e9, gpus=4))
    assert {cost.origin for cost in found.to_run} == {COUNTED}
    assert found.hours == pytest.approx(found.flop / 1e9 / 4 / 3600)
    without = costs(folder)
    assert {cost.origin for cost in without.to_run} == {NO_RATE}
    assert without.hours == 0
    assert any("6 runs have no rate" in line for line in totals(without))


def test_flop_of_a_block_are_those_of_its_products(folder: Path) -> None:
    """Per image a product of (n, a) and (a, b) takes 2 n a b: patches, and in each block qkv, attention, output and MLP."""
    suite, _ = opened(folder)
    recipe = next(run.recipe for run in suite.runs if run.task == "neighbours")
    deeper = next(
        run.recipe
        for run in load_suite(str(folder / "toy.toml"), ["encoder.toy.depth=2"]).runs
        if run.task == "neighbours"
    )
    tokens, width = 16 + 1, 16
    block = 2 * tokens * width * 3 * width + 2 * 2 * tokens * tokens * width + 2 * tokens * width * width
    block += 2 * 2 * tokens * width * 4 * width
    one, two = (demand_of(kind, 3).evaluate for kind in (recipe, deeper))
    assert two - one == pytest.approx(block, rel=0.01)
    assert one - block == pytest.approx(2 * 16 * (3 * 4 * 4) * width, rel=0.01)


def test_a_suite_without_its_data_is_planned_from_what_is_published(folder: Path) -> None:
    text = SUITE.replace('path = "toy"', 'known = "flowers17"')
    (folder / "toy.toml").write_text(text)
    found = costs(folder)
    assert {group.name: group.images for group in found.groups}["lut"] == 2 * 4 * 1020
    suite, workspace = opened(folder)
    [told] = missing(suite, workspace, Counts(workspace))
    assert "lutbench data list flowers17" in told


def test_a_set_that_nobody_knows_is_in_no_sum(folder: Path) -> None:
    found = costs(folder)
    assert {cost.origin for cost in found.to_run} == {NO_COUNT}
    assert found.images == 0
    assert any("6 runs are on sets of unknown size" in line for line in totals(found))
    suite, workspace = opened(folder)
    assert any("expected the images" in told for told in missing(suite, workspace, Counts(workspace)))


def test_a_finished_run_costs_nothing_and_tells_its_speed(folder: Path) -> None:
    write_images(folder)
    suite, workspace = opened(folder)
    run_suite(suite, ["pretrain"], ["seed0"], workspace)
    found = costs(folder)
    group = found.groups[0]
    assert (group.done, len(group.costs)) == (1, 1)
    record = json.loads((workspace.results / "records/toy/pretrain/lut/seed0.json").read_text())
    assert group.costs[0].origin == MEASURED
    assert group.seconds == pytest.approx(4 * TRAIN / record["images_per_second"])
    assert list(found.measured.values()) == [1]
    again = costs(folder, None, "pretrain.lut.epochs=5")
    assert again.groups[0].done == 0, "a changed run is to be run"


def test_disk_is_counted_to_the_byte_where_it_can_be(folder: Path) -> None:
    write_images(folder)
    suite, workspace = opened(folder, "pretrain.lut.cache=true")
    counts = Counts(workspace)
    found = {
        item.what: item for item in items_of(suite, workspace, counts, costs_of(suite, workspace, counts, Rates()))
    }
    files = sum(path.stat().st_size for path in (folder / "toy").rglob("*.png"))
    assert found["toy"].here == files
    assert found["cache of toy, short side 16"].to_come == TRAIN * 3 * 16 * 16
    kept = found[f"checkpoints, the last {KEEP} of each run"]
    assert kept.to_come is not None
    run_suite(suite, [], [], workspace)
    there = sum(p.stat().st_size for p in (folder / "runs").rglob("checkpoints/**/*") if p.is_file())
    assert there == pytest.approx(kept.to_come, rel=0.25), "and headers"
    done = {
        item.what: item
        for item in items_of(suite, workspace, counts, costs_of(suite, workspace, Counts(workspace), Rates()))
    }
    assert not any(name.startswith("checkpoints") for name in done)


def test_a_disk_that_is_too_small_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(folder)
    suite, workspace = opened(folder)
    items = items_of(suite, workspace, Counts(workspace), costs(folder))
    rooms = rooms_of(workspace)
    assert too_little(items, rooms) == []
    wanted = sum(item.to_come or 0 for item in items)
    small = [room.__class__(room.name, room.path, wanted - 1, room.device) for room in rooms]
    [(there, needed, free)] = too_little(items, small)
    assert (len(there), needed, free) == (3, wanted, wanted - 1)


@pytest.mark.parametrize("text", ["pretrain/lut", "pretrain/lut=fast", "pretrain/lut=0", "=3"])
def test_a_rate_that_is_not_understood_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(UserError, match="expected NAME=IMAGES_PER_SECOND"):
        read_rates(opened(folder)[0], [text])


def test_a_rate_of_no_run_names_the_nearest(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--rate tunned: .*Did you mean 'tuned'"):
        read_rates(opened(folder)[0], ["tunned=3"])


def test_the_plan_is_printed_with_every_group_and_sum(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(folder)
    suite, workspace = opened(folder)
    show_plan(suite, workspace, ["lut=10"], None, 2)
    out = capsys.readouterr().out
    assert all(name in out for name in ("pretrain", "tuned/lut", "neighbours/lut", "given", "free for data"))
    seconds = 2 * (4 * TRAIN + 3 * TRAIN + VAL + TRAIN + VAL) / 10
    assert (
        f"{duration(seconds)} one after another on 2 GPUs or CPU: {2 * seconds / 3600:.2f} GPU-hours, of 6 of the 6 runs"
        in " ".join(out.split())
    )


def test_numbers_are_printed_in_units_that_people_read() -> None:
    assert [duration(float(Fraction(s))) for s in (12, 204, 4_332_600)] == ["12 s", "3.4 min", "1,203.5 h"]
    assert [gigabytes(n) for n in (None, 1_500_000, int(np.int64(145e9)))] == ["unknown", "1.5 MB", "145.0 GB"]
