"""Segmentation runs are MMSegmentation's, with the suite's promises: rates, bits, resume, records, export."""

import copy
import importlib.util
import json
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_runs import SCENES, killed_at_a_checkpoint, outcome, performed, performed_by, toy_run, write_scenes

pytest.importorskip("mmseg")

from mmcv.cnn.bricks.drop import DropPath as MmcvDropPath
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.structures import PixelData
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from safetensors.torch import load_file
from timm.layers.drop import DropPath as TimmDropPath
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from downstream.segmentation import segment as segmentation
from downstream.segmentation.checkpoints import newest_sealed, read_checkpoint
from downstream.segmentation.config import mmseg_config
from downstream.segmentation.dropout import spread
from downstream.segmentation.export import export_mmseg
from downstream.segmentation.pyramid import blocks_of, check_segmentation
from downstream.segmentation.scores import ConfusionMetric
from lutbench.errors import UserError
from lutbench.files import write_sealed
from lutbench.recipes.segmentation import SegmentationRecipe
from lutbench.record import read_record
from lutbench.run import Run
from lutbench.train.batches import Schedule
from lutbench.train.loader import bytes_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_scenes(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run makes that reads its images itself and is evaluated at the end alone."""
    folder = tmp_path_factory.mktemp("alone")
    write_scenes(folder)
    return performed(scenes_run(folder))


SHORT = {"iterations": 4, "warmup": 1}


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that was evaluated at several scales too, which takes three seconds more."""
    folder = tmp_path_factory.mktemp("scaled")
    write_scenes(folder)
    run = scenes_run(folder, **SHORT, tta=True)
    several = segmentation._multi_scale
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "_multi_scale", lambda *of: time.sleep(3) or several(*of))
        performed(run)
    return run


RESUMED = {"iterations": 20, "drop_path": 0.3, "save_every": 1}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of :data:`RESUMED` makes that nothing interrupts."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_scenes(folder)
    made: dict[str, Any] = performed_by(scenes_run(folder, **RESUMED), 1)
    return made


def scenes_run(folder: Path, home: str = "here", **settings: Any) -> Run:
    return toy_run(folder, home, suite_text="\n".join(without(settings)), **settings)


def without(settings: dict[str, Any]) -> list[str]:
    """The lines of the suite, but those of settings that are given."""
    return [line for line in SCENES.splitlines() if line.split(" = ")[0] not in settings]


def recipe(model: str = "vit_base_patch16_224", **settings: Any) -> SegmentationRecipe:
    architecture = {"model": model, **settings.pop("architecture", {})}
    data = {"source": "scenes", "path": "scenes", "classes": ["ground", "amber", "blue"], "reduce_zero_label": True}
    encoder = {"architecture": architecture, "kind": "scratch"}
    return SegmentationRecipe.model_validate({"data": data, "encoder": encoder, **settings})


def config(folder: Path, settings: SegmentationRecipe) -> Any:
    run = scenes_run(folder)
    return mmseg_config(settings, run.dataset("train"), run.dataset("val"))


# The published recipe


def test_every_parameter_of_twelve_blocks_learns_at_its_depths_rate(folder: Path) -> None:
    cfg = config(folder, recipe(architecture={"width": 24, "heads": 2}, crop=64, stride=32, auxiliary_channels=8))
    assert cfg.model.backbone.num_layers == 12
    model = MODELS.build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    by_parameter = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    rates = {name: by_parameter[id(parameter)] for name, parameter in model.named_parameters()}
    for name, rate in rates.items():
        place = name.split(".")
        block = int(place[2]) + 1 if name.startswith("backbone.layers.") else 0
        depth = block if place[0] == "backbone" else 13
        assert rate == pytest.approx(1e-4 * 0.65 ** (13 - depth), rel=1e-12), name
    assert len({round(rate, 15) for rate in rates.values()}) == 14


