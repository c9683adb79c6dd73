"""Pre-training is exact: interrupted, with other workers or more processes, it is the same run."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from toy_runs import HEAD, NARROW, encoder, in_processes, killed_at_a_checkpoint, the_run

from lutbench.checkpoint_names import newest_step
from lutbench.errors import UserError
from lutbench.locks import lock
from lutbench.recipes.loading import load_suite
from lutbench.run import Run, open_run
from lutbench.run_status import RunState
from lutbench.stages import run_suite
from lutbench.train.processes import accelerator
from lutbench.train.sharding import parallel
from lutbench.workspace import Workspace
from pretrain.student import build_student
from pretrain.train import perform, rate_at

SUITE = f"""{HEAD}[data.toy]
path = "toy"
{encoder()}
[pretrain.lut]
data = "toy"
encoder = "toy"
epochs = 6
warmup_epochs = 1
batch = 8
base_lr = 1e-2
{NARROW}
save_every = 5
log_every = 5
workers = 0
"""


FRAMEWORKS = {"mae": (), "simmim": ("pretrain.lut.framework=simmim", "pretrain.lut.mask_unit=8")}
"""LUT around each framework."""

CONTROLS = {
    "infonce, fixed momentum": ("pretrain.lut.context_loss=infonce", "pretrain.lut.momentum_schedule=fixed"),
    "per token, random crop": ("pretrain.lut.context_target=tokens", "pretrain.lut.crop=random"),
    "second view for nothing": ("pretrain.lut.context_weight=0.0", "pretrain.lut.second_view=always"),
    "simmim, masked teacher": (*FRAMEWORKS["simmim"], "pretrain.lut.teacher_view=masked"),
    "clipped, in steps": ("pretrain.lut.clip_gradient=0.5", "pretrain.lut.lr_schedule=step"),
}
"""LUT's controls, as far as they keep something between steps or look at other images."""


def laid_out(folder: Path) -> Path:
    """27 unlabelled images, so that the last batch of 8 is not full, and the suite."""
    generator = np.random.default_rng(0)
    (folder / "toy" / "train").mkdir(parents=True)
    for number in range(27):
        pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "toy" / "train" / f"{number}.png")
    (folder / "toy.toml").write_text(SUITE)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return laid_out(tmp_path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of the suite's run, as it is."""
    return trained(the_run(laid_out(tmp_path_factory.mktemp("plain")), "plain"))


def trained(run: Run) -> dict[str, Any]:
    """Pre-train, and return what came of it as plain values."""
    run.start()
    perform(run)
    accelerator().wait_for_everyone()
    return made(run)


def made(run: Run) -> dict[str, Any]:
    record = json.loads(next(run.workspace.results.rglob("*.json")).read_text())
    return {"weights": record["checkpoint"], "losses": {m["metric"]: m["value"] for m in record["measurements"]}}


@pytest.mark.parametrize("method", [*FRAMEWORKS, *CONTROLS])
def test_a_killed_run_started_again_ends_with_the_same_bits(folder: Path, method: str) -> None:
    changes = ("pretrain.lut.save_every=1", "pretrain.lut.epochs=3", *(FRAMEWORKS | CONTROLS)[method])
    whole, run = the_run(folder, "whole", *changes), the_run(folder, "killed", *changes)
    run.start()
    for step in (3, 7):
        killed_at_a_checkpoint(run, step)
        assert run.status().state is RunState.RESUMABLE
    assert trained(run) == trained(whole)
    teachers = [
        {name: t for name, t in load_file(newest(one) / "tensors.safetensors").items() if name.startswith("teacher.")}
        for one in (whole, run)
    ]
    assert teachers[0].keys() == teachers[1].keys() != set()
    assert all(torch.equal(tensor, teachers[1][name]) for name, tensor in teachers[0].items())


def test_a_compiled_run_ends_as_one_that_is_not(
    folder: Path, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch.compile's own tracing; what its compilers make of the trace is theirs to test, and takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    assert trained(the_run(folder, "compiled", "pretrain.lut.compile=true")) == plain


def newest(run: Run) -> Path:
    return max(run.checkpoints.glob("step-*"))


def test_the_number_of_loader_workers_changes_nothing(folder: Path, plain: dict[str, Any]) -> None:
    assert trained(the_run(folder, "helped", "pretrain.lut.workers=3")) == plain


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("decoder_heads=5", "decoder_width = 16 is not a multiple of decoder_heads = 5"),
        ("decoder_width=18", "A width of 18 does not suit"),
        ("mask_ratio=0.4", "two views cannot see different patches"),
        ("mask_ratio=0.99", "leaves 0 of 16 patches visible"),
        ("crop_padding=8", "cannot be reflected"),
        (
            "framework=simmim",
            r"pretrain.\w+: mask_unit = 32 pixels \(the default, SimMIM's\) does not divide images of 16 .* Set mask_unit to 4 or 8",
        ),
    ],
)
def test_what_does_not_go_together_is_found_before_anything_is_computed(folder: Path, change: str, told: str) -> None:
    run = the_run(folder, "checked", f"pretrain.lut.{change}")
    with pytest.raises(UserError, match=told):
        run.planned.kind.module.check(run)
    assert not run.workspace.runs.exists()


