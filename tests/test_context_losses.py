"""Every form of the context loss is its formula, also over two processes, and is one line away from a recipe."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_student import CONTROLS, random_views, tiny_recipe
from torch import Tensor
from torch.nn.functional import mse_loss, smooth_l1_loss
from toy_runs import in_processes

from lutbench.errors import UserError
from lutbench.kinds import CONTEXT_LOSSES, FRAMEWORKS
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.reading import read_recipe
from pretrain.context import ContextLoss, Targets
from pretrain.context_losses import build_loss
from pretrain.context_losses.infonce import contrast
from pretrain.student import build_student
from pretrain.teacher import Teacher

TEMPERATURE = 0.2


def outputs(rows: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q1, q2, z1, z2 = (3 * torch.randn(rows, 5, generator=torch.Generator().manual_seed(i)) for i in range(4))
    return q1.requires_grad_(), q2.requires_grad_(), z1, z2


def plain_infonce(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the mean over images of 2 tau times the cross-entropy, image by image."""
    total = torch.zeros(())
    for i, q in enumerate(queries):
        similarities = [(q @ k) / (q.norm() * k.norm()) / TEMPERATURE for k in keys]
        probability = similarities[i].exp() / sum(s.exp() for s in similarities)
        total = total - 2 * TEMPERATURE * probability.log()
    return total / len(queries)


def test_infonce_is_its_formula_in_both_directions() -> None:
    q1, q2, z1, z2 = outputs()
    loss = ContextLoss(distance=build_loss(tiny_recipe(context_loss="infonce")))
    expected = (plain_infonce(q1, z2) + plain_infonce(q2, z1)) / 2
    assert torch.allclose(loss(q1, q2, Targets(z1, z2)), expected)
    assert torch.allclose(loss(q1, None, Targets(None, z2)), plain_infonce(q1, z2))
    found, right = torch.autograd.grad(loss(q1, q2, Targets(z1, z2)), q1), torch.autograd.grad(expected, q1)
    assert torch.allclose(found[0], right[0], atol=1e-6)


def test_without_negatives_nearby_the_pull_of_infonce_is_the_cosines() -> None:
    """Which is what the factor of twice the temperature is for: one weight means the same for both."""
    q = torch.tensor([[1.0, 0.5], [-1.0, 0.2]], requires_grad=True)
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    rows = contrast(q, z, 10.0)  # at a high temperature all keys count alike
    pull = 2 - 2 * torch.cosine_similarity(q, z, dim=1)
    push = torch.stack([(q[i] / q[i].norm()) @ z.mean(0) for i in range(2)])  # the mean of opposite keys is nothing
    assert not push.any()
    found, expected = (torch.autograd.grad(each.sum(), q)[0] for each in (rows, pull))
    assert torch.allclose(found, expected, rtol=0.1)
    assert torch.allclose(contrast(q, z, 1e-2), torch.zeros(2), atol=1e-6), "told apart without doubt"


def test_the_temperature_is_the_recipes() -> None:
    q, _, z, _ = outputs()
    assert PretrainRecipe(data=DataRecipe()).context_temperature == 0.2
    warm, cold = (build_loss(tiny_recipe(context_loss="infonce", context_temperature=t)) for t in (1.0, 0.05))
    assert torch.equal(warm(q, z), contrast(q, z, 1.0))
    assert torch.equal(cold(q, z), contrast(q, z, 0.05))


