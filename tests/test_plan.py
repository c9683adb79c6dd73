"""What a suite will cost is arithmetic on what is known, and what is not known is said."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toy_runs import HEAD, NARROW, SCENES, encoder, write_images, write_scenes

from lutbench.checkpoint_names import KEEP
from lutbench.cli import app
from lutbench.data.scenes import SegmentationDataset
from lutbench.data.survey import HUB, DiskUse
from lutbench.errors import UserError
from lutbench.files import gigabytes, write_sealed
from lutbench.models.encoders import create_encoder
from lutbench.models.meta import shapes_only
from lutbench.plan import compute
from lutbench.plan.compute import counted
from lutbench.plan.cost import Cost
from lutbench.plan.costs import (
    COUNTED,
    DONE,
    ESTIMATED,
    GIVEN,
    MEASURED,
    NO_COUNT,
    NO_RATE,
    ON_CARD,
    REPEATED,
    Costs,
    Rates,
    costs_of,
    narrowed,
    read_rates,
)
from lutbench.plan.disk import by_disk, disk_uses, rooms_of
from lutbench.plan.gpus import find_gpu, known_gpus
from lutbench.plan.measured import Card, choose_card
from lutbench.plan.show import amount, duration, how_to_time, origins, show_plan, totals
from lutbench.plan.summary import show_summary
from lutbench.plan.surveys import missing, survey_all
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.downstream import FinetuneRecipe
from lutbench.recipes.loading import load_suite
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.segmentation import SegmentationRecipe
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.record import read_record
from lutbench.record_writing import write_record
from lutbench.run import open_run
from lutbench.stages import run_suite
from lutbench.workspace import Workspace
from pretrain.cost import flop_per_image

TRAIN, VAL = 30, 21
"""Images that write_images writes of three classes: ten and seven of each."""

SUITE = f"""{HEAD}seeds = [0, 1]
[data.toy]
path = "toy"
{encoder(depth=1)}
[pretrain.lut]
data = "toy"
encoder = "toy"
epochs = 4
warmup_epochs = 1
batch = 10
{NARROW}
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