def test_the_defaults_are_the_config_that_reproduced_mae(folder: Path) -> None:
    cfg = config(folder, recipe())
    assert cfg.model.backbone.out_indices == [3, 5, 7, 11]
    assert (cfg.model.backbone.init_values, cfg.model.backbone.drop_path_rate) == (1.0, 0.1)
    assert (cfg.model.decode_head.channels, cfg.model.auxiliary_head.in_index) == (768, 2)
    assert (cfg.model.decode_head.loss_decode.loss_weight, cfg.model.auxiliary_head.loss_decode.loss_weight) == (1, 0.4)
    assert cfg.model.test_cfg == {"mode": "slide", "crop_size": (512, 512), "stride": (341, 341)}
    optimizer = {"type": "AdamW", "lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0.05}
    assert {name: cfg.optim_wrapper.optimizer[name] for name in optimizer} == optimizer
    rise, fall = cfg.param_scheduler
    assert (rise.start_factor, rise.end, fall.begin, fall.end, fall.power) == (1e-6, 1500, 1500, 160_000, 1.0)
    assert cfg.train_cfg.max_iters == 160_000
    assert cfg.train_dataloader.batch_size == 16
    resize = next(step for step in cfg.train_pipeline if step.type == "RandomResize")
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))


@pytest.mark.parametrize(
    ("warmup", "rates"),
    [
        (0, [1, 0.8, 0.6, 0.4, 0.2, 0]),
        (1, [1e-6, 1, 0.75, 0.5, 0.25, 0]),
        (2, [1e-6, 1, 1, 2 / 3, 1 / 3, 0]),
        (4, [1e-6, 1 / 3, 2 / 3, 1, 1, 0]),
    ],
)
def test_the_rate_rises_in_the_warm_up_and_falls_to_zero(folder: Path, warmup: int, rates: list[float]) -> None:
    cfg = config(folder, recipe(iterations=6, warmup=warmup, lr=0.5))
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedulers = [PARAM_SCHEDULERS.build(one, default_args={"optimizer": optimizer}) for one in cfg.param_scheduler]
    found = []
    for _ in rates:
        found.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert found == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(4, [0, 1, 2, 3]), (5, [1, 2, 3, 4]), (6, [1, 2, 3, 5]), (12, [3, 5, 7, 11]), (24, [7, 11, 15, 23])],
)
def test_the_pyramid_takes_four_blocks_at_the_published_shares_of_the_depth(depth: int, blocks: list[int]) -> None:
    assert blocks_of(recipe().blocks, depth) == blocks


def test_the_four_blocks_are_distinct_and_end_with_the_last() -> None:
    for depth in range(4, 49):
        blocks = blocks_of(recipe().blocks, depth)
        assert len(set(blocks)) == 4, depth
        assert blocks == sorted(blocks), depth
        assert blocks[-1] == depth - 1


