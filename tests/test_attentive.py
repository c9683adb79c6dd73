"""The attentive probe is V-JEPA's block on patch tokens of a frozen encoder."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from toy_runs import SUITE, TOY, performed, toy_run

from downstream import attentive, frozen
from downstream.attentive_pool import AttentiveClassifier, attentive_head, heads_of
from lutbench.errors import UserError
from lutbench.evaluate import features
from lutbench.models.encoders import create_encoder
from lutbench.models.tokens import patch_tokens, token_shape
from lutbench.plan.compute import STEP, transformer
from lutbench.recipes.attentive import AttentiveRecipe
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.loading import load_suite
from lutbench.run import Run, open_run
from lutbench.workspace import Workspace

SHORT: dict[str, Any] = {"kind": "attentive", "epochs": 4, "batch": 12, "lr": 5e-3}


def recipe_of(run: Run) -> AttentiveRecipe:
    assert isinstance(run.planned.recipe, AttentiveRecipe)
    return run.planned.recipe


def plain_scores(head: nn.Module, tokens: Tensor, heads: int) -> Tensor:
    """Norm, softmax(q k / sqrt d) v of every head, projection, residual MLP and classifier, written out."""
    w = head.state_dict()
    width = tokens.shape[-1]
    x = functional.layer_norm(tokens, (width,), w["norm.weight"], w["norm.bias"], 1e-6)
    query = w["pool.latent"][0, 0] @ w["pool.q.weight"].T + w["pool.q.bias"]
    keys, values = (x @ w["pool.kv.weight"].T + w["pool.kv.bias"]).split(width, -1)
    found = []
    for part in torch.arange(width).view(heads, -1):
        weights = ((keys[..., part] @ query[part]) / len(part) ** 0.5).softmax(-1)
        found.append((weights[..., None] * values[..., part]).sum(1))
    y = torch.cat(found, -1) @ w["pool.proj.weight"].T + w["pool.proj.bias"]
    z = functional.layer_norm(y, (width,), w["pool.norm.weight"], w["pool.norm.bias"], 1e-6)
    z = functional.gelu(z @ w["pool.mlp.fc1.weight"].T + w["pool.mlp.fc1.bias"])
    y = y + z @ w["pool.mlp.fc2.weight"].T + w["pool.mlp.fc2.bias"]
    return y @ w["classifier.weight"].T + w["classifier.bias"]


@pytest.mark.parametrize("heads", [1, 3])
def test_the_probe_is_one_query_that_attends_to_normalised_tokens_and_an_mlp(heads: int) -> None:
    head = attentive_head(24, 5, heads, 2.0, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    tokens = torch.randn(4, 7, 24, generator=generator)
    assert torch.allclose(head(tokens), plain_scores(head, tokens, heads), rtol=1e-4, atol=1e-4)


def test_its_weights_follow_from_the_seed() -> None:
    first, again, other = (attentive_head(128, 10, 2, 4.0, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pool.latent"], other["pool.latent"])
    assert first["pool.kv.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert not first["pool.kv.bias"].any()


def test_a_head_for_every_64_features_unless_heads_are_given(folder: Path) -> None:
    recipe = recipe_of(toy_run(folder, kind="attentive"))
    assert [heads_of(recipe, width) for width in (1024, 768, 192, 64, 16, 200)] == [16, 12, 3, 1, 1, 2]
    with pytest.raises(UserError, match="heads = 7 must divide the width 64 of a token"):
        heads_of(recipe.model_copy(update={"heads": 7}), 64)


def test_the_defaults_are_those_of_v_jepas_frozen_evaluation(folder: Path) -> None:
    recipe = recipe_of(toy_run(folder, kind="attentive"))
    assert (recipe.epochs, recipe.batch, recipe.lr, recipe.weight_decay, recipe.warmup_epochs) == (
        20,
        256,
        1e-3,
        0.01,
        0,
    )


def test_biases_and_norms_do_not_decay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *of, **how: made.append(adamw(*of, **how)) or made[-1])  # type: ignore[func-returns-value]
    performed(toy_run(folder, **SHORT | {"weight_decay": 0.3, "betas": [0.8, 0.95]}))
    decays = {p.ndim > 1: group["weight_decay"] for group in made[0].param_groups for p in group["params"]}
    assert decays == {False: 0.0, True: 0.3}
    assert made[0].param_groups[0]["betas"] == (0.8, 0.95)


def test_patch_tokens_leave_out_class_token_and_registers() -> None:
    for name, prefix in (
        ("vit_tiny_patch16_224", 1),
        ("vit_small_patch14_reg4_dinov2", 5),
        ("vit_base_patch16_siglip_224", 0),
    ):
        recipe = EncoderRecipe(model=name, image_size=56 if "14" in name else 224)
        side = recipe.image_size
        patches = (side // (14 if "14" in name else 16)) ** 2
        encoder: Any = create_encoder(recipe, side).eval()
        assert encoder.num_prefix_tokens == prefix
        pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            tokens = patch_tokens(encoder, pixels)
            assert torch.equal(tokens, encoder.forward_features(pixels)[:, prefix:])
        assert token_shape(recipe, side) == tuple(tokens.shape[1:]) == (patches, encoder.embed_dim)


def test_an_encoder_without_class_token_can_be_probed(folder: Path) -> None:
    suite = SUITE.replace("vit_tiny_patch16_224", "vit_base_patch16_siglip_224").replace("heads = 2", "heads = 2", 1)
    suite = re.sub(r"(patch_size|width|depth|heads) = \d+\n", "", suite).replace("image_size = 16", "image_size = 32")
    assert performed(toy_run(folder, suite_text=suite, **SHORT | {"epochs": 1, "fresh_crops": False}))["n"] == 21


@pytest.mark.parametrize("model", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_a_model_without_tokens_is_refused_by_row(folder: Path, model: str) -> None:
    rows = f'[method.other]\nscratch = true\nencoder = "other"\n[encoder.other]\nmodel = "{model}"\n'
    (folder / "toy.toml").write_text(f'{TOY}{rows}[downstream.task]\ndata = "toy"\nkind = "attentive"\n')
    suite = load_suite(str(folder / "toy.toml"))
    run = open_run(suite, suite.runs[0], Workspace(folder, folder / "runs", folder / "results"))
    with pytest.raises(
        UserError,
        match=r"downstream\.task, row other: expected patch tokens, which the attentive probe needs, but timm's",
    ):
        attentive.check_weights(run)


def test_tokens_that_would_not_fit_memory_are_refused_before_they_are_encoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 * 30 * 16 * 16  # bytes, images, patches and features
    once, fresh = (toy_run(folder, **SHORT | {"fresh_crops": crops}) for crops in (False, True))
    monkeypatch.setattr(attentive, "HELD", size)
    attentive.check(once)
    monkeypatch.setattr(attentive, "HELD", size - 1)
    with pytest.raises(UserError, match=r"fresh_crops = false: the tokens of 30 images \(16 x 16 numbers each\) need"):
        attentive.check(once)
    attentive.check(fresh)
    attentive.check(toy_run(folder, **SHORT | {"fresh_crops": False, "shots": 9}))


def test_without_fresh_crops_every_image_is_encoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = 0

    def counting(encoder: nn.Module, pixels: Tensor) -> Tensor:
        nonlocal encoded
        encoded += len(pixels)
        return patch_tokens(encoder, pixels)

    for module in (attentive, features):
        monkeypatch.setattr(module, "patch_tokens", counting)
    performed(toy_run(folder, "once", **SHORT | {"fresh_crops": False}))
    assert encoded == 30
    encoded = 0
    performed(toy_run(folder, "fresh", **SHORT))
    assert encoded == 4 * 30


def test_what_is_evaluated_is_the_probe_behind_the_encoder(folder: Path) -> None:
    """Read back, and run on pixels: the predictions are those of the record."""
    run = toy_run(folder, **SHORT)
    performed(run)
    head = attentive_head(16, 3, 1, 4.0, seed=5)
    head.load_state_dict(load_file(run.folder / "attentive.safetensors"))
    classifier = AttentiveClassifier(frozen.frozen_encoder(run), head).eval()
    again = attentive.evaluate(classifier, run.dataset("val"), run.recipe, run.preprocessing, title="")
    record = run.record(run.workspace.results)
    assert record is not None
    assert (again.rank == record.outcomes.rank).all()


def test_its_cost_is_the_encoders_and_the_training_of_the_probe(folder: Path) -> None:
    """Two FLOP for every multiplication: keys and values of 16 tokens, the query, attention, projection, MLP, classifier."""
    n, d, classes = 16, 16, 3
    head = 2 * (n * d * 2 * d + d * d + 2 * n * d + d * d + 2 * d * 4 * d + d * classes)
    fresh, once = (toy_run(folder, **SHORT | {"fresh_crops": crops}) for crops in (True, False))
    encoder = transformer(recipe_of(fresh).encoder.architecture, 16).flop
    costs = [attentive.cost(run, classes) for run in (fresh, once)]
    assert [cost.train for cost in costs] == [encoder + STEP * head, encoder + 4 * STEP * head]
    assert [cost.evaluate for cost in costs] == [encoder + head] * 2
    values = sum(tensor.numel() for tensor in attentive_head(d, classes, 1, 4.0, 0).state_dict().values())
    assert [(cost.checkpoint, cost.exported) for cost in costs] == [(3 * values, values)] * 2
    assert recipe_of(once).samples({"train": 30, "val": 21}) == (30, 21)
    assert recipe_of(fresh).samples({"train": 30, "val": 21}) == (120, 21)
