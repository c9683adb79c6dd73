"""No loop waits for the GPU: with ``torch.cuda.set_sync_debug_mode("error")`` a wait that is not marked is an error.

What is marked by ``lutbench.train.device.may_wait`` reads something back on purpose: the log, a checkpoint, results.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import SCENES, TOY, defaults, performed, toy_run, write_images, write_scenes

from lutbench.evaluate import inference
from lutbench.train.logger import TrainingLogger

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

PRETRAIN = f"""{TOY}
{defaults("pretrain", epochs=3, workers=1)}
[method.lut]
pretrain = "lut"
[pretrain.lut]
"""

TASKS: dict[str, dict[str, Any]] = {
    "finetune": {"kind": "finetune", "epochs": 3, "warmup_epochs": 1, "batch": 10, "eval_every": 1},
    "linear": {"kind": "linear", "epochs": 3, "warmup_epochs": 1, "batch": 12},
    "linear, fresh crops": {"kind": "linear", "epochs": 3, "warmup_epochs": 1, "batch": 12, "fresh_crops": True},
    "attentive": {"kind": "attentive", "epochs": 3, "batch": 12},
    "knn": {"kind": "knn", "neighbours": 5},
    "logistic": {"kind": "logistic"},
}


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Make waits an error in training loops from their second step on, and in passes over images from their second batch on.

    Before that compilers and caches are at work, which may wait once. What was watched is in the list.
    """
    watched: list[str] = []
    end_step, leave, batches = TrainingLogger.end_step, TrainingLogger.__exit__, inference.decoded_batches

    def watch_from_here(self: TrainingLogger, *inputs: Any, **options: Any) -> bool:
        saving = end_step(self, *inputs, **options)
        torch.cuda.set_sync_debug_mode("error")
        watched.append("training")
        return saving

    def no_more(self: TrainingLogger, *error: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        leave(self, *error)

    def watched_batches(*inputs: Any, **options: Any) -> Iterator[Any]:
        before = torch.cuda.get_sync_debug_mode()
        try:
            for number, batch in enumerate(batches(*inputs, **options)):
                if number:
                    torch.cuda.set_sync_debug_mode("error")
                    watched.append("inference")
                yield batch
        finally:
            torch.cuda.set_sync_debug_mode(before)

    monkeypatch.setattr(TrainingLogger, "end_step", watch_from_here)
    monkeypatch.setattr(TrainingLogger, "__exit__", no_more)
    monkeypatch.setattr(inference, "decoded_batches", watched_batches)
    yield watched
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("changes", [(), ("pretrain.lut.photometrics_on='device'",), ("pretrain.lut.compile=false",)])
def test_pretraining_does_not_wait(tmp_path: Path, no_waits: list[str], changes: tuple[str, ...]) -> None:
    write_images(tmp_path)
    performed(toy_run(tmp_path, changes=changes, suite_text=PRETRAIN))
    assert "training" in no_waits


@pytest.mark.parametrize("task", TASKS)
def test_no_task_waits(tmp_path: Path, no_waits: list[str], task: str) -> None:
    write_images(tmp_path)
    performed(toy_run(tmp_path, **TASKS[task], **({} if task == "finetune" else {"eval_batch": 8})))
    assert ("training" if task in ("finetune", "attentive") or "linear" in task else "inference") in no_waits


def test_robustness_does_not_wait(tmp_path: Path, no_waits: list[str]) -> None:
    """The stage's own pass, over a classifier and the protocols of a condition."""
    from robustness.protocols import Asked, Protocol

    asked = Asked(
        [Protocol("3 classes", None, ((0,), (1,), (2,)), torch.arange(8).numpy() % 3)], 3, torch.device("cuda")
    )
    logits, index = torch.randn(8, 3, device="cuda"), torch.arange(8, device="cuda")
    asked(logits, index)
    torch.cuda.set_sync_debug_mode("error")
    asked(logits, index)


def test_the_dense_probe_does_not_wait(tmp_path: Path, no_waits: list[str]) -> None:
    """Its loop; tokens of whole scenes go through windows and an evaluation that MMSegmentation scores on the host."""
    pytest.importorskip("mmseg", reason="the extra segmentation is not installed")
    write_scenes(tmp_path)
    suite = SCENES[: SCENES.index("iterations")].replace('kind = "segmentation"\n', "")
    settings = {"kind": "segmentation-linear", "iterations": 12, "warmup": 2, "batch": 4, "lr": 0.01}
    performed(toy_run(tmp_path, suite_text=suite, **settings))
    assert "training" in no_waits
