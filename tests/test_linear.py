"""The linear probe is MAE's: its layer, its LARS, its data."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import Lars
from torch import nn
from toy_runs import performed, toy_run

from downstream import linear
from downstream.frozen import schedule_of
from downstream.linear import lars_groups, linear_head
from lutbench.evaluate import features
from lutbench.recipes.probes import LinearRecipe
from lutbench.run import Run

SHORT: dict[str, Any] = {"kind": "linear", "epochs": 4, "warmup_epochs": 1, "batch": 12, "base_lr": 20.0}


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