TWO_CLASSES = SegmentationDataset(
    "toy", "train", Path(), Path(), ".jpg", ".png", ("a", "b"), ((0, 0, 0), (1, 1, 1)), False, 255, "", (), np.array([])
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.toml").write_text(SUITE)
    return tmp_path


def opened(folder: Path, *changes: str) -> tuple[LoadedSuite, Workspace]:
    return load_suite(str(folder / "toy.toml"), changes), Workspace(folder, folder / "runs", folder / "results")


class Plan(NamedTuple):
    groups: list[Costs]
    all: Costs
    disk: dict[str, DiskUse]
    missing: tuple[dict[str, str], dict[str, str]]


def plan_of(suite: LoadedSuite, workspace: Workspace, rates: Rates | None = None) -> Plan:
    surveys, rates = survey_all(suite, workspace), rates or Rates()
    costs = costs_of(suite, workspace, surveys, rates)
    groups = [group for task in costs.by("task").values() for group in task.by("method").values()]
    disk = {use.name: use for use in disk_uses(costs, surveys, workspace)}
    return Plan(groups, costs, disk, missing(costs, surveys))


def planned(folder: Path, rates: Rates | None = None, *changes: str) -> Plan:
    return plan_of(*opened(folder, *changes), rates)


def name_of(group: Costs) -> str:
    run = group.runs[0].run.planned
    return "/".join(filter(None, (run.task, run.method)))


def cost_of(suite: LoadedSuite, planned: PlannedRun, classes: int) -> Cost:
    found: Cost = planned.kind.module.cost(open_run(suite, planned, Workspace(Path(), Path(), Path())), classes)
    return found


def test_images_and_hours_are_those_of_the_hand(folder: Path) -> None:
    write_images(folder)
    suite, _ = opened(folder)
    rates = read_rates(suite, ["pretrain/lut=2", "tuned=0.5", "neighbours=4"])
    groups, found, *_ = planned(folder, Rates(rates, gpus=8))
    images = {name_of(group): group.images for group in groups}
    assert images == {
        "lut": 2 * 4 * TRAIN,
        "tuned/lut": 2 * (3 * TRAIN + VAL),
        "neighbours/lut": 2 * (TRAIN + VAL),
    }
    seconds = 2 * (4 * TRAIN / 2 + (3 * TRAIN + VAL) / 0.5 + (TRAIN + VAL) / 4)
    assert found.seconds == pytest.approx(seconds)
    assert found.gpu_hours == pytest.approx(8 * seconds / 3600)
    assert {cost.origin for cost in found.to_run} == {GIVEN}
    assert f"6 runs to do, 0 finished; {sum(n for n in images.values() if n):,} images" in totals(found, Rates())[0]


PROBES = """
[downstream.fresh]
kind = "linear"
data = "toy"
epochs = 5
warmup_epochs = 1
[downstream.centre]
kind = "linear"
data = "toy"
epochs = 5
warmup_epochs = 1
fresh_crops = false
[downstream.watched]
kind = "finetune"
data = "toy"
epochs = 9
warmup_epochs = 1
batch = 10
eval_every = 4
[shifted.copy]
source = "corrupted"
path = "toy-c"
copy_of = "toy/val"
copy_side = 16
copy_per_class = 5
kind = "corruptions"
corruptions = ["fog", "snow"]
severities = [1, 3, 5]
extra = ["spatter"]
[shifted.occluded]
path = "toy/val"
kind = "occlusion"
drops = [0, 5]
drop_grid = 4
shuffles = [2, 4, 8]
[shifted.own]
path = "toy/val"
preprocessing = ["bicubic", "bilinear"]
[robustness.shift]
tasks = ["tuned"]
sets = ["copy", "occluded", "own"]
"""


def test_every_kind_of_run_looks_at_the_images_that_it_says(folder: Path) -> None:
    write_images(folder)
    (folder / "toy.toml").write_text(SUITE + PROBES)
    groups = planned(folder, None, "seeds=[0]").groups
    assert {name_of(group): group.images for group in groups} == {
        "lut": 4 * TRAIN,
        "tuned/lut": 3 * TRAIN + VAL,
        "neighbours/lut": TRAIN + VAL,
        "fresh/lut": 5 * TRAIN + VAL,
        "centre/lut": TRAIN + VAL,
        "watched/lut": 9 * TRAIN + (2 + 1) * VAL,
        "shift/copy/lut": 3 * 3 * (3 * 5),
        "shift/occluded/lut": (2 + 3) * VAL,
        "shift/own/lut": 2 * VAL,
    }
    flop = {name_of(group): one.cost for group in groups for one in group.to_run}
    assert flop["tuned/lut"].train == 3 * flop["tuned/lut"].evaluate, "forward and backward"
    assert flop["shift/own/lut"].evaluate == flop["tuned/lut"].evaluate, "the same classifier"


def test_a_corrupted_copy_takes_three_bytes_a_pixel(folder: Path) -> None:
    write_images(folder)
    (folder / "toy.toml").write_text(SUITE + PROBES)
    disk = planned(folder).disk
    assert [use.to_come for name, use in disk.items() if "corrupted copy" in name] == [9 * 15 * 3 * 16 * 16]


@pytest.mark.parametrize(
    ("changes", "looks"), [((), 4), (("val_every=5",), 3 * 4), (("val_every=6", "tta=true"), 2 * 4 + 12 * 4)]
)
def test_segmentation_looks_at_batches_and_at_the_validation_images(
    tmp_path: Path, changes: tuple[str, ...], looks: int
) -> None:
    write_scenes(tmp_path, train=5, val=4)
    (tmp_path / "toy.toml").write_text(SCENES)
    [group] = planned(tmp_path, None, *(f"downstream.task.{change}" for change in changes)).groups
    assert group.images == 12 * 4 + looks


def test_windows_slide_over_a_validation_image_as_over_a_photograph(folder: Path) -> None:
    """Of 4:3 with a short side of 512: 683 by 512 pixels, two windows of 512 side by side."""
    from downstream.segmentation.cost import windows

    paper = load_suite("paper")
    recipe = next(run.recipe for run in paper.runs if isinstance(run.recipe, SegmentationRecipe))
    assert windows(recipe) == 2
    assert windows(recipe.model_copy(update={"crop": 256, "stride": 128})) == 3 * 5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("width", "grid", "channels", "auxiliary"), [(768, 32, 768, 256), (64, 4, 32, 48)])
def test_upernet_is_counted_as_mmsegmentation_builds_it(width: int, grid: int, channels: int, auxiliary: int) -> None:
    pytest.importorskip("mmseg")
    import mmseg.models  # noqa: F401 - fills the registry
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    from downstream.segmentation.config import mmseg_config
    from downstream.segmentation.cost import upernet

    init_default_scope("mmseg")
    recipe = next(run.recipe for run in load_suite("paper").runs if isinstance(run.recipe, SegmentationRecipe))
    encoder = recipe.encoder.model_copy(
        update={"architecture": EncoderRecipe(model="vit_tiny_patch16_224", width=width, heads=8)}
    )
    sizes = {"encoder": encoder, "crop": 16 * grid, "stride": 1, "channels": channels, "auxiliary_channels": auxiliary}
    model = mmseg_config(recipe.model_copy(update=sizes), TWO_CLASSES, TWO_CLASSES, norm="BN").model
    with torch.device("meta"):
        parts = {name: MODELS.build(model[name]) for name in ("neck", "decode_head", "auxiliary_head")}
        maps = tuple(torch.empty(2, width, grid, grid) for _ in range(4))
        evaluated = counted(lambda: parts["decode_head"](parts["neck"](maps))) / 2
        side = counted(lambda: parts["auxiliary_head"](parts["neck"](maps))) / 2
        neck = counted(lambda: parts["neck"](maps)) / 2
    values = sum(
        tensor.numel()
        for part in parts.values()
        for name, tensor in part.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )
    head, auxiliary_head = upernet(width, grid, channels, auxiliary, classes=2)
    assert (head.flop, auxiliary_head.flop) == (evaluated, side - neck)
    assert head.values + auxiliary_head.values == values