def test_a_run_from_the_cache_is_that_from_the_files_under_an_identity_of_its_own(
    folder: Path, plain: dict[str, Any]
) -> None:
    files = the_run(folder, "files")
    suite = load_suite(str(folder / "toy.toml"), ("pretrain.lut.cache=true",))
    workspace = Workspace(folder, folder / "cached/runs", folder / "cached/results")
    before = open_run(suite, suite.runs[0], workspace)
    assert before.status().state is RunState.MISSING
    run_suite(suite, [], [], workspace)
    cached = open_run(suite, suite.runs[0], workspace)
    assert cached.identity == before.identity, "known before the cache is made"
    assert made(cached) == plain
    assert cached.identity != files.identity
    assert cached.identity_inputs["recipe"] == files.identity_inputs["recipe"]
    assert cached.identity_inputs["data"] != files.identity_inputs["data"]
    shutil.rmtree(folder / ".lutbench")
    run_suite(suite, [], [], Workspace(folder, workspace.runs, workspace.results))
    assert not (folder / ".lutbench/cache").exists(), "made again for a run that has finished"


def test_colours_changed_on_the_device_make_another_run_of_nearly_the_same_losses(folder: Path) -> None:
    short = ("pretrain.lut.epochs=2",)
    loader, device = (
        the_run(folder, "loader", *short),
        the_run(folder, "device", *short, "pretrain.lut.photometrics_on=device"),
    )
    assert loader.identity != device.identity
    one, other = trained(loader), trained(device)
    for name, value in one["losses"].items():
        assert other["losses"][name] == pytest.approx(value, rel=2e-2), name


@pytest.mark.parametrize("method", [*FRAMEWORKS, *CONTROLS])
def test_two_processes_make_the_losses_of_one(folder: Path, method: str) -> None:
    short = (
        *(FRAMEWORKS | CONTROLS)[method],
        "pretrain.lut.micro_batch=4",
        "pretrain.lut.epochs=2",
        "pretrain.lut.warmup_epochs=0",
    )
    one = trained(the_run(folder, "one", *short))
    two = in_processes(lambda: trained(the_run(folder, "two", *short)), 2)
    rel = 1e-4 if method == "clipped, in steps" else 1e-5  # whose rate stays high: it makes more of the last bits
    for name, value in one["losses"].items():
        assert two[0]["losses"][name] == pytest.approx(value, rel=rel), name