def one_share(rank: int, count: int) -> dict[str, Any]:
    """Loss and gradient of this process's share of the images."""
    q1, q2, z1, z2 = outputs()
    share = slice(rank * 6 // count, (rank + 1) * 6 // count)
    loss = ContextLoss(distance=build_loss(tiny_recipe(context_loss="infonce")))
    total = loss(q1[share], q2[share], Targets(z1[share], z2[share]))
    total.backward()
    return {"loss": total.item(), "gradient": [p.grad.tolist() if p.grad is not None else None for p in (q1, q2)]}


def in_a_group() -> dict[str, Any]:
    from lutbench.train.processes import accelerator

    processes = accelerator()
    return one_share(processes.process_index, processes.num_processes)


@pytest.mark.parametrize("count", [2, 3])
def test_the_mean_over_processes_is_the_loss_of_one_process_with_all_images(count: int) -> None:
    whole, parts = one_share(0, 1), in_processes(in_a_group, count)
    assert sum(part["loss"] for part in parts) / count == pytest.approx(whole["loss"], rel=1e-6)
    for which in range(2):
        gradients = sum(torch.tensor(part["gradient"][which]) for part in parts) / count
        assert torch.allclose(gradients, torch.tensor(whole["gradient"][which]), atol=1e-7)


def test_negatives_are_those_of_a_pass_so_micro_batches_count() -> None:
    q, _, z, _ = outputs()
    whole = contrast(q, z, TEMPERATURE).mean()
    parts = torch.cat([contrast(q[:3], z[:3], TEMPERATURE), contrast(q[3:], z[3:], TEMPERATURE)]).mean()
    assert not torch.allclose(whole, parts, rtol=1e-2)
    settings = {"context_loss": "infonce", "head_norm": "layer", "batch": 8}
    one, other = (tiny_recipe(micro_batch=m, **settings).affecting_results() for m in (4, 8))
    assert one != other
    settings["context_loss"] = "cosine"
    one, other = (tiny_recipe(micro_batch=m, **settings).affecting_results() for m in (4, 8))
    assert one == other


def test_a_pass_of_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="needs negatives, so at least 2 images per forward pass"):
        tiny_recipe(context_loss="infonce", head_norm="layer", micro_batch=1)


@pytest.mark.parametrize(("name", "function"), [("l2", mse_loss), ("smooth_l1", smooth_l1_loss)])
@pytest.mark.parametrize("weight", [0.25, 0.1])
def test_distances_have_the_bits_that_torchs_own_mean_has(name: str, function: Any, weight: float) -> None:
    """As they were computed when runs were made: a mean over rows first would have other ones."""
    q1, q2, z1, z2 = outputs(7)
    ours = ContextLoss(distance=build_loss(tiny_recipe(context_loss=name)))(q1, q2, Targets(z1, z2))
    plain = (function(q1, z2) + function(q2, z1)) / 2
    assert torch.equal(ours, plain)
    found, right = torch.autograd.grad(weight * ours, q1), torch.autograd.grad(weight * plain, q1)
    assert torch.allclose(found[0], right[0], rtol=1e-6)


def test_a_name_that_is_not_known_is_answered_with_the_nearest() -> None:
    for field, name, hint, known in (
        ("context_loss", "info_nce", "infonce", CONTEXT_LOSSES),
        ("framework", "simmmim", "simmim", FRAMEWORKS),
    ):
        with pytest.raises(UserError) as error:
            read_recipe(PretrainRecipe, {"data": DataRecipe(), field: name}, "pretrain.lut")
        assert f"pretrain.lut.{field}: expected one of {', '.join(known)}" in str(error.value)
        assert f"Did you mean '{hint}'?" in str(error.value)


def test_a_loss_of_ones_own_is_a_file_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/extending.md says."""
    (tmp_path / "absolute_loss.py").write_text(
        "def absolute(recipe):\n    return lambda student, teacher: (student - teacher).abs() * recipe.context_temperature\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(CONTEXT_LOSSES, "absolute", "absolute_loss:absolute")  # type: ignore[arg-type]
    for target in ("pooled", "tokens"):
        student = build_student(tiny_recipe(context_loss="absolute", context_target=target), seed=0)
        views = random_views()
        losses = student(views, Teacher(student)(views))
        losses.total.backward()
        assert losses.context.item() > 0
    del sys.modules["absolute_loss"]


def test_every_form_is_among_the_controls_that_are_tested() -> None:
    assert {changes.get("context_loss", "cosine") for changes in CONTROLS.values()} == set(CONTEXT_LOSSES)
    assert math.isclose(TEMPERATURE, tiny_recipe().context_temperature)