def test_pre_training_takes_the_compute_that_the_paper_suite_tells() -> None:
    """Counted apart when the suite was written: LUT 1.3, 3.2, 9.5 and MAE 0.8, 1.2, 2.6 times 1e20 FLOP for ViT-S, B, L."""
    suite = load_suite("paper")
    told = {"lut-s": 1.3, "lut-b": 3.2, "lut-l": 9.5, "mae-s": 0.8, "mae-b": 1.2, "mae-l": 2.6, "mae-crop-b": 1.2}
    found = {
        run.task: 1600 * 1_281_167 * cost_of(suite, run, 1000).train / 1e20
        for run in suite.runs
        if run.stage == "pretrain" and run.task in told
    }
    assert {name: round(flop, 1) for name, flop in found.items()} == told


@pytest.mark.parametrize(("setting", "heads"), [("true", 3 * 4 + 2), ("false", 3 * 2 + 1)])
def test_heads_are_counted_for_every_view_of_student_and_teacher(folder: Path, setting: str, heads: int) -> None:
    """Projector and predictor of each of the student's views, three times; the teacher's projector of each of its own."""
    narrow, wide = (
        cost_of(suite, suite.runs[0], 3).train
        for change in ("pretrain.lut.head_width=24", "pretrain.lut.head_width=48")
        for suite, _ in [opened(folder, f"pretrain.lut.both_directions={setting}", change)]
    )
    assert wide - narrow == heads * 2 * (2 * 16 * 24)


def test_flop_become_hours_where_nothing_was_measured(folder: Path) -> None:
    write_images(folder)
    found = planned(folder, Rates(flops=1e9, gpus=4)).all
    assert {cost.origin for cost in found.to_run} == {COUNTED}
    assert found.seconds == pytest.approx(found.flop / 1e9 / 4)
    assert found.gpu_hours == pytest.approx(found.flop / 1e9 / 3600)
    without = planned(folder).all
    assert {cost.origin for cost in without.to_run} == {NO_RATE}
    assert without.seconds == 0
    assert any("6 runs have no speed." in line for line in [how_to_time(without)])


def test_a_named_gpu_gives_hours_by_its_data_sheet_and_what_is_known_better_wins(folder: Path) -> None:
    write_images(folder)
    gpu = find_gpu("H100")
    assert gpu.flops == 0.35 * 989.5e12
    found = planned(folder, Rates(gpu=gpu, gpus=8)).all
    assert {cost.origin for cost in found.to_run} == {ESTIMATED}
    assert found.seconds == pytest.approx(found.flop / gpu.flops / 8)
    [line] = [line for line in totals(found, Rates(gpu=gpu)) if "estimated" in line]
    assert (
        "6 runs are estimated, not measured: 35 % of the peak in the data sheet (NVIDIA H100 SXM: 989.5 TFLOP/s" in line
    )
    rates = Rates(read_rates(opened(folder)[0], ["tuned=0.5"]), flops=1e9, gpu=gpu)
    assert [cost.origin for cost in planned(folder, rates).all.to_run] == [COUNTED] * 2 + [GIVEN] * 2 + [COUNTED] * 2


def test_a_rate_that_was_measured_without_a_gpu_tells_nothing_of_a_named_one(folder: Path) -> None:
    write_images(folder)
    suite, workspace = opened(folder)
    run_suite(suite, ["pretrain"], ["seed0"], workspace)
    assert planned(folder).groups[0].to_run[0].origin == MEASURED
    assert planned(folder, Rates(gpu=find_gpu("a100"))).groups[0].to_run[0].origin == ESTIMATED
    assert planned(folder, Rates(card=a_card(), named=True)).groups[0].to_run[0].origin == NO_RATE
    assert planned(folder, Rates(card=a_card())).groups[0].to_run[0].origin == MEASURED, "nobody asked for the card"
    path = workspace.results / "records/toy/pretrain/lut/seed0.json"
    record = json.loads(path.read_text())
    record["hardware"] |= {"gpus": ["some GPU"]}
    del record["seal"]
    write_sealed(path, record)
    assert planned(folder, Rates(gpu=find_gpu("a100"))).groups[0].to_run[0].origin == MEASURED


def a_card(name: str = "NVIDIA H100 80GB HBM3", **changes: Any) -> Card:
    """A card on which a ViT-B was pre-trained at 2,000 images/s in batches of 256, and a ViT-S evaluated."""
    speeds = [
        {"kind": "pretrain", "model": "vit_base_patch16_224", "batch": 256, "images_per_second": 2000, "flop_per_image": LUT_B},
        {"kind": "pretrain", "model": "vit_base_patch16_224", "batch": 1024, "images_per_second": 2100, "flop_per_image": LUT_B},
        {"kind": "pretrain", "model": "vit_base_patch16_224", "batch": 256, "images_per_second": 900, "flop_per_image": LUT_B, "variant": "plain"},
        {"kind": "robustness", "model": "vit_small_patch16_224", "batch": 256, "images_per_second": 9000, "flop_per_image": 9.2e9},
    ]  # fmt: skip
    values = {"card": name, "memory_gib": 79.1, "machine": "16 cores", "cuda": "13.0", "versions": {"torch": "2.15.0"}}
    values |= {"code": "1.0", "date": "2026-12-01", "command": "python measure.py", "matrix_flops": 8e14}
    return Card.model_validate(values | {"speeds": speeds} | changes)


