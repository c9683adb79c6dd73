"""Runs small enough for tests: images on disk, a suite file, and processes to run them in."""

import json
import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from lutbench.files import whole_file
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import read_record
from lutbench.run import Run, open_run
from lutbench.stages import perform
from lutbench.train.processes import accelerator
from lutbench.workspace import Workspace

CLASSES = ("amber", "blue", "green")

HEAD = """
title = "toy"
about = "for tests"
kind = "pipeline"
"""


def encoder(name: str = "toy", depth: int = 2, patch_size: int = 4) -> str:
    """The table of an encoder of a suite: a Vision Transformer of 16 channels, for images of 16 x 16."""
    sizes = f"image_size = 16\npatch_size = {patch_size}\nwidth = 16\ndepth = {depth}\nheads = 2"
    return f'[encoder.{name}]\nmodel = "vit_tiny_patch16_224"\n{sizes}'


SCRATCH = '''[method.scratch]
scratch = true
encoder = "toy"'''
"""A row with random weights."""

HIDDEN = """[shifted.hidden]
path = "toy/val"
kind = "occlusion"
drops = [0, 5]
drop_grid = 4
shuffles = [2]"""
"""A test set with images half hidden, or with their quarters in another order."""

NARROW = """decoder_width = 16
decoder_depth = 1
decoder_heads = 2
head_width = 24"""
"""Settings of a pre-training that make all beside the encoder small."""

TOY = f"""{HEAD}[data.toy]
source = "folder"
path = "toy"
undecodable = "skip"
{encoder()}
"""
"""A dataset and an encoder; methods and tasks are to follow."""

SMALLEST: dict[str, dict[str, Any]] = {
    "pretrain": {
        **{"data": "toy", "encoder": "toy", "epochs": 1, "warmup_epochs": 0, "batch": 10, "threads": 1, "workers": 0},
        **{"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "head_width": 24},
    },
    "finetune": {"data": "toy", "epochs": 1, "warmup_epochs": 0, "batch": 10, "workers": 0},
    "knn": {"data": "toy", "workers": 0},
}
"""Settings on :data:`TOY`'s images that take the least time."""


def defaults(kind: str, **changes: Any) -> str:
    """The table ``[defaults.KIND]`` of a suite: the smallest settings, and those that differ from them."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in (SMALLEST[kind] | changes).items()]
    return "\n".join([f"[defaults.{kind}]", *lines])


SUITE = f"""{TOY}
{SCRATCH}
[downstream.task]
data = "toy"
"""


def write_images(folder: Path, train: int = 10, val: int = 7) -> None:
    """So many images of each class; classes differ in colour, images in noise."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for channel, name in enumerate(CLASSES):
            (folder / "toy" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 160, (20, 20, 3))
                pixels[..., channel] += 60
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "toy" / split / name / f"{number}.png")


SCENES = f"""{HEAD}[data.toy]
source = "scenes"
path = "scenes"
classes = ["ground", "amber", "blue"]
reduce_zero_label = true
{encoder(depth=4)}
{SCRATCH}
[downstream.task]
data = "toy"
kind = "segmentation"
crop = 16
stride = 8
scale = [96, 24]
iterations = 12
warmup = 2
batch = 4
lr = 2e-3
channels = 8
auxiliary_channels = 8
"""


def write_scenes(folder: Path, train: int = 10, val: int = 5) -> None:
    """So many images of 32 x 24 with a mask each: a box in amber or blue on the ground, and a border without a class."""
    generator = np.random.default_rng(0)
    for split, count in (("training", train), ("validation", val)):
        for kind in ("images", "annotations"):
            (folder / "scenes" / kind / split).mkdir(parents=True)
        for number in range(count):
            pixels, mask = generator.integers(0, 120, (24, 32, 3)), np.ones((24, 32), np.uint8)
            x, y, label = generator.integers(4, 14), generator.integers(4, 10), number % 2
            mask[y : y + 10, x : x + 12] = 2 + label
            pixels[mask == 2 + label, 2 * label] += 120
            mask[:2] = 0
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"scenes/images/{split}/{number}.jpg", quality=95)
            Image.fromarray(mask).save(folder / f"scenes/annotations/{split}/{number}.png")


LOOKS = f"""{TOY}
{SCRATCH}
[analysis.looks]
data = "toy"
methods = ["scratch"]
alpha_from = 2
neighbours = 5
"""
"""A suite of one analysis, of an encoder that nothing was trained of."""


