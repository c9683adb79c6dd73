"""Whether the device computes what a CPU does: golden parity, losses, changes of colour; where a step waits for it, and what it compiles."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from bench import Bench, Step, recipe_of
from pretrain_step import lut_step
from speed import finetune_step
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import functional

from lutbench.data.tensors import to_tensor
from lutbench.data.toy.photographs import PHOTOGRAPHS, load_photograph
from lutbench.train.randomness import reseed
from pretrain import parity
from pretrain.frameworks.vit import patchify
from pretrain.golden import GoldenFile
from pretrain.photometrics import apply_everywhere, apply_in_batch, draw_photometrics
from pretrain.student import Student, build_student, parameter_groups
from pretrain.teacher import Teacher
from pretrain.views import Views, changed

GOLDEN = Path(__file__).parents[2] / "tests/fixtures/lut_steps.npz"


def correct(bench: Bench) -> None:
    """The device against the CPU, bf16 against float32, golden parity, changes of colour, what waits for the device, graphs."""
    with bench.section("correct", "golden parity"):
        _golden_parity(bench)
    with bench.section("correct", "device against CPU"):
        on_device, on_cpu = (_losses(bench, where, 2, 2 if bench.toy else 16) for where in (bench.device.type, "cpu"))
        bench.emit("correct", what="losses, device against CPU, float32", relative=_apart(on_device, on_cpu))
    with bench.section("correct", "bf16 against float32"):
        steps, batch = (2, 2) if bench.toy else (40, 64)
        half, whole = (_losses(bench, bench.device.type, steps, batch, half) for half in (True, False))
        bench.emit("correct", what="losses, bf16 against float32", relative=_apart(half, whole))
    with bench.section("correct", "colours"):
        _colours(bench)
    if bench.cuda:
        steps_of = {
            "pre-training": lut_step(recipe_of(bench, "S"), "ours", 32),
            "fine-tuning": finetune_step(bench, "S", 32),
        }
        for name, step in steps_of.items():
            with bench.section("correct", f"waits, {name}"):
                step()
                bench.emit("correct", what=f"waits for the device, a step of {name}", where=_waits(step))
    made: dict[str, Callable[[], Step]] = {
        "pre-training": lambda: lut_step(recipe_of(bench, "S"), "regional", 32, compiles=bench.cuda),
        "pre-training, checkpointed": lambda: lut_step(recipe_of(bench, "S"), "checkpointed", 32, compiles=bench.cuda),
        "fine-tuning": lambda: finetune_step(bench, "S", 32),
    }
    for name, make in made.items():
        with bench.section("correct", f"graphs, {name}"):
            counters.clear()
            step = make()
            for _ in range(2):
                step()
            bench.emit("correct", what=f"compiled for steps of {name}", **_graphs())


def _golden_parity(bench: Bench) -> None:
    class OnDevice(GoldenFile):
        """A golden file whose steps are taken on the device."""

        def student(self) -> Student:
            return super().student().to(bench.device)

        def views(self, step: int, student: Student) -> Views:
            views = super().views(step, student)
            assert views.view2 is not None
            return Views(views.view1.to(bench.device), views.view2.to(bench.device), views.noise.to(bench.device))

        def difference(self, name: str, ours: Tensor) -> float:
            return super().difference(name, ours.cpu())

    original, parity.GoldenFile = parity.GoldenFile, OnDevice  # type: ignore[misc]
    try:
        rows = parity.check_parity(GOLDEN)
    finally:
        parity.GoldenFile = original  # type: ignore[misc]
    found = {row.kind: f"{row.difference:.1e}" for row in rows}
    bench.emit("correct", what="golden parity", found=found, passed=all(row.passed for row in rows))


def _losses(bench: Bench, where: str, steps: int, batch: int, half: bool = False) -> Tensor:
    """Return both losses (steps, 2) of a short training on a device; on a GPU by its shortcuts."""
    student = build_student(recipe_of(bench, "S"), 0).to(where)
    student.sparse = where == "cuda"
    teacher, draw = Teacher(student), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(parameter_groups(student, 0.05), lr=3e-4, betas=(0.9, 0.95), fused=True)
    embedding, found = student.encoder.patch_embed, []
    for _ in range(steps):
        smooth = torch.randn(batch, 3, 8, 8, generator=draw)
        base = functional.interpolate(smooth, embedding.img_size[0], mode="bicubic")
        other = base + 0.1 * torch.randn(base.shape, generator=draw)
        images = [base.to(where), other.to(where)]
        if student.sparse:
            images = [patchify(view, embedding.patch_size[0]) for view in images]
        views = Views(*images, torch.rand(batch, embedding.num_patches, generator=draw).to(where))
        with torch.autocast(where, torch.bfloat16, enabled=half):
            made = student(views, teacher(views))
        made.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(student, 0.99)
        assert made.context is not None
        found.append([made.mim.item(), made.context.item()])
    return torch.tensor(found, dtype=torch.float64)


def _apart(one: Tensor, other: Tensor) -> list[str]:
    return [f"{value:.1e}" for value in ((one - other).abs() / other.abs()).amax(0).tolist()]


def _colours(bench: Bench) -> None:
    photographs = [load_photograph(file).convert("RGB") for file in list(PHOTOGRAPHS.values())[:4]]
    count, side, images, drawn = (4, 48, [], []) if bench.toy else (256, 224, [], [])
    for number in range(count):
        reseed(3, number)
        images.append(photographs[number % len(photographs)].crop((8, 8, 8 + side, 8 + side)))
        drawn.append(draw_photometrics())
    pixels, numbers = torch.stack([to_tensor(i) for i in images]), torch.stack([d.numbers() for d in drawn])
    pillow = torch.stack([to_tensor(d.apply(i)) for d, i in zip(drawn, images, strict=True)]).int()
    on_device, numbers_there = pixels.to(bench.device), numbers.to(bench.device)
    ways: dict[str, Callable[[], Tensor]] = {"chosen images": lambda: apply_in_batch(on_device, numbers)}
    ways["all images"] = lambda: apply_everywhere(on_device, numbers_there)
    if bench.cuda:
        ways["all images, compiled"] = lambda: changed(on_device, numbers_there, compiled=True)
    for name, way in ways.items():
        apart = (way().cpu().int() - pillow).abs().float()
        took = bench.seconds(way, 0.5)
        bench.emit(
            "correct", what=f"colours, {name}", batch=count, mean_difference=round(float(apart.mean()), 4),
            largest=int(apart.max()), ms=round(1e3 * took, 2),
        )  # fmt: skip


def _graphs() -> dict[str, int]:
    """Return how many graphs were made, and how many were not since their function had too many; such blocks run without compiling."""
    past_limit = sum(count for why, count in counters["unimplemented"].items() if "recompile limit" in why)
    return {"graphs": counters["stats"]["unique_graphs"], "past_limit": past_limit}


def _waits(step: Step) -> dict[str, int]:
    """Return where a step waits for the device, and how often."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    where: dict[str, int] = {}
    for warning in told:
        if "synchroniz" in str(warning.message):
            place = f"{Path(warning.filename).name}:{warning.lineno}"
            where[place] = where.get(place, 0) + 1
    return where