LUT_B = flop_per_image(PretrainRecipe.model_validate({"data": {}, "encoder": {}}))
"""FLOP of an image of LUT with ViT-B."""


def test_a_measured_card_gives_the_hours_of_its_models_and_what_is_measured_here_wins(tmp_path: Path) -> None:
    suite, workspace = load_suite("paper"), Workspace(tmp_path, tmp_path / "runs", tmp_path / "results")
    only = ["pretrain/lut-b/seed0", "pretrain/mae-b/seed0", "pretrain/lut-s/seed0"]
    suite = narrowed(suite, only)
    surveys = survey_all(suite, workspace)
    rates = Rates(gpus=8, gpu=find_gpu("h100"), card=a_card())
    lut, mae, small = (costs_of(suite, workspace, surveys, rates, [name]).runs[0] for name in only)
    assert lut.rate == pytest.approx(8 * 2000), "of the steps that runs take, with the slower batch"
    assert lut.seconds == pytest.approx(lut.images / 16000)
    assert mae.rate is not None
    assert mae.rate == pytest.approx(8 * 2000 * LUT_B / mae.cost.train), "as many FLOP/s, and fewer for an image"
    assert [one.origin for one in (lut, mae, small)] == [ON_CARD, ON_CARD, ESTIMATED]
    told = " ".join(origins(Costs((lut, mae, small), 8), rates))
    assert (
        "The hours of 2 runs follow from training steps of the same model, measured on NVIDIA H100 80GB HBM3 (2026-12-01, torch 2.15.0"
        in told
    )
    assert "The hours of 1 run are estimated" in told
    given = replace(rates, given={only[0]: 5.0})
    assert costs_of(suite, workspace, surveys, given, only[:1]).runs[0].origin == GIVEN


def test_the_card_is_the_named_one_or_that_of_the_gpu_or_the_only_one() -> None:
    one, other = a_card(), a_card("NVIDIA GeForce RTX 4090")
    assert choose_card([one], None, None, None) == one
    assert choose_card([one, other], None, None, None) is None, "of two nobody knows which is meant"
    assert choose_card([one], None, None, 4e14) is None, "who says how fast a GPU is means that"
    assert choose_card([one, other], None, "rtx4090", None) == other
    assert choose_card([one, other], None, "a100", None) is None
    assert choose_card([one, other], "h100", None, 4e14) == one
    with pytest.raises(UserError, match=r"--card h20: this GPU was not measured\. Known: NVIDIA H100"):
        choose_card([one, other], "h20", None, None)
    with pytest.raises(UserError, match="matches several GPUs: NVIDIA H100 80GB HBM3, NVIDIA GeForce RTX 4090"):
        choose_card([one, other], "nvidia", None, None)
    with pytest.raises(UserError, match=r"no GPU has been measured yet\. For an estimate, give --gpu NAME"):
        choose_card([], "h100", None, None)


def test_the_command_takes_the_card_that_it_is_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(folder)
    base = 'model = "vit_base_patch16_224"\n'
    before, toy, after = SUITE.partition(SUITE[SUITE.index('model = "vit_tiny') : SUITE.index("[pretrain.lut]")])
    assert toy
    (folder / "toy.toml").write_text(f"{before}{base}{after}")
    monkeypatch.setattr("lutbench.plan.measured.measured_cards", lambda: (a_card(), a_card("NVIDIA L40S")))
    arguments = ["plan", str(folder / "toy.toml"), "--only", "pretrain/lut/seed0", "--data-root", str(folder)]
    for name in ("runs", "results"):
        arguments += [f"--{name}", str(folder / name)]
    app([*arguments, "--card", "h100"], standalone_mode=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "The hours of 1 run follow from training steps of the same model, measured on NVIDIA H100 80GB HBM3" in told
    app(arguments, standalone_mode=False)
    assert "1 run has no speed. For hours: " in " ".join(capsys.readouterr().out.split()), "of two cards none is taken"


def test_an_assumed_speed_is_said(folder: Path) -> None:
    write_images(folder)
    rates = Rates(flops=4e14)
    assert "The hours of 6 runs assume 4e+14 FLOP/s per GPU (--flops)." in totals(planned(folder, rates).all, rates)


def test_a_gpu_that_is_not_in_the_table_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"--gpu h10: unknown GPU.*Did you mean 'h100'.*Known: a100, "):
        find_gpu("h10")


