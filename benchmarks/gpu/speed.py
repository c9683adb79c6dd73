"""How fast steps are that wait for no data: of pre-training in all its ways, of fine-tuning; and where the time of one goes."""

import time

import torch
from bench import Bench, Step, recipe_of
from pretrain_step import Way, lut_step
from torch.autograd import DeviceType
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from downstream.finetune import build_classifier, layer_decay_groups
from downstream.mixing import DropPaths, Mixing
from lutbench.models.encoders import create_encoder
from lutbench.plan.compute import STEP, transformer
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.downstream import FinetuneRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.train.device import moved
from lutbench.train.processes import autocast
from lutbench.train.regional import compile_blocks
from pretrain.cost import flop_per_image

CLASSES = 1000


def speed(bench: Bench) -> None:
    """Images/s of the pre-training step."""
    ways: dict[tuple[str, int], tuple[Way, ...]] = {
        ("B", 256): ("plain", "ours", "regional", "bf16 teacher", "compiled"),
        ("S", 256): ("ours", "regional"),
        ("L", 128): ("ours", "regional"),
        ("L", 1024): ("checkpointed",),
        ("B", 1024): ("regional",),
        ("S", 1024): ("regional",),
    }
    if bench.toy:
        ways = {("S", 2): ("plain", "bf16 teacher", "checkpointed")}
    for (size, batch), of_size in ways.items():
        for way in of_size:
            with bench.section("speed", f"{way} {size} {batch}"):
                step = _pretraining(bench, way, size, batch)
                _time_step(bench, "speed", way, size, batch, step, flop_per_image(recipe_of(bench, size)))


def finetuning(bench: Bench) -> None:
    """Images/s of the fine-tuning step, compiled block by block on a GPU."""
    for size, batch in [("S", 2)] if bench.toy else [("S", 256), ("B", 256), ("L", 128)]:
        with bench.section("fine-tuning", size):
            flop = (
                STEP
                * transformer(
                    EncoderRecipe(**bench.encoder(size)), recipe_of(bench, size).encoder.image_size, CLASSES
                ).flop
            )
            _time_step(bench, "fine-tuning", "regional", size, batch, finetune_step(bench, size, batch), flop)


def trace(bench: Bench) -> None:
    """Where the time of a step goes: kernels by name, and the share of the time that the device is busy."""
    size, batch, steps = ("S", 2, 1) if bench.toy else ("B", 256, 3)
    step = _pretraining(bench, "regional", size, batch)
    for _ in range(steps):
        step()
    bench.wait()
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA if bench.cuda else ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            step()
        bench.wait()
    took = time.perf_counter() - start
    kernels = [e for e in profiled.events() if e.device_type == DeviceType.CUDA]
    names: dict[str, list[float]] = {}
    for kernel in kernels:
        of = names.setdefault(kernel.name[:90], [0.0, 0.0])
        of[0] += kernel.time_range.elapsed_us() / 1e3 / steps
        of[1] += 1 / steps
    top = sorted(names.items(), key=lambda item: -item[1][0])[:20]
    bench.emit(
        "trace", ms_per_step=round(1e3 * took / steps, 1), kernels_per_step=round(len(kernels) / steps),
        busy_ms=round(sum(of[0] for of in names.values()), 1), top=[[n, round(ms, 2), round(k, 1)] for n, (ms, k) in top],
    )  # fmt: skip


def _pretraining(bench: Bench, way: Way, size: str, batch: int) -> Step:
    """Return a step of pre-training, on a CPU by a GPU's shortcuts too, and there not compiled."""
    return lut_step(recipe_of(bench, size), way, batch, compiles=bench.cuda, sparse=True)


def finetune_step(bench: Bench, size: str, batch: int) -> Step:
    """Return a step of fine-tuning on a thousand classes."""
    settings = {"data": {}, "encoder": {"architecture": bench.encoder(size), "kind": "scratch"}, "batch": batch}
    recipe = read_recipe(FinetuneRecipe, settings, "gpu")
    classifier = build_classifier(create_encoder(recipe.encoder.architecture), recipe, CLASSES, 0).to(bench.device)
    paths, mixing = DropPaths.replacing(classifier, 0), Mixing(recipe, CLASSES, 0)
    optimizer = torch.optim.AdamW(layer_decay_groups(classifier, recipe), lr=1e-4, fused=True)
    if bench.cuda:
        compile_blocks(classifier)
    classifier.train()
    pixels = moved(torch.randn(batch, 3, recipe.side, recipe.side))
    labels, rows, number = moved(torch.randint(0, CLASSES, (batch,))), list(range(batch)), 0

    def step() -> None:
        nonlocal number
        images, targets = mixing(pixels.clone(), labels, number, rows)
        paths.draw(number, batch, rows, bench.device)
        number += 1
        with autocast("auto"):
            scores = classifier(images)
        functional.cross_entropy(scores.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _time_step(bench: Bench, part: str, way: Way, size: str, batch: int, step: Step, flop: float) -> None:
    """Emit how fast a step is, with the ``flop`` of an image, and how long its first call took, compiling included."""
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    first = bench.in_a_row(step, 1)
    took = bench.seconds(step, 1.0)
    if not bench.toy:
        took = bench.in_a_row(step, max(3, int(1.5 / took)))
    bench.emit(
        part, size=size, batch=batch, way=way, first_s=round(first, 1), images_per_second=round(batch / took, 1), flop_per_image=flop,
        gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if bench.cuda else None,
    )  # fmt: skip
