"""A suite whose pre-training keeps snapshots, for tests; with what they compare of its run."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from toy_runs import TOY, defaults

from lutbench.models.weight_files import sha256_of
from lutbench.run import Run
from lutbench.stages import perform

SUITE = f"""{TOY}
{defaults("pretrain", epochs=6, warmup_epochs=1, batch=9, base_lr=0.01, momentum=0.5, save_every=8)}
[pretrain.lut]
snapshots = [0, 0.25, 0.55]
snapshot_teacher = true
[pretrain.mae]
context_weight = 0.0
snapshots = [0.25]
[method.lut]
pretrain = "lut"
[method.lut-teacher]
pretrain = "lut"
teacher = true
[method.mae]
pretrain = "mae"
[method.drawn]
scratch = true
encoder = "toy"
"""
"""For 30 images, and so 20 steps: the snapshots are of steps 0, 5 and 11, the checkpoints of 8, 16 and 20."""

NAMES = [f"{export}-at-{share}" for share in ("0", "0.25", "0.55") for export in ("encoder", "teacher")]


def trained(run: Run) -> dict[str, Any]:
    """Train a run, and return what came of it as plain values."""
    run.start()
    perform(run)
    return made(run)


def made(run: Run) -> dict[str, Any]:
    record = json.loads(next(run.workspace.results.rglob("seed0.json")).read_text())
    return {
        "weights": record["checkpoint"],
        "measurements": record["measurements"],
        "skipped": record["extra"]["skipped"],
    }


def snapshots_of(run: Run) -> dict[str, str]:
    """The sha256 of every file of a snapshot in a run's folder."""
    return {path.name: sha256_of(path) for path in sorted(run.folder.glob("*-at-*"))}


def killed(run: Run, patch: Callable[[pytest.MonkeyPatch, Callable[[], None]], None]) -> None:
    """Perform a run in a process that kills itself, where ``patch`` puts the call that does."""

    def until_killed() -> None:
        with pytest.MonkeyPatch.context() as patched:
            patch(patched, lambda: os.kill(os.getpid(), signal.SIGKILL))
            run.start()
            perform(run)

    worker = multiprocessing.get_context("fork").Process(target=until_killed)
    worker.start()
    worker.join(120)
    assert worker.exitcode == -signal.SIGKILL
    assert not (run.folder / "finished.json").exists()