def test_the_documents_have_the_table_that_the_plan_reads() -> None:
    text = (Path(__file__).parents[1] / "docs/benchmarks.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text[text.index("| `--gpu` |") :].splitlines()[2:]]
    known = known_gpus()
    assert rows == [[f"`{name}`", gpu.model, f"{gpu.tflops:,g}", gpu.source] for name, gpu in known.items()]
    assert f"**{known['h100'].share * 100:g} %**" in text
    for gpu in known.values():  # a vendor's number with sparsity is twice the dense one
        if "with sparsity" in gpu.source:
            assert float(gpu.source.split()[2].replace(",", "")) == 2 * gpu.tflops


@pytest.mark.parametrize(
    ("model", "side"),
    [
        ("vit_tiny_patch16_224", 96),
        ("swin_tiny_patch4_window7_224", 224),
        ("convnext_atto", 64),
        ("eva02_tiny_patch14_224", 224),
        ("beit_base_patch16_224", 224),
    ],
)
def test_flop_are_those_that_torch_counts(model: str, side: int) -> None:
    """Linear layers and attention by their shapes, where torch runs them; with windows, masks and convolutions too."""
    with torch.device("meta"):
        network = timm.create_model(model, img_size=side) if "convnext" not in model else timm.create_model(model)
        images = torch.empty(2, 3, side, side)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(images)
        assert counted(lambda: network(images)) == counter.get_total_flops() > 0


def test_values_are_left_out_on_the_meta_device_alone_and_no_shape_with_them() -> None:
    with torch.device("meta"):
        expected = create_encoder(EncoderRecipe(model="vit_tiny_patch16_224"), classes=3).eval()
        flop = counted(lambda: expected(torch.empty(2, 3, 224, 224)))
    with shapes_only():
        found = create_encoder(EncoderRecipe(model="vit_tiny_patch16_224"), classes=3).eval()
        assert counted(lambda: found(torch.empty(2, 3, 224, 224))) == flop
        assert torch.ones(3, device="cpu").mul_(2).tolist() == [2, 2, 2]
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (found, expected)]
    assert shapes[0] == shapes[1]
    assert all(tensor.is_meta for tensor in found.state_dict().values())


def test_flop_of_a_block_are_those_of_its_products(folder: Path) -> None:
    """Per image a product of (n, a) and (a, b) takes 2 n a b: patches, and in each block qkv, attention, output and MLP."""
    one, two = (
        cost_of(suite, next(run for run in suite.runs if run.task == "neighbours"), 3).evaluate
        for suite, _ in (opened(folder), opened(folder, "encoder.toy.depth=2"))
    )
    tokens, width = 16 + 1, 16
    block = 2 * tokens * width * 3 * width + 2 * 2 * tokens * tokens * width + 2 * tokens * width * width
    block += 2 * 2 * tokens * width * 4 * width
    assert two - one == pytest.approx(block, rel=0.01)
    assert one - block == pytest.approx(2 * 16 * (3 * 4 * 4) * width, rel=0.01)


def test_a_classifier_is_counted_as_it_is_built(folder: Path) -> None:
    suite, _ = opened(folder)
    run = next(run for run in suite.runs if run.task == "tuned")
    recipe = run.recipe
    assert isinstance(recipe, FinetuneRecipe)
    with torch.device("meta"):
        model = create_encoder(recipe.encoder.architecture, recipe.side, classes=7, pooled_norm=True).eval()
        flop = counted(lambda: model(torch.empty(2, 3, recipe.side, recipe.side))) / 2
    found = cost_of(suite, run, 7)
    assert (found.evaluate, found.exported) == (flop, sum(tensor.numel() for tensor in model.state_dict().values()))


def test_a_suite_without_its_data_is_planned_from_what_is_published(folder: Path) -> None:
    text = SUITE.replace('path = "toy"', 'known = "flowers17"')
    (folder / "toy.toml").write_text(text)
    found = planned(folder)
    assert {name_of(group): group.images for group in found.groups}["lut"] == 2 * 4 * 1020
    assert found.missing == ({"flowers17": f"not at {folder / 'flowers17'}"}, {})


def test_a_set_on_the_hub_is_said_to_be_fetched(folder: Path) -> None:
    (folder / "toy.toml").write_text(SUITE.replace('path = "toy"', 'known = "cifar-10"'))
    found = planned(folder)
    [use] = [use for name, use in found.disk.items() if "cifar" in name]
    assert (use.folder, use.to_come) == (HUB, 2 * 10**8)
    assert found.missing[0] == {"cifar-10": f"not at {folder / 'uoft-cs/cifar10'}, will be downloaded from the Hub"}


def test_a_set_that_nobody_knows_is_in_no_sum(folder: Path) -> None:
    _, found, _, (known_sets, told) = planned(folder)
    assert {cost.origin for cost in found.to_run} == {NO_COUNT}
    assert found.images == 0
    assert any("6 runs use missing datasets of unknown size" in line for line in totals(found, Rates()))
    assert known_sets == {}
    assert any("expected the images" in paragraph for paragraph in told.values())