def test_a_second_view_for_nothing_leaves_the_encoder_of_mae_at_the_cost_of_lut(folder: Path) -> None:
    """Up to rounding: a batch of both views is multiplied in other blocks."""
    weightless = "pretrain.lut.context_weight=0.0"
    lut, mae = the_run(folder, "lut"), the_run(folder, "mae", weightless)
    paid = the_run(folder, "paid", weightless, "pretrain.lut.second_view=always")
    losses = [trained(run)["losses"] for run in (mae, paid)]
    assert losses[1].keys() - losses[0].keys() == {"context loss"}
    assert losses[1]["total loss"] == losses[1]["mim loss"] == pytest.approx(losses[0]["mim loss"], rel=1e-5)
    weights = [load_file(run.folder / "encoder.safetensors") for run in (mae, paid)]
    first = build_student(mae.planned.recipe, 0).encoder.state_dict()  # type: ignore[arg-type]
    for name, value in weights[0].items():
        moved = (value - first[name]).norm()
        assert (weights[1][name] - value).norm() <= 1e-2 * moved, name
    assert len({run.identity for run in (lut, mae, paid)}) == 3
    cost = [run.planned.kind.module.cost(run, 0) for run in (lut, mae, paid)]
    assert cost[2] == cost[0]
    assert cost[2].train > 1.5 * cost[1].train
    assert (paid.folder / "teacher.safetensors").exists()


def test_where_the_loss_has_a_weight_its_second_view_is_there_anyway(folder: Path) -> None:
    assert the_run(folder, "here", "pretrain.lut.second_view=always").identity == the_run(folder, "here").identity


def test_a_teacher_of_fixed_momentum_zero_ends_as_the_student(folder: Path) -> None:
    for schedule, same in (("fixed", True), ("cosine", False)):
        changes = ("pretrain.lut.epochs=2", "pretrain.lut.momentum=0.0", f"pretrain.lut.momentum_schedule={schedule}")
        trained(run := the_run(folder, schedule, *changes))
        student, teacher = (load_file(run.folder / f"{name}.safetensors") for name in ("encoder", "teacher"))
        assert all(torch.equal(value, teacher[name]) for name, value in student.items()) is same


def test_gradients_are_shortened_to_their_greatest_norm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    trained(the_run(folder, "free", "pretrain.lut.epochs=2"))
    free, norms[:] = norms[:], []
    bound = sorted(free)[len(free) // 2]
    trained(the_run(folder, "clipped", "pretrain.lut.epochs=2", f"pretrain.lut.clip_gradient={bound}"))
    assert max(norms) <= bound * (1 + 1e-4) < max(free)
    assert norms[0] == pytest.approx(min(free[0], bound), rel=1e-4)


def test_the_stepped_rate_is_constant_and_a_tenth_at_the_end(folder: Path) -> None:
    recipe: Any = the_run(folder, "here", "pretrain.lut.lr_schedule=step").planned.recipe
    rates = [rate_at(recipe, step, 80, 10) for step in range(80)]
    assert rates[:10] == pytest.approx([recipe.lr * step / 10 for step in range(10)])
    assert rates[10:70] == [recipe.lr] * 60
    assert rates[70:] == pytest.approx([recipe.lr / 10] * 10)


def test_the_last_images_make_a_step_too(folder: Path) -> None:
    run = the_run(folder, "short", "pretrain.lut.epochs=1", "pretrain.lut.warmup_epochs=0", "pretrain.lut.batch=64")
    before = made_weights(run)
    trained(run)
    assert not torch.equal(before, load_file(run.folder / "encoder.safetensors")["blocks.0.attn.qkv.weight"])


def made_weights(run: Run) -> torch.Tensor:
    return build_student(run.planned.recipe, 0).encoder.state_dict()["blocks.0.attn.qkv.weight"].clone()  # type: ignore[arg-type]


def test_a_run_in_which_nothing_moves_is_an_error(folder: Path) -> None:
    run = the_run(folder, "still", "pretrain.lut.base_lr=1e-300", "pretrain.lut.weight_decay=0.0")
    with pytest.raises(UserError, match="No weight changed"):
        trained(run)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_timm_loads_the_exported_encoder_strictly_with_the_same_features(folder: Path, framework: str) -> None:
    run = the_run(folder, "exported", *FRAMEWORKS[framework])
    trained(run)
    described = json.loads((run.folder / "encoder.json").read_text())
    text = json.dumps(described)
    assert "vit_tiny_patch16_224" in text
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=0,
        global_pool="token",
        checkpoint_path=str(run.folder / "encoder.safetensors"),
    ).eval()
    tensors = load_file(run.folder / "encoder.safetensors")
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())


