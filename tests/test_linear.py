"""The linear probe is MAE's: its layer, its LARS, its data; and it is exact."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.optim import Lars
from torch import nn
from toy_runs import check_same_answers, in_processes, killed_at_a_checkpoint, performed, toy_run, write_images

from downstream import frozen, linear
from downstream.frozen import schedule_of
from downstream.linear import lars_groups, linear_head
from lutbench.errors import UserError
from lutbench.evaluate import features
from lutbench.recipes.probes import LinearRecipe
from lutbench.run import Run
from lutbench.train.processes import accelerator

SHORT: dict[str, Any] = {"kind": "linear", "epochs": 4, "warmup_epochs": 1, "batch": 12, "base_lr": 20.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path)
    return tmp_path


def recipe_of(run: Run) -> LinearRecipe:
    assert isinstance(run.planned.recipe, LinearRecipe)
    return run.planned.recipe


def test_the_layer_is_a_batchnorm_without_affine_parameters_and_small_weights() -> None:
    head = linear_head(600, 500, seed=0)
    norm, layer = head
    assert isinstance(norm, nn.BatchNorm1d)
    assert (norm.affine, norm.eps) == (False, 1e-6)
    assert isinstance(layer, nn.Linear)
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not layer.bias.any()
    assert torch.equal(layer.weight, linear_head(600, 500, seed=0)[1].weight)  # type: ignore[arg-type]
    assert not torch.equal(layer.weight, linear_head(600, 500, seed=1)[1].weight)  # type: ignore[arg-type]


def test_lars_scales_the_weights_step_by_the_trust_ratio_and_the_biass_not() -> None:
    """By hand: v <- 0.9 v + 0.001 |w| / |g| g for the weight, v <- 0.9 v + g for the bias, then - lr v."""
    head = linear_head(8, 3, seed=0)
    layer = head[1]
    assert isinstance(layer, nn.Linear)
    optimizer = Lars(lars_groups(head, weight_decay=0.0), lr=0.5, momentum=0.9)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    weight_velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    for step in range(3):
        layer.weight.grad = torch.randn(3, 8, generator=torch.Generator().manual_seed(step))
        layer.bias.grad = torch.randn(3, generator=torch.Generator().manual_seed(10 + step))
        trust = 0.001 * weight.norm() / layer.weight.grad.norm()
        weight_velocity = 0.9 * weight_velocity + trust * layer.weight.grad
        bias_velocity = 0.9 * bias_velocity + layer.bias.grad
        weight, bias = weight - 0.5 * weight_velocity, bias - 0.5 * bias_velocity
        optimizer.step()
    assert torch.allclose(layer.weight, weight, rtol=1e-5)
    assert torch.allclose(layer.bias, bias, rtol=1e-5)


def test_the_rate_is_base_lr_times_batch_over_256(folder: Path) -> None:
    assert recipe_of(toy_run(folder, kind="linear")).lr == pytest.approx(0.1 * 16384 / 256)


def test_a_batch_is_encoded_in_passes_that_memory_allows(folder: Path) -> None:
    recipe = recipe_of(toy_run(folder, kind="linear", eval_batch=300))
    assert schedule_of(recipe, 30, seed=0).micro_batch == 256
    assert schedule_of(recipe.model_copy(update={"batch": 30, "eval_batch": 7}), 30, seed=0).micro_batches == 5
    assert schedule_of(recipe.model_copy(update={"batch": 31, "eval_batch": 7}), 30, seed=0).micro_batches == 31


@pytest.mark.parametrize("fresh_crops", [True, False])
def test_a_probe_learns_and_leaves_a_record_and_its_layer(folder: Path, fresh_crops: bool) -> None:
    settings = SHORT | {"epochs": 20, "pool": "mean", "crop_scale": [0.5, 1.0], "fresh_crops": fresh_crops}
    run = toy_run(folder, **settings)
    found = performed(run)
    assert found["n"] == 21
    assert found["measurements"]["top-1"] > 60, "three colours are easily told apart"
    layer = load_file(run.folder / "linear.safetensors")
    assert layer["1.weight"].shape == (3, 16)
    assert json.loads((run.folder / "finished.json").read_text())["checkpoint"] == found["checkpoint"]


def test_a_batch_larger_than_the_set_still_makes_its_steps(folder: Path) -> None:
    run = toy_run(folder, **SHORT | {"batch": 64, "fresh_crops": False})
    schedule = schedule_of(recipe_of(run), 30, seed=0)
    assert schedule.steps == 2
    assert set(Counter(index for _, index in schedule.batch_keys(0)).values()) == {2, 3}
    performed(run)


def test_without_fresh_crops_every_image_is_encoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = 0
    encode = features.encode

    def counting(encoder: Any, pixels: torch.Tensor, pool: Any, blocks: Any = ()) -> torch.Tensor:
        nonlocal encoded
        encoded += len(pixels)
        return encode(encoder, pixels, pool)

    monkeypatch.setattr(features, "encode", counting)
    monkeypatch.setattr(linear, "probe_features", counting)
    performed(toy_run(folder, "once", **SHORT | {"fresh_crops": False}))
    assert encoded == 30 + 21
    encoded = 0
    performed(toy_run(folder, "fresh", **SHORT))
    assert encoded == 4 * 30 + 21


def test_the_encoder_is_frozen_and_in_evaluation_mode(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoders = []
    encoder_of = frozen.encoder_of
    monkeypatch.setattr(frozen, "encoder_of", lambda *of: encoders.append(encoder_of(*of)) or encoders[-1])  # type: ignore[func-returns-value]
    run = toy_run(folder, **SHORT)
    performed(run)
    fresh = encoder_of(run, None).state_dict()
    assert not encoders[0].training
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in encoders[0].state_dict().items())
    assert all(parameter.grad is None for parameter in encoders[0].parameters())


@pytest.mark.parametrize("changes", [{"workers": 2}, {"eval_batch": 4}])
def test_workers_and_passes_change_nothing(folder: Path, changes: dict[str, int]) -> None:
    whole, helped = (performed(toy_run(folder, home, **SHORT | more)) for home, more in (("a", {}), ("b", changes)))
    if "workers" in changes:
        assert helped == whole
    assert helped["outcomes"] == whole["outcomes"]
    assert helped["extra"]["loss"] == pytest.approx(whole["extra"]["loss"], rel=1e-5)


def test_a_killed_probe_started_again_ends_with_the_same_bits(folder: Path) -> None:
    whole = in_processes(lambda: performed(toy_run(folder, "whole", **SHORT | {"epochs": 30})))[0]
    run = toy_run(folder, "killed", **SHORT | {"epochs": 30})
    killed_at_a_checkpoint(run, step=6)
    assert in_processes(lambda: performed(run))[0] == whole


@pytest.mark.parametrize("fresh_crops", [True, False])
def test_two_processes_make_the_layer_of_one(folder: Path, fresh_crops: bool) -> None:
    settings = SHORT | {"fresh_crops": fresh_crops}
    one = toy_run(folder, "one", **settings)
    performed(one)
    two = toy_run(folder, "two", **settings)

    def probe() -> None:
        linear.perform(two)
        accelerator().wait_for_everyone()

    in_processes(probe, 2)
    layers = [load_file(run.folder / "linear.safetensors") for run in (one, two)]
    for name, tensor in layers[0].items():
        assert torch.allclose(layers[1][name], tensor, rtol=1e-5, atol=1e-7), name
    check_same_answers(one, two)


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path) -> None:
    run = toy_run(folder, **SHORT | {"base_lr": 1e38})
    with pytest.raises(UserError, match="not finite"):
        performed(run)
    assert not (run.folder / "finished.json").exists()


def test_undecodable_images_are_passed_over_and_counted(folder: Path) -> None:
    (folder / "toy" / "train" / "amber" / "0.png").write_bytes(b"")
    assert performed(toy_run(folder, "once", **SHORT | {"fresh_crops": False}))["extra"]["skipped"] == 1
    assert performed(toy_run(folder, "fresh", **SHORT))["extra"]["skipped"] == 4