def test_a_finished_run_costs_nothing_and_tells_its_speed(folder: Path) -> None:
    write_images(folder)
    suite, workspace = opened(folder)
    run_suite(suite, ["pretrain"], ["seed0"], workspace)
    found = planned(folder)
    group = found.groups[0]
    assert (group.count(DONE), len(group.to_run)) == (1, 1)
    record = json.loads((workspace.results / "records/toy/pretrain/lut/seed0.json").read_text())
    assert group.to_run[0].origin == MEASURED
    assert group.seconds == pytest.approx(4 * TRAIN / record["images_per_second"])
    record["hardware"] |= {"processes": 4, "gpus": ["some GPU"] * 4}
    path = workspace.results / "records/toy/pretrain/lut/seed0.json"
    del record["seal"]
    write_sealed(path, record)
    eight = planned(folder, Rates(gpus=8)).all
    assert eight.seconds == pytest.approx(group.seconds * 4 / 8), "measured on four, planned on eight"
    assert eight.gpu_hours == pytest.approx(4 * group.seconds / 3600)
    assert [line.split(" was ")[0] for line in totals(found.all, Rates()) if "measured on" in line] == [
        "The speed of 1 run"
    ]
    again = planned(folder, None, "pretrain.lut.epochs=5")
    assert again.groups[0].count(DONE) == 0, "a changed run is to be run"
    shutil.rmtree(folder / "toy/val")
    assert planned(folder).groups[0].count(DONE) == 1, "pre-training needs no validation images"


def test_a_run_of_another_suite_with_equal_settings_on_this_machine_tells_the_speed(folder: Path) -> None:
    write_images(folder)
    suite, workspace = opened(folder)
    run_suite(suite, ["pretrain"], ["seed0"], workspace)
    record = read_record(next((folder / "results").rglob("seed0.json")))
    (folder / "results/records/toy").rename(folder / "results/records/other")
    shutil.rmtree(folder / "runs")
    [run] = planned(folder, None, "pretrain.lut.epochs=5", "seeds=[3]").groups[0].runs
    assert (run.origin, run.seconds) == (MEASURED, pytest.approx(5 * TRAIN / (record.images_per_second or 0)))
    assert planned(folder, None, "pretrain.lut.decoder_depth=2").groups[0].count(NO_RATE) == 2, "another run's"
    elsewhere = record.model_copy(
        update={"hardware": record.hardware.model_copy(update={"cpu": "CPU B"}), "suite": "other"}
    )
    write_record(elsewhere, None, folder / "results")
    assert planned(folder).groups[0].count(NO_RATE) == 2, "another machine's"


def test_a_run_without_a_speed_takes_as_long_as_another_seed_on_this_machine(folder: Path) -> None:
    """Such as a probe whose features were at hand."""
    write_images(folder)
    suite, workspace = opened(folder)
    run_suite(suite, ["pretrain"], ["seed0"], workspace)
    path = workspace.results / "records/toy/pretrain/lut/seed0.json"
    record = json.loads(path.read_text())
    del record["seal"]
    write_sealed(path, record | {"images_per_second": None, "wall_seconds": 12.5})
    found = planned(folder)
    assert (found.groups[0].to_run[0].origin, found.groups[0].seconds) == (REPEATED, 12.5)
    [line] = [line for line in totals(found.all, Rates()) if "another seed" in line]
    assert line.startswith("The hours of 1 run are those of another seed or draw, on ")
    assert planned(folder, None, "pretrain.lut.epochs=5").groups[0].count(NO_RATE) == 2, "another run's"
    assert planned(folder, Rates(gpus=8)).groups[0].count(NO_RATE) == 1, "on eight GPUs"
    assert planned(folder, Rates(gpu=find_gpu("a100"))).groups[0].to_run[0].origin == ESTIMATED
    write_sealed(path, record | {"images_per_second": None, "hardware": record["hardware"] | {"cpu": "CPU B"}})
    assert planned(folder).groups[0].count(NO_RATE) == 1, "another machine's"


def test_a_set_of_corruptions_that_are_neither_named_nor_present_is_of_unknown_size(folder: Path) -> None:
    write_images(folder)
    text = SUITE + PROBES.replace('corruptions = ["fog", "snow"]', "").replace(
        'source = "corrupted"\npath = "toy-c"\ncopy_of = "toy/val"\ncopy_side = 16\ncopy_per_class = 5',
        'path = "toy-c"',
    )
    (folder / "toy.toml").write_text(text)
    [cost] = next(group.to_run for group in planned(folder, None, "seeds=[0]").groups if "copy" in name_of(group))
    assert cost.origin == NO_COUNT


def test_a_set_in_the_data_root_itself_hides_no_other(folder: Path) -> None:
    write_images(folder)
    for split in ("train", "val"):
        shutil.copytree(folder / "toy" / split, folder / split)
    (folder / "toy.toml").write_text(SUITE + PROBES.replace('data = "toy"', 'data = "root"') + "[data.root]\n")
    disk = planned(folder).disk
    assert disk["root"].present == disk["toy"].present
    assert any("corrupted copy" in name for name in disk)


def test_disk_is_counted_to_the_byte_where_it_can_be(folder: Path) -> None:
    write_images(folder)
    suite, workspace = opened(folder, "pretrain.lut.cache=true")
    found = plan_of(suite, workspace).disk
    files = sum(path.stat().st_size for path in (folder / "toy").rglob("*.png"))
    assert found["toy"].present == files
    assert found["cache of toy, short side 16"].to_come == TRAIN * 3 * 16 * 16
    cache = next((folder / ".lutbench/cache").iterdir()) if (folder / ".lutbench/cache").exists() else None
    assert cache is None, "a plan makes none"
    run_suite(suite, [], [], workspace)
    done = plan_of(suite, workspace).disk
    assert not any(name.startswith(("checkpoints", "cache")) for name in done), "what has finished needs none"


