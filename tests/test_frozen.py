"""Heads on frozen encoders, linear and attentive, are trained by one loop, which is exact."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_runs import check_same_answers, killed_at_a_checkpoint, performed, performed_by, toy_run

from downstream import frozen
from lutbench.errors import UserError

SHORT: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear", "epochs": 4, "warmup_epochs": 1, "batch": 12, "base_lr": 20.0},
    "attentive": {"kind": "attentive", "epochs": 4, "batch": 12, "lr": 5e-3},
}
ROUNDING = {"linear": 1e-5, "attentive": 1e-4}
"""How far losses and weights may differ where batches are multiplied in other parts."""


@pytest.mark.parametrize("fresh_crops", [True, False])
@pytest.mark.parametrize(("kind", "pool", "least"), [("linear", {"pool": "mean"}, 60), ("attentive", {}, 80)])
def test_a_probe_learns_and_leaves_a_record_and_its_weights(
    folder: Path, kind: str, pool: dict[str, str], least: float, fresh_crops: bool
) -> None:
    settings = SHORT[kind] | pool | {"epochs": 20, "crop_scale": [0.5, 1.0], "fresh_crops": fresh_crops}
    run = toy_run(folder, **settings)
    found = performed(run)
    assert found["n"] == 21
    assert found["measurements"]["top-1"] > least, "three colours are easily told apart"
    weights = load_file(run.folder / f"{kind}.safetensors")
    shapes = {"1.weight": (3, 16), "pool.latent": (1, 1, 16), "classifier.weight": (3, 16)}
    assert all(weights[name].shape == shape for name, shape in shapes.items() if name in weights)
    assert len(weights.keys() & shapes) == (1 if kind == "linear" else 2)
    assert json.loads((run.folder / "finished.json").read_text())["checkpoint"] == found["checkpoint"]


@pytest.mark.parametrize("kind", SHORT)
def test_the_encoder_is_frozen_and_in_evaluation_mode(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    encoders = []
    encoder_of = frozen.encoder_of
    monkeypatch.setattr(frozen, "encoder_of", lambda *of: encoders.append(encoder_of(*of)) or encoders[-1])  # type: ignore[func-returns-value]
    run = toy_run(folder, **SHORT[kind])
    performed(run)
    fresh = encoder_of(run, None).state_dict()
    assert not encoders[0].training
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in encoders[0].state_dict().items())
    assert all(parameter.grad is None for parameter in encoders[0].parameters())


@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize("changes", [{"workers": 2}, {"eval_batch": 4}])
def test_workers_and_passes_change_nothing(folder: Path, changes: dict[str, int], kind: str) -> None:
    runs = [toy_run(folder, home, **SHORT[kind] | more) for home, more in (("a", {}), ("b", changes))]
    whole, helped = map(performed, runs)
    if "workers" in changes:
        assert helped == whole
    check_same_answers(*runs)  # some processors round otherwise in a pass of another size
    assert helped["extra"]["loss"] == pytest.approx(whole["extra"]["loss"], rel=ROUNDING[kind])


@pytest.mark.parametrize(
    ("kind", "epochs", "fresh_crops"), [("linear", 30, True), ("attentive", 60, True), ("attentive", 60, False)]
)
def test_a_killed_probe_started_again_ends_with_the_same_bits(
    folder: Path, kind: str, epochs: int, fresh_crops: bool
) -> None:
    settings = SHORT[kind] | {"epochs": epochs, "fresh_crops": fresh_crops}
    whole = performed_by(toy_run(folder, "whole", **settings), 1)
    run = toy_run(folder, "killed", **settings)
    killed_at_a_checkpoint(run, step=6)
    again = performed_by(run, 1)
    if not fresh_crops:
        assert again["extra"].pop("features_kept") == ["train"]
    assert again == whole


@pytest.mark.parametrize("fresh_crops", [True, False])
@pytest.mark.parametrize("kind", SHORT)
def test_two_processes_make_the_head_of_one(folder: Path, kind: str, fresh_crops: bool) -> None:
    one, two = (toy_run(folder, home, **SHORT[kind] | {"fresh_crops": fresh_crops}) for home in ("one", "two"))
    performed(one)
    performed_by(two, 2)
    weights = [load_file(run.folder / f"{kind}.safetensors") for run in (one, two)]
    for name, tensor in weights[0].items():
        rtol = ROUNDING[kind]
        assert torch.allclose(weights[1][name], tensor, rtol=rtol, atol=rtol / (100 if kind == "linear" else 10)), name
    check_same_answers(one, two)


@pytest.mark.parametrize(("kind", "rate"), [("linear", "base_lr"), ("attentive", "lr")])
def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, kind: str, rate: str) -> None:
    run = toy_run(folder, **SHORT[kind] | {rate: 1e38})
    with pytest.raises(UserError, match="not finite"):
        performed(run)
    assert not (run.folder / "finished.json").exists()


@pytest.mark.parametrize("kind", SHORT)
def test_undecodable_images_are_passed_over_and_counted(folder: Path, kind: str) -> None:
    (folder / "toy" / "train" / "amber" / "0.png").write_bytes(b"")
    assert performed(toy_run(folder, "once", **SHORT[kind] | {"fresh_crops": False}))["extra"]["skipped"] == 1
    assert performed(toy_run(folder, "fresh", **SHORT[kind]))["extra"]["skipped"] == 4
