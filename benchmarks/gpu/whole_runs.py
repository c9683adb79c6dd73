"""Runs as users start them: how fast they are with real loading, and whether a resumed one ends as an unbroken one on this device."""

import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench import TOY_ENCODER, TOY_HEADS, Bench, photographs
from feeding import FAST
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lutbench.recipes.loading import load_suite
from lutbench.run import Run, open_run
from lutbench.stages import perform
from lutbench.workspace import Workspace
from pretrain.cost import flop_per_image

SUITE = """
title = "GPU"
kind = "pipeline"
about = "measured on this machine"
[data.photographs]
path = {path}
train = ""
[encoder.e]
{encoder}
[defaults.pretrain]
data = "photographs"
encoder = "e"
{settings}
[pretrain.lut]
[method.lut]
pretrain = "lut"
"""


def loop(bench: Bench) -> None:
    """Whether repeated and resumed runs have the same bits, and images/s of runs of two sizes."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        photographs(root, 8 if bench.toy else 1024)
        with bench.section("loop", "resume"):
            _same_bits(bench, root)
        cores = len(os.sched_getaffinity(0))
        of_all = {**FAST, "warmup_epochs": 1, "log_every": 10, "save_every": 10**5, "workers": cores}
        runs: list[tuple[str, str, dict[str, Any]]] = [
            ("B", "files", {"batch": 256, "epochs": 16}),
            ("S", "files", {"batch": 256, "epochs": 40}),
            ("L", "files", {"batch": 128, "epochs": 8}),
            ("S", "cache", {"batch": 256, "epochs": 40}),
        ]
        if bench.toy:
            of_all |= {**TOY_HEADS, "workers": 0}
            runs = [("S", source, {"batch": 4, "epochs": 2}) for source in ("files", "cache")]
        for size, source, settings in runs:
            with bench.section("loop", f"{size} from {source}"):
                settings = of_all | settings | {"cache": source == "cache"}
                run = _performed(root, f"{size}-{source}", bench.encoder(size), settings)
                speed, waiting = (_steady(run, name) for name in ("images per second", "waiting for data"))
                bench.emit(
                    "loop", what="a run", size=size, source=source, batch=settings["batch"], images_per_second=round(speed, 1),
                    waiting_for_data=round(waiting, 4), flop_per_image=flop_per_image(run.recipe),
                )  # fmt: skip


def _steady(run: Run[Any], name: str) -> float:
    """Return the median of what a run logged in the second half of its steps: compiling is done, what was loaded meanwhile is used up."""
    logged = EventAccumulator(str(run.folder / "tensorboard"))
    logged.Reload()
    values = [event.value for event in logged.Scalars(name)]
    return statistics.median(values[len(values) // 2 :])


def _same_bits(bench: Bench, root: Path) -> None:
    settings = {**TOY_HEADS, "epochs": 2, "warmup_epochs": 1, "batch": 4 if bench.toy else 64, "workers": 0}
    settings["save_every"] = 2 if bench.toy else 16
    first, again = (_performed(root, home, TOY_ENCODER, settings) for home in ("first", "again"))
    shutil.rmtree(max(again.checkpoints.glob("step-*")))
    kept = bool(list(again.checkpoints.glob("step-*")))
    repeated = _weights(again)
    perform(again)
    same = [all(torch.equal(_weights(first)[n], other[n]) for n in other) for other in (repeated, _weights(again))]
    bench.emit("loop", what="the same bits", repeated=same[0], resumed=kept and same[1])


def _performed(root: Path, home: str, encoder: dict[str, Any], settings: dict[str, Any]) -> Run[Any]:
    """Perform a pre-training on the photographs below ``root``, in a folder of its own."""
    path = json.dumps(str(root / "photographs"))
    text = SUITE.format(path=path, encoder=_toml(encoder), settings=_toml(settings))
    (root / "gpu.toml").write_text(text)
    suite = load_suite(str(root / "gpu.toml"))
    run = open_run(suite, suite.runs[0], Workspace(root, root / home / "runs", root / home / "results"))
    run.start()
    perform(run)
    return run


def _toml(values: dict[str, Any]) -> str:
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def _weights(run: Run[Any]) -> dict[str, Tensor]:
    return load_file(run.folder / "encoder.safetensors")