SHIFTED = """
[classifier.deit]
model = "deit_tiny_patch16_224"
[robustness.all]
sets = ["imagenet-val", "imagenet-occlusion", "imagenet-o", "imagenet-9", "si-score-size", "si-score-rotation"]
"""


def test_shifted_sets_take_their_own_room_and_that_of_what_they_are_made_of(folder: Path) -> None:
    """ImageNet for three of them, once, and the parts of a set that are there together each by itself."""
    head = SUITE[: SUITE.index("[data.toy]")].replace("[0, 1]", "[0]")
    (folder / "toy.toml").write_text(head + SHIFTED)
    disk = planned(folder).disk
    assert {name: use.to_come for name, use in disk.items() if use.folder == "data"} == {
        "imagenet-1k (as published)": 155 * 10**9,
        "imagenet-o (as published)": 2 * 10**8,
        "imagenet-9 (size unknown)": None,
        "si-score-size (as published)": 35 * 10**8,
        "si-score-rotation (as published)": 15 * 10**8,
    }


@pytest.mark.parametrize(("save_every", "kept"), [(500, 1), (7, 2), (3, KEEP)])
def test_checkpoints_take_the_room_that_was_planned(folder: Path, save_every: int, kept: int) -> None:
    """Twelve steps, the last of which saves too; a student, its moments and its teacher, large beside their counters."""
    write_images(folder)
    suite, workspace = opened(
        folder, "encoder.toy.width=64", f"pretrain.lut.save_every={save_every}", "pretrain.lut.head_width=256"
    )
    pretraining = replace(suite, runs=suite.runs[:1])
    disk = plan_of(pretraining, workspace).disk
    run_suite(suite, ["pretrain"], ["seed0"], workspace)
    files = list((folder / "runs").rglob("tensors.safetensors"))
    there = sum(tensor.nbytes for file in files for tensor in load_file(file).values())
    assert len(files) == kept
    assert there == pytest.approx(disk[f"checkpoints (last {KEEP} of each run)"].to_come, rel=0.01)
    left = [*(folder / "runs").rglob("*coder.safetensors"), *(folder / "runs").rglob("teacher.safetensors")]
    exported = sum(tensor.nbytes for file in left for tensor in load_file(file).values())
    assert len(left) == 3
    assert exported == disk["weights of encoders, decoders, classifiers and segmenters"].to_come


def test_a_disk_that_is_too_small_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(folder)
    suite, workspace = opened(folder)
    uses = list(plan_of(suite, workspace).disk.values())
    wanted = sum(use.to_come or 0 for use in uses)
    rooms = rooms_of(workspace)
    small = [replace(room, free=wanted - 1) for room in rooms]
    [(there, needed, free)] = by_disk(uses, small)
    assert ([room.name for room in there], needed, free) == (["data", "runs", "results"], wanted, wanted - 1)
    apart = [replace(room, device=number) for number, room in enumerate(rooms)]
    assert [needed for _, needed, _ in by_disk(uses, apart)] == [0, wanted, 0], "checkpoints and weights are in runs"
    monkeypatch.setattr("lutbench.plan.show.rooms_of", lambda workspace: small)
    show_plan(suite, workspace, Rates())
    assert "will not fit" in capsys.readouterr().out


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
    show_plan(suite, workspace, Rates(read_rates(suite, ["lut=10"]), gpus=2))
    out = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in out.splitlines()]
    pretraining, tuning = 2 * 4 * TRAIN, 2 * (3 * TRAIN + VAL)
    seconds = (pretraining + tuning + 2 * (TRAIN + VAL)) / 10
    assert any(
        row.startswith(f"lut 2 {pretraining} ") and row.endswith(f" 10.0 {duration(pretraining / 10)}") for row in rows
    )
    assert rows.index("tuned") < rows.index("neighbours")
    assert any(row.startswith(f"lut 2 {tuning} ") for row in rows)
    assert any(row.startswith("downstream 4 ") for row in rows), "each stage has its sum"
    assert f"{duration(seconds)} one after another on 2 GPUs: {2 * seconds / 3600:.2f} GPU-hours." in " ".join(rows)
    assert "will not fit" not in out


