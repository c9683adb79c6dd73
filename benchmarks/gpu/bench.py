"""What the parts of the GPU's benchmark have in common: where results go, how large everything is, and how calls are timed."""

import contextlib
import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import MODELS
from loader import write_photographs

from lutbench.recipes.base import DataRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.train.processes import accelerator

TOY_ENCODER = {"model": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2}
TOY_HEADS = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2, "head_width": 64}

Step = Callable[[], object]


@dataclass
class Bench:
    """Where results go, and how large everything is.

    With ``toy`` all parts run in seconds on a CPU, at sizes that say nothing about speed: that is how they are kept working.
    """

    out: Path
    toy: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        """The device that is measured."""
        return accelerator().device

    @property
    def cuda(self) -> bool:
        """Whether that is a GPU."""
        return self.device.type == "cuda"

    def encoder(self, size: str) -> dict[str, Any]:
        """Return the settings of an encoder of that size, S, B or L."""
        return TOY_ENCODER if self.toy else {"model": MODELS[size]}

    def emit(self, part: str, **values: Any) -> None:
        """Append a measurement of a ``part`` to ``results.jsonl``, with the seconds since the beginning as ``t``."""
        line = json.dumps({"part": part, "t": round(time.monotonic() - self.started, 1), **values}, default=str)
        with (self.out / "results.jsonl").open("a") as file:
            file.write(line + "\n")

    @contextlib.contextmanager
    def section(self, part: str, name: str) -> Iterator[None]:
        """One measurement: an error is a result too, and the next goes on."""
        try:
            yield
        except Exception as error:
            where = traceback.format_exc()[-1500:]
            self.emit(part, name=name, error=f"{type(error).__name__}: {str(error)[:300]}", where=where)
        finally:
            if self.cuda:
                gc.collect()
                torch.cuda.empty_cache()

    def wait(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, step: Step, budget: float = 1.0, warm: int = 2) -> float:
        """Return the median seconds of a call, of those that fit into ``budget`` seconds, three at least; a toy's of one call."""
        if self.toy:
            return self.in_a_row(step, 1)
        for _ in range(warm):
            step()
        times: list[float] = []
        began = time.monotonic()
        while len(times) < 3 or (time.monotonic() - began < budget and len(times) < 200):
            times.append(self.in_a_row(step, 1))
        return sorted(times)[len(times) // 2]

    def in_a_row(self, step: Step, steps: int) -> float:
        """Return the seconds of a call among many in a row, as a loop has them: nothing waits in between."""
        self.wait()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        self.wait()
        return (time.perf_counter() - start) / steps


def recipe_of(bench: Bench, size: str, **changes: Any) -> PretrainRecipe:
    """Return LUT's recipe for an encoder of that size."""
    settings = {"data": {}, "encoder": bench.encoder(size), **(TOY_HEADS if bench.toy else {}), **changes}
    return read_recipe(PretrainRecipe, settings, "gpu")


def photographs(root: Path, count: int) -> DataRecipe:
    """Return a set of JPEGs below ``root``, made of photographs that ship in packages."""
    write_photographs(root / "photographs", count)
    return DataRecipe(label="photographs", path=str(root / "photographs"), train="")
