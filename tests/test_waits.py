"""No loop waits for the GPU: with ``torch.cuda.set_sync_debug_mode("error")`` a wait that is not marked is an error.

What is marked by ``lutbench.train.device.may_wait`` reads something back on purpose: the log, a checkpoint, results. On a CPU, where nothing
can wait, the same runs show that the loops are those that are watched.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_retrieval import instance_run, write_revisited
from tiny_student import TINY_ENCODER
from toy_runs import CLASSES, LOOKS, SCENES, TOY, defaults, performed, toy_run, write_images, write_scenes

from analysis import passes
from lutbench.evaluate import inference
from lutbench.models.encoders import create_encoder
from lutbench.models.preprocessing import IMAGENETS
from lutbench.recipes.reading import read_recipe
from lutbench.recipes.robustness import RobustnessDatasetRecipe, RobustnessRecipe
from lutbench.train.logger import TrainingLogger
from lutbench.train.processes import accelerator

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
    "retrieval": {"kind": "retrieval"},
}

DENSE: dict[str, dict[str, Any]] = {
    "segmentation-linear": {"iterations": 12, "warmup": 2, "batch": 4, "lr": 0.01},
    "segmentation-knn": {"neighbours": 5, "bank": 400},
}


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)])
def no_waits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Make waits an error in training loops from their second step on, and in passes over images from their second batch on.

    Before that compilers and caches are at work, which may wait once. What was watched is in the list.
    """
    assert accelerator().device.type == request.param
    if request.param == "cpu":
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: "default")
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
    for module in (inference, passes):
        monkeypatch.setattr(module, "decoded_batches", watched_batches)
    yield watched
    torch.cuda.set_sync_debug_mode("default")


CHANGES: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "colours on the device": ("pretrain.lut.photometrics_on='device'",),
    "not compiled": ("pretrain.lut.compile=false",),
    "checkpointed": ("pretrain.lut.checkpointing=true",),
    "online k-NN": ("pretrain.lut.knn_every=1", "pretrain.lut.knn_neighbours=2"),
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_pretraining_does_not_wait(tmp_path: Path, no_waits: list[str], changes: tuple[str, ...]) -> None:
    write_images(tmp_path)
    performed(toy_run(tmp_path, changes=changes, suite_text=PRETRAIN))
    assert "training" in no_waits


@pytest.mark.parametrize("task", TASKS)
def test_no_task_waits(tmp_path: Path, no_waits: list[str], task: str) -> None:
    write_images(tmp_path)
    performed(toy_run(tmp_path, **TASKS[task], **({} if task == "finetune" else {"eval_batch": 8})))
    assert ("training" if task in ("finetune", "attentive") or "linear" in task else "inference") in no_waits


def test_an_analysis_waits_only_for_what_it_keeps(tmp_path: Path, no_waits: list[str]) -> None:
    write_images(tmp_path)
    performed(toy_run(tmp_path, suite_text=LOOKS, eval_batch=8))
    assert "inference" in no_waits


def test_robustness_does_not_wait(tmp_path: Path, no_waits: list[str]) -> None:
    """The stage's own pass, from files through a loader, over a classifier and the protocols of a condition."""
    from robustness.classifier import Classifier
    from robustness.conditions import open_condition
    from robustness.labels import label_space
    from robustness.measure import measure_conditions

    write_images(tmp_path)
    space = label_space(CLASSES)
    settings = {"path": "toy/val", "preprocessing": ["crop"]}
    shifted = read_recipe(RobustnessDatasetRecipe, settings, "shifted")
    of_run = {"classifier": {"kind": "timm", "model": "vit_tiny_patch16_224"}, "set": shifted.model_dump()}
    recipe = read_recipe(RobustnessRecipe, {**of_run, "eval_batch": 8, "workers": 1}, "robustness")
    network = create_encoder(TINY_ENCODER, classes=3).to(accelerator().device).eval()
    classifier = Classifier(network, 16, space, IMAGENETS)
    measured = measure_conditions(
        classifier, open_condition(shifted, tmp_path, "", space), {"": lambda view, _: view}, recipe, ""
    )
    assert len(measured) == 1
    assert "inference" in no_waits


def test_retrieval_of_instances_does_not_wait(tmp_path: Path, no_waits: list[str]) -> None:
    write_revisited(tmp_path)
    performed(instance_run(tmp_path, eval_batch=4))
    assert "inference" in no_waits


def test_upernet_does_not_wait(tmp_path: Path, no_waits: list[str]) -> None:
    pytest.importorskip("mmseg", reason="the extra segmentation is not installed")
    write_scenes(tmp_path)
    performed(toy_run(tmp_path, suite_text=SCENES, val_every=4))
    assert "training" in no_waits


@pytest.mark.parametrize("kind", DENSE)
def test_no_dense_probe_waits(tmp_path: Path, no_waits: list[str], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes over whole images too, by windows; pictures are made on the host."""
    pytest.importorskip("mmseg", reason="the extra segmentation is not installed")
    from downstream.segmentation import dense_data

    own_images = dense_data.own_images

    def watched_images(*inputs: Any) -> Iterator[Any]:
        before = torch.cuda.get_sync_debug_mode()
        try:
            for number, sample in enumerate(own_images(*inputs)):
                if number:
                    torch.cuda.set_sync_debug_mode("error")
                    no_waits.append("whole images")
                yield sample
        finally:
            torch.cuda.set_sync_debug_mode(before)

    monkeypatch.setattr(dense_data, "own_images", watched_images)
    write_scenes(tmp_path)
    suite = SCENES[: SCENES.index("iterations")].replace('kind = "segmentation"\n', "")
    performed(toy_run(tmp_path, suite_text=suite, kind=kind, **DENSE[kind]))
    assert ("training" in no_waits) == (kind == "segmentation-linear")
    assert "whole images" in no_waits