def test_what_killed_processes_left_half_written_is_swept_while_the_run_is_held(folder: Path) -> None:
    """But not what a living process writes to the same results, as process 1 does here, nor another seed's."""
    run = the_run(folder, "here")
    records = folder / "here/results/records/toy/pretrain/lut"
    dead, living = [str(run.folder / ".encoder.safetensors.partial-1")], [str(records / ".seed0.json.partial-1")]
    dead += [str(records / f".seed0{ending}.partial-999999999") for ending in (".json", "-1a2b.npz")]
    living += [str(records / ".seed1.json.partial-999999999"), str(run.folder / "encoder.json")]
    checkpoint = run.checkpoints / ".step-00000005.partial-999999999"
    checkpoint.mkdir(parents=True)
    records.mkdir(parents=True)
    for path in [*dead, *living, str(checkpoint / "tensors.safetensors")]:
        Path(path).write_text("")
    with lock(run):
        assert not checkpoint.exists()
        assert [path for path in [*dead, *living] if Path(path).exists()] == living


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(folder: Path) -> None:
    run = the_run(folder, "burst", "pretrain.lut.base_lr=1e38")
    with pytest.raises(UserError, match=r"not finite.*learning rate.* image") as error:
        trained(run)
    report = json.loads((run.folder / "non-finite-0.json").read_text())
    assert len(report["images"]) == 8
    assert f"at step {report['step']} of 21" in str(error.value), "counted as the progress bar counts"


def test_a_last_update_that_ruins_the_weights_finishes_nothing_and_the_checkpoint_before_stays(folder: Path) -> None:
    """Two steps, the first at a rate of 0; the loss of the last is taken before its update, and is finite."""
    settings = {"base_lr": 1e300, "epochs": 2, "batch": 27, "save_every": 1}
    run = the_run(folder, "ruined", *(f"pretrain.lut.{name}={value}" for name, value in settings.items()))
    for _ in range(2):
        with pytest.raises(UserError, match=r"pretrain/lut/seed0, after step 2: .* not finite .*learning rate.* image"):
            trained(run)
        assert newest_step(run.checkpoints) == 1
    assert not (run.folder / "finished.json").exists()
    assert not list(run.folder.glob("encoder*"))


def test_gradients_are_reduced_where_they_lie_and_nothing_else_is_looked_for_or_sent() -> None:
    def found() -> tuple[int, list[float], list[float], bool]:
        """How many memories the gradients lie in, one of them, the buffers, and whether the graph is searched."""
        accelerator()
        torch.manual_seed(0)
        rank = accelerator().process_index
        model = parallel(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval())
        model.module[1].running_mean.fill_(rank)
        model(torch.eye(3) * (1 + rank)).square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        memories = {gradient.untyped_storage().data_ptr() for gradient in gradients if gradient is not None}
        buffers = model.module[1].running_mean.tolist()
        return len(memories), model.module[0].weight.grad.tolist(), buffers, model.find_unused_parameters

    one, two = in_processes(found, 2)
    assert one[0] == two[0] == 1
    assert one[1] == two[1]
    assert (one[2], two[2]) == ([0] * 4, [1] * 4)
    assert not one[3]


def test_a_batch_that_does_not_divide_over_the_processes_stops_before_compute(folder: Path) -> None:
    with pytest.raises(AssertionError, match="cannot be divided among 2 processes"):
        in_processes(lambda: trained(the_run(folder, "odd", "pretrain.lut.batch=7")), 2)