@pytest.mark.parametrize("suite", ["tiny", "small"])
def test_no_number_of_a_plan_is_cut_where_80_columns_are_shown(
    suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_plan(load_suite(suite), Workspace(tmp_path, tmp_path / "runs", tmp_path / "results"), Rates(flops=1e12))
    out = capsys.readouterr().out
    table = out[: out.index("one after another")]
    assert "…" not in table
    assert max(map(len, (line.rstrip() for line in table.splitlines()))) <= 80


@pytest.mark.parametrize("gpu", [None, "h100"])
def test_the_summary_of_the_largest_suite_fits_a_screen(
    gpu: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "suite.toml"
    text = (Path(__file__).parents[1] / "suites/paper.toml").read_text()
    own.write_text(f'{text}\n[method.own]\nencoder = "b"\ncheckpoint = "{tmp_path}/no.pth"\n')
    suite, workspace = load_suite(str(own)), Workspace(tmp_path, tmp_path / "runs", tmp_path / "results")
    rates = Rates(gpus=8, gpu=find_gpu(gpu) if gpu else None)
    show_summary(suite, workspace, rates)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if not line.startswith("counting")]
    assert len(lines) <= 24 + 3 * len(str(tmp_path)) // 80, "three times it names the folder"
    assert max(map(len, lines)) <= 80
    out = " ".join(lines)
    assert "30 datasets are missing: imagenet-1k, " in out
    assert "Problem: method.own.checkpoint: there is no file" in out.replace("Problem (and 1 more)", "Problem")
    assert "lutbench data list NAME says how" in out
    costs = costs_of(suite, workspace, survey_all(suite, workspace), rates)
    [row] = [line.split() for line in lines if line.startswith("all ")]
    assert "9 runs use datasets of unknown size: not in the sums." in out, "of lists that are not here"
    hours = [f"{costs.gpu_hours:,.1f}+", f"{costs.gpu_hours / 8 / 24:,.1f}+"]
    assert row == [
        "all",
        str(len(suite.runs)),
        *amount(costs.images).split(),
        f"{costs.flop:.1e}",
        *(hours if gpu else []),
    ]
    assert ("--gpu h100" in lines[-1]) == (gpu is None), "what to do for hours, and only where there are none"


def test_the_summary_says_what_is_done_and_what_comes_next(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(folder)
    suite, workspace = opened(folder)
    run_suite(suite, ["pretrain"], ["seed0"], workspace)
    capsys.readouterr()
    show_summary(suite, workspace, Rates())
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("pretrain 1 of 2 ") for line in lines)
    assert "+: sum over 1 of the 5 runs only." in lines
    assert f"Next:lutbenchrun{suite.given}." in "".join("".join(lines).split()), "wherever lines are broken"
    run_suite(suite, [], [], workspace)
    capsys.readouterr()
    show_summary(suite, workspace, Rates())
    out = capsys.readouterr().out
    assert "All runs have finished. Next: lutbench tables" in out
    assert "missing" not in out


def test_rows_without_hours_are_empty_and_the_last_line_says_how_to_get_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(folder)
    show_plan(*opened(folder), Rates())
    *above, last = capsys.readouterr().out.rstrip().splitlines()
    assert last == "6 runs have no speed. For hours: --gpu h100, --flops 4e14 or --rate NAME=N."
    assert "no rate" not in "".join(above)


def test_numbers_are_printed_in_units_that_people_read() -> None:
    assert [amount(n) for n in (0, 98_304, 2_049_867_200)] == ["0", "98,304", "2,049.9 M"]
    assert [duration(float(Fraction(s))) for s in (12, 204, 4_332_600)] == ["12 s", "3.4 min", "1,203.5 h"]
    assert [gigabytes(n) for n in (None, 1_500_000, int(np.int64(145e9)))] == ["unknown", "1.5 MB", "145.0 GB"]


def test_a_row_that_cannot_be_run_is_told_and_the_others_are_planned(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(folder)
    row = '[encoder.net]\nmodel = "resnet10t.c3_in1k"\nimage_size = 64\n[method.net]\ntimm = true\nencoder = "net"\n'
    table = '[analysis.inside]\ndata = "toy"\nmeasures = ["fourier"]\n'
    (folder / "toy.toml").write_text(SUITE + row + table)
    show_plan(*opened(folder), Rates())
    told = " ".join(capsys.readouterr().out.split())
    assert "4 runs cannot run, see below. They are not in the sums." in told, "two seeds, and untrained ones"
    assert (
        "analysis.inside, row net: an analysis needs a sequence of blocks over the tokens of a square patch grid"
        in told
    )
    assert "net 2 cannot run" in told
    assert "lut 2 of 2" not in told
    assert "neighbours lut 2 102 " in told, "30 and 21 images, twice"


def test_what_cannot_be_counted_is_told_and_no_reason_not_to_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trips(call: Callable[[], object]) -> int:
        raise AssertionError("Expected gradient function to be set")

    write_images(folder)
    monkeypatch.setattr("lutbench.plan.compute.counted", trips)
    compute._encoder.cache_clear()
    show_plan(*opened(folder), Rates())
    compute._encoder.cache_clear()
    told = " ".join(capsys.readouterr().out.split())
    assert "The FLOP of 4 runs cannot be counted, see below. They are not in the sums." in told
    assert "vit_tiny_patch16_224': its FLOP cannot be counted (AssertionError: Expected gradient function" in told


def test_where_nothing_was_run_a_plan_reads_no_whole_file_of_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reads(path: Path) -> str:
        raise AssertionError(f"{path} is read whole")

    write_images(folder)
    weights = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=0
    ).state_dict()
    torch.save(weights, folder / "mine.pth")
    (folder / "toy.toml").write_text(f'{SUITE}[method.mine]\ncheckpoint = "{folder / "mine.pth"}"\nencoder = "toy"\n')
    monkeypatch.setattr("lutbench.run_hashes.sha256_of", reads)
    monkeypatch.setattr("lutbench.models.weights.sha256_of", reads)
    show_plan(*opened(folder), Rates())
    assert "mine.pth, read as: timm" in capsys.readouterr().out
