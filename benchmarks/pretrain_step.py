"""Images per second and peak memory of one LUT step, ours against the obvious way, on the machine at hand.

    python benchmarks/pretrain_step.py --sizes S,B,L --batch 128 --compile

Both steps compute the same losses for the same student on the same random views: teacher, student, backward, fused
AdamW, update of the teacher. The plain step does it as one would first write it: each view goes through the encoder
by itself, the teacher is a copy of the whole student, and its update is a loop over tensors. Loading of data is not
part of it. Every measurement has a process of its own; the steps take turns, round by round, and each row shows the
round in which its step was fastest, so that what else the machine does weighs on all alike. Prints a Markdown table
with hardware and versions.
"""

import copy
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Annotated, Any, Literal, NamedTuple

import torch
import typer
from timm.models import VisionTransformer
from torch import Tensor

from lutbench.provenance import hardware, packages
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.train.processes import accelerator, autocast, precision_of
from lutbench.train.regional import compile_blocks
from pretrain.frameworks.interface import Framework
from pretrain.student import Student, build_student, parameter_groups
from pretrain.teacher import Teacher
from pretrain.views import Views

MODELS = {"S": "vit_small_patch16_224", "B": "vit_base_patch16_224", "L": "vit_large_patch16_224"}
MOMENTUM = 0.996

Step = Literal["plain", "ours", "ours, compiled"]


class Result(NamedTuple):
    """What was measured."""

    images_per_second: float
    peak_gib: float
    """Of the GPU's memory, or of the process's resident memory on a CPU."""


def main(
    sizes: Annotated[str, typer.Option(help="Which of S, B and L, with commas between.")] = "S,B,L",
    batch: Annotated[int, typer.Option(min=2, help="Images per step.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 20,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before, which are not.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured; the fastest counts.")] = 3,
    compile: Annotated[bool, typer.Option("--compile", help="Add a row with torch.compile.")] = False,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16; auto is bf16 where the GPU has it.")] = "auto",
) -> None:
    """Measure the LUT step of each size, ours against the plain one, and print a Markdown table."""
    chosen = [size.strip().upper() for size in sizes.split(",")]
    if not set(chosen) <= set(MODELS):
        raise typer.BadParameter(f"{sizes!r}: choose among {', '.join(MODELS)}.", param_hint="--sizes")
    if precision not in ("auto", "fp32", "bf16"):
        raise typer.BadParameter(f"{precision!r}: choose auto, fp32 or bf16.", param_hint="--precision")
    kinds: list[Step] = ["plain", "ours", "ours, compiled"] if compile else ["plain", "ours"]
    on_gpu = accelerator().device.type == "cuda"
    versions = ", ".join(f"{name} {packages()[name]}" for name in ("python", "torch", "timm"))
    print(f"{hardware()}; {precision_of(precision)}; {versions}.\n")
    print(f"    {' '.join(['python', *sys.argv])}\n")
    print(f"| ViT | step | images/s | against plain | peak {'GPU' if on_gpu else 'resident'} memory, GiB |")
    print("|---|---|---:|---:|---:|")
    for size in chosen:
        measured = [
            [_in_own_process(size, kind, batch, steps, warmup, precision) for kind in kinds] for _ in range(rounds)
        ]
        best = [max(results) for results in zip(*measured, strict=True)]
        for kind, result in zip(kinds, best, strict=True):
            ratio = result.images_per_second / best[0].images_per_second
            print(f"| {size} | {kind} | {result.images_per_second:.2f} | {ratio:.2f}x | {result.peak_gib:.2f} |")


def _in_own_process(*case: Any) -> Result:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *case).result()


def measure(size: str, kind: Step, batch: int, steps: int, warmup: int, precision: str) -> Result:
    """Time one kind of step in this process."""
    device = accelerator().device
    recipe = read_recipe(PretrainRecipe, {"data": {}, "encoder": {"model": MODELS[size]}}, "benchmark")
    student = build_student(recipe, seed=0).to(device)
    groups = parameter_groups(student, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    view1, view2 = (torch.randn(batch, 3, 224, 224, device=device) for _ in range(2))
    views = Views(view1, view2, torch.rand(batch, 196, device=device))
    run_student, run_teacher, update = (_plain if kind == "plain" else _ours)(student)
    if kind == "ours, compiled":
        compile_blocks(student.encoder, student.decoder, run_teacher.encoder)
        student.compile_loss()

    def step() -> None:
        with autocast(precision):
            losses = run_student(views, run_teacher(views))
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        update()

    for _ in range(warmup):
        step()
    _wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    seconds = time.perf_counter() - start
    return Result(batch * steps / seconds, _peak_bytes(device) / 2**30)


def _ours(student: Student) -> tuple[Student, Teacher, Callable[[], None]]:
    """Return student, teacher, and the update of the teacher, as the suite has them."""
    teacher = Teacher(student)
    return student, teacher, partial(teacher.update, student, MOMENTUM)


def _plain(student: Student) -> tuple[Student, Teacher, Callable[[], None]]:
    """Return student, teacher, and the update of the teacher, as one would first write them."""
    student.framework = ViewByView(student.framework)
    whole = copy.deepcopy(student).eval().requires_grad_(False)
    assert whole.projector is not None
    teacher = Teacher(student)
    teacher.encoder, teacher.projector = whole.encoder, whole.projector

    @torch.no_grad()
    def update() -> None:
        for own, their in zip(whole.state_dict().values(), student.state_dict().values(), strict=True):
            if own.is_floating_point():
                own.mul_(MOMENTUM).add_(their, alpha=1 - MOMENTUM)

    return student, teacher, update


class ViewByView:
    """A framework whose encoder is shown the two views of a batch one after the other."""

    def __init__(self, framework: Framework) -> None:
        self.decoder, self.mask_unit = framework.decoder, framework.mask_unit
        self.unmasked, self.loss, self.reconstruct = framework.unmasked, framework.loss, framework.reconstruct
        self._encode = framework.encode

    def encode(self, encoder: VisionTransformer, images: Tensor, visible: Tensor | None) -> Tensor:
        """Return the tokens that the framework's own ``encode`` returns for both views at once."""
        of_views = (None, None) if visible is None else visible.chunk(2)
        views = zip(images.chunk(2), of_views, strict=True)
        return torch.cat([self._encode(encoder, view, of_view) for view, of_view in views])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    typer.run(main)