def toy_run(
    folder: Path, home: str = "here", changes: Sequence[str] = (), suite_text: str = SUITE, **settings: Any
) -> Run:
    """A run on :func:`write_images`'s images, or on other images by another suite, ready to be performed.

    Its folders are below ``folder / home``.
    """
    lines = [f"{name} = {json.dumps(value)}" for name, value in ({"workers": 0} | settings).items()]
    suite = folder / "toy.toml"
    with whole_file(suite) as partial:  # of several processes each writes it, and none may read half of it
        partial.write_text("\n".join([suite_text, *lines]))
    loaded = load_suite(str(suite), changes)
    workspace = Workspace(data=folder, runs=folder / home / "runs", results=folder / home / "results")
    run = open_run(loaded, loaded.runs[0], workspace)
    run.start()
    return run


def opened(folder: Path, home: str = "here", *changes: str) -> tuple[LoadedSuite, Workspace]:
    """The suite ``toy.toml`` of ``folder``, with the data there, and all that its runs write below ``folder / home``."""
    suite = load_suite(str(folder / "toy.toml"), changes)
    return suite, Workspace(folder, folder / home / "runs", folder / home / "results")


def the_run(folder: Path, home: str = "here", *changes: str, name: str = "") -> Run:
    """The run of that name, or the first, of the suite that :func:`opened` opens."""
    suite, workspace = opened(folder, home, *changes)
    return open_run(suite, suite.run(name) if name else suite.runs[0], workspace)


def performed(run: Run) -> dict[str, Any]:
    """Perform a run in this process; what a test compares of two runs, as plain values."""
    perform(run)
    return outcome(run)


def outcome(run: Run) -> dict[str, Any]:
    """Accuracies, sha256 of weights and outcomes of a finished run."""
    record = json.loads(next(run.workspace.results.rglob("*.json")).read_text())
    return {
        "measurements": {m["metric"]: m["value"] for m in record["measurements"]},
        "n": record["measurements"][0]["n"],
        "checkpoint": record["checkpoint"],
        "outcomes": record["outcomes"] and record["outcomes"]["sha256"],
        "extra": record["extra"],
    }


def check_same_answers(first: Run, second: Run) -> None:
    """Check that two classifiers whose weights differ in their last bits gave the same answers, as sure of them but for such bits."""
    one, other = (read_record(next(run.workspace.results.rglob("*.json"))).outcomes for run in (first, second))
    assert one.prediction.tolist() == other.prediction.tolist()
    assert one.rank.tolist() == other.rank.tolist()
    for name in ("top_probability", "log_probability"):
        assert np.allclose(getattr(one.scores, name), getattr(other.scores, name), rtol=0, atol=1e-4), name


def in_processes(function: Callable[[], Any], count: int = 1) -> list[Any]:
    """What ``function()`` returns in each of ``count`` processes that form a gloo group; plain values."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    workers = [
        context.Process(target=_enter, args=(function, queue, rank, count, port), daemon=False) for rank in range(count)
    ]
    for worker in workers:
        worker.start()
    results = dict(queue.get(timeout=600) for _ in workers)
    for worker in workers:
        worker.join()
    failures = [result for failed, result in results.values() if failed]
    assert not failures, failures[0]
    return [results[rank][1] for rank in range(count)]


def performed_by(run: Run, processes: int) -> dict[str, Any]:
    """Perform a run in so many processes of their own, as a command does; what a test compares of two runs, as plain values."""

    def together() -> None:
        accelerator()  # first: it sets the number of threads, and the run's own comes after it
        perform(run)
        accelerator().wait_for_everyone()

    in_processes(together, processes)
    return outcome(run)


def killed_at_a_checkpoint(run: Run, step: int) -> None:
    """Start ``run`` in another process and SIGKILL it as soon as it has saved ``step``."""
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_enter, args=(lambda: perform(run), context.Queue(), 0, 1, 0))
    worker.start()
    names = f"step-{step:08d}", f"step-{step:08d}.json"
    deadline = time.monotonic() + 600
    while not any((run.checkpoints / name).exists() for name in names):
        assert worker.is_alive(), "ended before the checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert not (run.folder / "finished.json").exists(), "finished before it could be killed"


def _enter(function: Callable[[], Any], queue: Any, rank: int, count: int, port: int) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whatever the process that forked this one holds back
    torch.set_num_threads(1)
    if count > 1:
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "localhost", **{name: str(value) for name, value in group.items()}}
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator.cache_clear()
    try:
        queue.put((rank, (False, function())))
    except BaseException:
        queue.put((rank, (True, traceback.format_exc())))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