# Bad input


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"crop": 500}, "crop = 500 is not a multiple of the patch size 16: use 496"),
        ({"architecture": {"depth": 3}}, "the encoder has 3: use an encoder with at least four"),
        ({"blocks": [3, 5, 7, 12]}, "the encoder has 12: change blocks"),
        ({"model": "pit_ti_224"}, "maps at strides 8, 16, 32. Remove the method from methods"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        check_segmentation(recipe(**settings))
    assert told in str(error.value)


def test_a_batch_that_does_not_divide_over_the_processes_is_refused() -> None:
    with pytest.raises(UserError, match="is not divisible by 3 processes"):
        check_segmentation(recipe(), processes=3)


# Runs


def test_a_run_learns_and_leaves_record_picture_and_segmenter(folder: Path) -> None:
    run = scenes_run(folder, iterations=150, warmup=10, lr=5e-3, save_every=1000)
    found = performed(run)
    assert found["n"] == 5
    assert found["measurements"]["mIoU"] > 50, "three colours are easily told apart"
    assert found["measurements"].keys() == {"mIoU", "mAcc", "aAcc", "IoU ground", "IoU amber", "IoU blue"}
    assert json.loads((run.folder / "finished.json").read_text())["checkpoint"] == found["checkpoint"]
    with Image.open(run.folder / "predictions.png") as sheet:
        assert sheet.width > sheet.height > 100


def test_a_run_computes_in_bfloat16_where_it_is_asked_to_on_a_cpu_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = set[torch.dtype]()
    linear = torch.nn.functional.linear

    def multiplied(*arguments: Any) -> torch.Tensor:
        made = linear(*arguments)
        if torch.is_grad_enabled():
            products.add(made.dtype)
        return made

    monkeypatch.setattr(torch.nn.functional, "linear", multiplied)
    brief = {"iterations": 12, "warmup": 2, "save_every": 1000}
    half = performed(scenes_run(folder, "bf16", precision="bf16", **brief))
    assert products == {torch.bfloat16}
    products.clear()
    full = performed(scenes_run(folder, "fp32", precision="fp32", **brief))
    assert products == {torch.float32}
    assert half["extra"]["loss"] != full["extra"]["loss"]
    assert half["extra"]["loss"] == pytest.approx(full["extra"]["loss"], rel=0.05)


def test_a_killed_run_started_again_ends_with_the_same_bits(folder: Path, uninterrupted: dict[str, Any]) -> None:
    run = scenes_run(folder, "killed", **RESUMED)
    killed_at_a_checkpoint(run, step=3)
    killed_at_a_checkpoint(run, step=12)
    assert run.status().state == "resumable"
    assert performed_by(run, 1) == uninterrupted


def test_the_number_of_loader_workers_changes_nothing(folder: Path, alone: dict[str, Any]) -> None:
    assert performed(scenes_run(folder, "helped", workers=3)) == alone


def test_no_more_bytes_of_training_crops_are_under_way_than_allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, schedule = scenes_run(folder), Schedule.of_iterations(10, 12, 4, 0)
    settings: Any = run.recipe
    most = 4 * 16 * 16 * segmentation.PIXEL_BYTES
    batches = list(segmentation._train_loader(config(folder, settings), schedule, 0, settings))
    masks = [[sample.gt_sem_seg.data for sample in batch["data_samples"]] for batch in batches]
    assert max(bytes_of(batch["inputs"]) + bytes_of(of) for batch, of in zip(batches, masks, strict=True)) == most
    monkeypatch.setattr("lutbench.train.loader.IN_FLIGHT", 2 * most)
    helped = settings.model_copy(update={"workers": 3})
    loader = segmentation._train_loader(config(folder, settings), schedule, 0, helped)
    assert (loader.num_workers, loader.prefetch_factor) == (2, 1)


def test_evaluating_on_the_way_changes_nothing(folder: Path, alone: dict[str, Any]) -> None:
    assert performed(scenes_run(folder, "watched", val_every=6)) == alone


def test_a_heads_loss_is_the_librarys_without_its_accuracy(folder: Path) -> None:
    run = scenes_run(folder)
    model: Any = segmentation.build_segmenter(config(folder, run.recipe), run)
    masks = torch.randint(3, (2, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    masks[:, :, :2] = 255
    samples = [SegDataSample(gt_sem_seg=PixelData(data=mask)) for mask in masks]
    for head in (model.decode_head, model.auxiliary_head):
        logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        librarys = type(head).loss_by_feat(head, logits, samples)
        assert librarys.pop("acc_seg") > 0
        assert head.loss_by_feat(logits, samples) == librarys
        assert librarys["loss_ce"] > 0


class HostReads(TorchDispatchMode):
    """Counts operations for which a host waits for its GPU: a number is read, a shape depends on values, a list becomes a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(operation)
        by_mask = name.startswith("aten.index.") and any(of is not None and of.dtype == torch.bool for of in args[1])
        if by_mask or any(
            part in name for part in ("_local_scalar", "nonzero", "masked_select", "unique", "lift_fresh")
        ):
            self.found.append(name)
        return operation(*args, **(kwargs or {}))


def test_a_training_step_reads_nothing_that_a_gpu_computed(folder: Path) -> None:
    run = scenes_run(folder, dropout=0.3, drop_path=0.3)
    cfg = config(folder, run.recipe)
    model: Any = segmentation.build_segmenter(cfg, run).train()
    optimizer = segmentation.optimizer_of(model, cfg, run.recipe)
    schedule = Schedule.of_iterations(10, 12, 4, 0)
    batch = next(iter(segmentation._train_loader(cfg, schedule, 0, run.recipe)))
    with HostReads() as reads:
        model.train_step(batch, optimizer)
    assert reads.found == []
    librarys: Any = MODELS.build(cfg.model).train()
    with HostReads() as reads:
        librarys.train_step(batch, segmentation.optimizer_of(librarys, cfg, run.recipe))
    assert {name.split(".")[1] for name in reads.found} == {"lift_fresh", "index"}


def test_images_are_prepared_as_the_library_does(folder: Path) -> None:
    run = scenes_run(folder)
    cfg = config(folder, run.recipe)
    own: Any = segmentation.build_segmenter(cfg, run).data_preprocessor
    librarys = MODELS.build(cfg.model.data_preprocessor)
    for training in (True, False):
        images = [torch.randint(256, (3, 16, 16), dtype=torch.uint8) for _ in range(2)]
        samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.ones(1, 16, 16))) for _ in images]
        found, expected = (
            of({"inputs": images, "data_samples": samples}, training)["inputs"] for of in (own, librarys)
        )
        assert torch.equal(found, expected)


def test_two_processes_make_the_losses_and_weights_of_one(folder: Path) -> None:
    """With dropout, dropped paths and BatchNorm, whose scale and shift learn."""
    settings = {"dropout": 0.3, "drop_path": 0.3, "log_every": 1, "iterations": 12, "warmup": 2, "lr": 3e-3}
    one_run = scenes_run(folder, "one", **settings)
    one = performed(one_run)
    run = scenes_run(folder, "two", **settings)
    two = performed_by(run, 2)
    assert two["extra"]["loss"] == pytest.approx(one["extra"]["loss"], rel=1e-4)
    assert two["measurements"]["mIoU"] == pytest.approx(one["measurements"]["mIoU"], abs=0.02)
    assert two["n"] == 5
    expected, found = (load_file(each.folder / "segmenter.safetensors") for each in (one_run, run))
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-3, atol=1e-3), name
        if ".bn." in name and name.endswith("weight"):
            assert (found[name] - 1).abs().max() > 1e-3, f"{name} did not learn"


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("drop", [nn.Dropout(0.5), nn.Dropout2d(0.5), MmcvDropPath(0.5), TimmDropPath(0.5)])
def test_what_is_dropped_of_an_image_is_the_same_on_any_number_of_processes(drop: nn.Module, processes: int) -> None:
    """Every process looks at its own rows, in the order in which its loader brings them."""
    whole = Schedule(images=8, epochs=1, batch=8, micro_batch=8, seed=0, rank=0, processes=1)
    images = 1 + torch.rand(8, 3, 2, 2)
    torch.manual_seed(0)
    expected = torch.empty_like(images)
    expected[whole.rows(0)] = drop(images[whole.rows(0)])
    assert 0 < (expected == 0).float().mean() < 1
    for rank in range(processes):
        model = nn.Sequential(nn.Sequential(copy.deepcopy(drop)), nn.Dropout(0.0))
        schedule = replace(whole, rank=rank, processes=processes)
        spread(model, schedule)
        rows = schedule.rows(0)
        torch.manual_seed(0)
        torch.testing.assert_close(model(images[rows]), expected[rows])
        assert torch.equal(model.eval()(images[rows]), images[rows])


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")
def test_no_log_file_of_a_run_stays_open_in_the_process(folder: Path, scaled: Run) -> None:
    run = scenes_run(folder, **SHORT)
    performed(run)
    opened = [Path(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    logs = [path for path in opened if path.suffix == ".log"]
    assert not [path for path in logs for of in (scaled, run) if path.is_relative_to(of.folder)]


def test_several_scales_are_measured_beside_one(folder: Path, scaled: Run) -> None:
    found, alone = outcome(scaled)["measurements"], performed(scenes_run(folder, **SHORT))["measurements"]
    assert found.keys() - alone.keys() == {"mIoU, multi-scale"}
    assert alone.items() <= found.items()


@pytest.mark.parametrize(
    ("settings", "shorts"),
    [
        ({}, [512, 512, 512, 640, 768, 896]),
        ({"crop": 64, "stride": 64, "scale": [960, 96]}, [64, 72, 96, 120, 144, 168]),
    ],
)
def test_no_scale_makes_the_short_side_less_than_the_crop(
    folder: Path, settings: dict[str, Any], shorts: list[int]
) -> None:
    resizes = config(folder, recipe(**settings)).tta_pipeline[1]["transforms"][0]
    assert [resize["scale"][1] for resize in resizes] == shorts


def test_the_runs_seconds_hold_its_evaluation(scaled: Run) -> None:
    assert read_record(next(scaled.folder.rglob("records/**/*.json"))).wall_seconds > 3


def test_a_run_in_which_nothing_can_move_is_an_error(folder: Path) -> None:
    with pytest.raises(UserError, match="No weight changed"):
        performed(scenes_run(folder, lr=1e-45, iterations=2, warmup=0))


def test_a_last_update_that_ruins_the_weights_is_no_result(folder: Path) -> None:
    """Of a single step, whose loss is taken before its update."""
    run = scenes_run(folder, lr=1e300, warmup=0, iterations=1)
    with pytest.raises(UserError, match=r"after step 1: .* tensors are not finite"):
        performed(run)
    assert not list(run.checkpoints.glob("step-*"))
    assert not list(run.folder.glob("*.safetensors"))
    assert not list(run.workspace.results.rglob("*.json"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_images(folder: Path) -> None:
    run = scenes_run(folder, lr=1e30, log_every=1, warmup=0)
    with pytest.raises(UserError, match="not finite at step"):
        performed(run)
    report = json.loads((run.folder / "non-finite-0.json").read_text())
    assert len(report["images"]) == 4
    assert not (run.folder / "finished.json").exists()


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(folder: Path, uninterrupted: dict[str, Any]) -> None:
    run = scenes_run(folder, "killed", **RESUMED)
    killed_at_a_checkpoint(run, step=5)
    newest = sorted(run.checkpoints.glob("step-*.json"))[-1].with_suffix(".pth")
    newest.write_bytes(newest.read_bytes()[:-100])
    assert performed_by(run, 1) == uninterrupted


def test_what_a_seal_says_is_sealed_and_strangers_are_ignored(folder: Path) -> None:
    settings = {"iterations": 6, "save_every": 2}
    run = scenes_run(folder, "whole", **settings)
    whole = performed(run)
    assert sorted(path.name for path in run.checkpoints.glob("step-*")) == [
        f"step-0000000{step}.{ending}" for step in (4, 6) for ending in ("json", "pth")
    ]
    (run.folder / "finished.json").unlink()
    seal = run.checkpoints / "step-00000006.json"
    seal.write_text(seal.read_text().replace('"step": 6', '"step": 1000000000'))
    for name in ("step-old.json", "step-7.pth", "step-00000009.pth"):  # of the last, the seal is missing
        (run.checkpoints / name).write_text("{}")
    assert run.status().detail == "at step 6"
    for facts in ({"seconds": "x"}, {"digest": []}):
        values = json.loads((before := run.checkpoints / "step-00000004.json").read_text())
        kept = before.read_text()
        write_sealed(before, {name: value for name, value in values.items() if name != "seal"} | {"facts": facts})
        with pytest.raises(UserError, match=r"No checkpoint in .* is intact"):
            newest_sealed(run.checkpoints, run.identity, 6)
        before.write_text(kept)
    assert performed(run) == whole
    checkpoint, damage = newest_sealed(run.checkpoints, run.identity, 6)
    assert checkpoint is not None
    assert (checkpoint.step, damage) == (6, [])
    assert not (run.checkpoints / "step-00000009.pth").exists()
    assert (run.checkpoints / "step-7.pth").exists()


def test_outputs_that_are_not_finite_are_no_result() -> None:
    """As those of finite weights that overflow."""
    metric = ConfusionMetric()
    metric.dataset_meta = {"classes": ["ground", "amber"]}
    data = {name: {"data": torch.zeros(1, 2, 2, dtype=torch.long)} for name in ("pred_sem_seg", "gt_sem_seg")}
    sample: dict[str, Any] = {**data, "seg_logits": {"data": torch.zeros(2, 2, 2)}, "img_path": "some/image.jpg"}
    metric.process({}, [sample])
    sample["seg_logits"]["data"][0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"some/image\.jpg: the segmenter's outputs are not finite"):
        metric.process({}, [sample])


# Checkpoints


class Payload:
    """What a pickle could do on loading."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "step-00000001.pth"
    torch.save({"meta": {"iter": 1}, "state_dict": {}, "message_hub": Payload()}, path)
    with pytest.raises(UserError, match="could run code"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Payload()))  # the payload works where it is let
    assert (tmp_path / "ran").exists()


def test_the_suites_own_checkpoints_hold_tensors_and_plain_values_alone(folder: Path) -> None:
    run = scenes_run(folder, iterations=4, warmup=1, save_every=2)
    performed(run)
    for path in run.checkpoints.glob("*.pth"):
        assert not torch.serialization.get_unsafe_globals_in_checkpoint(path)
        assert read_checkpoint(path)["meta"]["iter"] == int(path.stem.removeprefix("step-"))


# Taking it away


def test_an_exported_segmenter_works_in_mmsegmentation_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lutbench.cli import app

    run = scenes_run(folder, iterations=20)
    performed(run)
    target = folder / "away"
    app(
        [
            "export",
            "toy/downstream/task/scratch/seed0",
            "--to",
            "mmseg",
            str(target),
            "--runs",
            str(run.workspace.runs),
        ],
        standalone_mode=False,
    )
    assert "init_model" in capsys.readouterr().out
    model = init_model(str(target / "config.py"), str(target / "checkpoint.pth"), device="cpu")
    assert model.dataset_meta["classes"] == ["ground", "amber", "blue"]
    labels, predictions = [], []
    val = run.dataset("val")
    for index in range(len(val)):
        found = inference_model(model, str(val.image_path(index)))
        labels.append(val.mask(index).ravel())
        predictions.append(found.pred_sem_seg.data.numpy().ravel())
    label, prediction = np.concatenate(labels), np.concatenate(predictions)
    right = (label == prediction)[label != 255].mean() * 100
    assert right == pytest.approx(outcome(run)["measurements"]["aAcc"], abs=1e-9)


def test_exporting_executes_nothing_and_refuses_a_config_that_was_changed(folder: Path) -> None:
    run = scenes_run(folder)
    performed(run)
    config, finished, ran = run.folder / "segmenter.py", run.folder / "finished.json", folder / "ran"
    text, marked = config.read_text(), finished.read_text()
    evil = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n"
    for changed in (evil + text, text.replace("amber", "azure")):
        config.write_text(changed)
        with pytest.raises(UserError, match=r"segmenter\.py: damaged or changed since the run"):
            export_mmseg(run.folder, folder / "away")
    # As a run of before there were seals left it: there is no hash of the config
    finished.write_text(json.dumps({"checkpoint": json.loads(marked)["checkpoint"]}))
    call = text.replace("'ground'", f"__import__('pathlib').Path({str(ran)!r}).touch() or 'ground'")
    for changed in (
        evil + text,
        call,
        text.replace("'ground'", "dict(**{'a': 1})"),
        text + "x = (",
        "x = 1",
        text + "x[0] = 1",
    ):
        assert changed != text
        config.write_text(changed)
        with pytest.raises(UserError, match="only values in it, found other content"):
            export_mmseg(run.folder, folder / "away")
    assert not (folder / "away").exists()
    config.write_text(text)
    export_mmseg(run.folder, folder / "away")
    assert not ran.exists()
    finished.write_text(json.dumps({"checkpoint": None}))
    with pytest.raises(UserError, match="found none"):
        export_mmseg(run.folder, folder / "away")
    finished.write_text("{}")
    with pytest.raises(
        UserError, match=r"finished\.json: damaged, changed or written by another version: checkpoint: Field required"
    ):
        export_mmseg(run.folder, folder / "away")


def test_a_run_that_has_no_segmenter_is_not_exported(folder: Path) -> None:
    from lutbench.cli import app

    with pytest.raises(UserError, match="no finished run"):
        app(["export", "toy/downstream/task", str(folder / "away"), "--runs", str(folder)], standalone_mode=False)


# Through the command line


def lutbench(folder: Path, *arguments: str) -> None:
    from lutbench.cli import app

    suite = folder / "toy.toml"
    suite.write_text(SCENES + "workers = 0")
    places = ["--data-root", str(folder), "--runs", str(folder / "runs"), "--results", str(folder / "results")]
    app([arguments[0], str(suite), *arguments[1:], *places], standalone_mode=False)


def test_a_run_is_made_once_and_its_record_is_in_the_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lutbench(folder, "run")
    lutbench(folder, "run")
    assert "finished already; mIoU" in capsys.readouterr().out
    lutbench(folder, "status")
    assert "downstream/task/scratch/seed0  finished  mIoU" in capsys.readouterr().out
    assert len(list((folder / "runs" / "checked").glob("*.json"))) == 2, "masks are read once"


def test_a_mask_with_a_value_that_is_no_class_stops_the_run_before_it_begins(folder: Path) -> None:
    path = folder / "scenes/annotations/training/3.png"
    mask = np.asarray(Image.open(path)).copy()
    mask[5, 5] = 4
    Image.fromarray(mask).save(path)
    with pytest.raises(UserError, match=r"3\.png.*4"):
        lutbench(folder, "run")
    assert not (folder / "runs" / "toy").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("crop=18", "not a multiple of the patch size"),
        ("encoder", "at least four"),
        ("batch=1", "greater than or equal"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_made(folder: Path, change: str, told: str) -> None:
    override = "encoder.toy.depth=3" if change == "encoder" else f"downstream.task.{change}"
    with pytest.raises(UserError, match=told):
        lutbench(folder, "run", "--set", override)
    assert not (folder / "runs" / "toy").exists()


def test_without_mmsegmentation_the_line_that_installs_it_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mmseg" else find(name))
    with pytest.raises(UserError, match=r"mmseg is not installed.*pip install .*\[segmentation\]"):
        lutbench(folder, "run")
