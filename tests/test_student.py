"""The student: its losses, its controls, its initial weights."""

import copy
import math
from typing import Any

import pytest
import torch
from tiny_student import CONTROLS, TINY_ENCODER, random_views, tiny_recipe
from torch import Tensor, nn

from lutbench.errors import UserError
from lutbench.models.encoders import create_encoder
from lutbench.recipes.base import EncoderRecipe
from pretrain.context import ContextLoss, Targets
from pretrain.context_losses import build_loss
from pretrain.frameworks.mae import MAE
from pretrain.frameworks.vit import patchify, unpatchify
from pretrain.masking import visible_patches
from pretrain.reconstruction import reconstruct
from pretrain.student import Losses, Student, build_student, parameter_groups
from pretrain.teacher import Teacher
from pretrain.views import Views


def losses_of(student: Student, views: Views) -> Losses:
    result: Losses = student(views, None if student.context is None else Teacher(student)(views))
    return result


@pytest.mark.parametrize("changes", CONTROLS.values(), ids=CONTROLS)
def test_every_trainable_parameter_gets_a_gradient(changes: dict[str, Any]) -> None:
    student = build_student(tiny_recipe(**changes), seed=0)
    losses_of(student, random_views()).total.backward()
    fixed = {name for name, p in student.named_parameters() if not p.requires_grad}
    assert fixed == {"encoder.pos_embed", "decoder.pos_embed"}
    without = {name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == fixed


def test_lut_without_context_is_mae_in_weights_and_losses() -> None:
    lut, weight_0, mae = (
        build_student(tiny_recipe(**changes), seed=3)
        for changes in ({}, {"context_weight": 0.0, "momentum": 0.5}, {"context_weight": 0.0})
    )
    assert weight_0.projector is None
    assert weight_0.predictor is None
    views = random_views()
    first, second = weight_0(views), mae(Views(views.view1, None, views.noise))
    assert first.context is None
    assert torch.equal(first.total, first.mim)
    for name, value in mae.state_dict().items():
        assert torch.equal(value, weight_0.state_dict()[name])
        assert torch.equal(value, lut.state_dict()[name]), "leaving the heads out changed other weights"
    assert torch.equal(first.total, second.total)
    assert torch.allclose(first.mim, losses_of(lut, views).mim, rtol=1e-6)


def test_the_total_is_the_weighted_sum() -> None:
    losses = losses_of(build_student(tiny_recipe(context_weight=0.7), seed=0), random_views())
    assert losses.context is not None
    assert losses.total.item() == pytest.approx(losses.mim.item() + 0.7 * losses.context.item(), rel=1e-6)


def test_both_views_in_one_batch_equal_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    together = build_student(tiny_recipe(), seed=0)
    apart = copy.deepcopy(together)
    views = random_views()
    targets = Teacher(together)(views)
    batches: list[int] = []
    right = MAE.encode

    def counted(self: MAE, encoder: Any, images: Tensor, visible: Tensor | None) -> Tensor:
        batches.append(len(images))
        return right(self, encoder, images, visible)

    monkeypatch.setattr(MAE, "encode", counted)
    losses = together(views, targets)
    losses.total.backward()
    assert batches == [12]

    def one_at_a_time(self: MAE, encoder: Any, images: Tensor, visible: Tensor) -> Tensor:
        views = zip(images.chunk(2), visible.chunk(2), strict=True)
        return torch.cat([right(self, encoder, view, each) for view, each in views])

    monkeypatch.setattr(MAE, "encode", one_at_a_time)
    losses_apart = apart(views, targets)
    losses_apart.total.backward()
    assert torch.allclose(losses.total, losses_apart.total, rtol=1e-6)
    for (name, p), q in zip(together.named_parameters(), apart.parameters(), strict=True):
        if p.grad is not None and not name.endswith("qkv.bias"):
            assert q.grad is not None
            assert (p.grad - q.grad).norm() <= 1e-5 * q.grad.norm(), name


def test_the_heads_run_once_per_view() -> None:
    student = build_student(tiny_recipe(), seed=0)
    views, sizes = random_views(), list[int]()
    targets = Teacher(student)(views)
    for head in (student.projector, student.predictor):
        assert head is not None
        head.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    student(views, targets)
    assert sizes == [6, 6, 6, 6]


def test_one_direction_never_looks_at_its_own_view_2(monkeypatch: pytest.MonkeyPatch) -> None:
    student = build_student(tiny_recipe(both_directions=False), seed=0)
    views = random_views()
    targets = Teacher(student)(views)
    alone = student(Views(views.view1, None, views.noise), targets)
    assert torch.equal(alone.total, student(views, targets).total)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("cosine", lambda q, z: 2 - 2 * (q @ z) / (q.norm() * z.norm())),
        ("l2", lambda q, z: ((q - z) ** 2).mean()),
        ("smooth_l1", lambda q, z: torch.stack([_huber(float(x)) for x in q - z]).mean()),
    ],
)
def test_distances_follow_their_formulas_in_both_directions(name: Any, function: Any) -> None:
    q1, q2, z1, z2 = (3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(i)) for i in range(4))
    forth = sum(function(q, z) for q, z in zip(q1, z2, strict=True)) / 4
    back = sum(function(q, z) for q, z in zip(q2, z1, strict=True)) / 4
    loss = ContextLoss(distance=build_loss(tiny_recipe(context_loss=name)))
    assert torch.allclose(loss(q1, q2, Targets(z1, z2)), (forth + back) / 2)
    assert torch.allclose(loss(q1, None, Targets(None, z2)), forth)


def _huber(x: float) -> Tensor:
    return torch.tensor(0.5 * x * x if abs(x) < 1 else abs(x) - 0.5)


def test_the_class_token_target_reads_the_class_token() -> None:
    tokens = torch.randn(2, 5, 3)
    assert torch.equal(ContextLoss(target="class").pool(tokens), tokens[:, 0])
    assert torch.allclose(ContextLoss().pool(tokens), tokens[:, 1:].sum(1) / 4)


@pytest.mark.parametrize("changes", CONTROLS.values(), ids=CONTROLS)
def test_losses_are_float32_scalars_in_mixed_precision(changes: dict[str, Any]) -> None:
    student = build_student(tiny_recipe(**changes), seed=0)
    exact = losses_of(student, random_views())
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(student, random_views())
    for loss, reference in zip(losses, exact, strict=True):
        if loss is not None:
            assert loss.dtype == torch.float32
            assert loss.shape == ()
            assert loss.item() == pytest.approx(reference.item(), rel=0.2)
            assert loss.item() != reference.item(), "mixed precision was not on"


def test_losses_themselves_are_not_rounded_in_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    student = build_student(tiny_recipe(), seed=0)
    dtypes: set[torch.dtype] = set()
    right = MAE.loss

    def watched(self: MAE, pixels: Tensor, images: Tensor, visible: Tensor) -> Tensor:
        dtypes.update({pixels.dtype, images.dtype, (pixels[0] @ pixels[0].T).dtype})  # autocast would round a product
        return right(self, pixels, images, visible)

    monkeypatch.setattr(MAE, "loss", watched)
    right_call = ContextLoss.__call__

    def watched_call(self: ContextLoss, q1: Tensor, q2: Tensor, targets: Targets) -> Tensor:
        dtypes.update({q1.dtype, q2.dtype, targets.view2.dtype, (q1 @ q2.T).dtype})
        return right_call(self, q1, q2, targets)

    monkeypatch.setattr(ContextLoss, "__call__", watched_call)
    with torch.autocast("cpu", torch.bfloat16):
        losses_of(student, random_views())
    assert dtypes == {torch.float32}


def test_weights_depend_on_the_seed_alone() -> None:
    first = build_student(tiny_recipe(), seed=0).state_dict()
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = build_student(tiny_recipe(), seed=0).state_dict()
    other = build_student(tiny_recipe(), seed=1).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    for name, value in first.items():
        assert torch.equal(value, again[name])
        drawn = name.endswith(("token", "weight")) and value.ndim > 1
        assert torch.equal(value, other[name]) != drawn, name


def test_changing_one_component_leaves_the_others_weights() -> None:
    first = build_student(tiny_recipe(), seed=0).state_dict()
    other = build_student(tiny_recipe(decoder_depth=2, head_depth=3), seed=0).state_dict()
    for name, value in first.items():
        if name.startswith("encoder."):
            assert torch.equal(value, other[name])


def test_initial_weights_follow_the_paper() -> None:
    encoder = EncoderRecipe(model="vit_tiny_patch16_224", image_size=32, patch_size=8, width=192, depth=1, heads=3)
    recipe = tiny_recipe(decoder_width=128, head_width=256).model_copy(update={"encoder": encoder})
    student = build_student(recipe, seed=0)
    for name, module in student.named_modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert float(module.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01), name
            assert float(module.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05), name
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert module.weight.eq(1).all()
            assert not module.bias.any()
            assert module.eps == 1e-6
    projection = student.encoder.patch_embed.proj.weight.detach()
    assert float(projection.abs().max()) == pytest.approx(math.sqrt(6 / (192 + 3 * 64)), rel=0.01)
    for token in (student.encoder.cls_token, student.decoder.mask_token):
        assert token is not None
        assert float(token.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_the_encoder_exports_strictly_to_timm_and_computes_the_same() -> None:
    student = build_student(tiny_recipe(), seed=0)
    exported = create_encoder(TINY_ENCODER)
    exported.load_state_dict(student.encoder.state_dict(), strict=True)
    images = random_views().view1
    assert torch.allclose(
        exported.forward_features(images), student.framework.encode(student.encoder, images, None), atol=1e-6
    )


def test_decay_is_on_weights_and_tokens_only() -> None:
    student = build_student(tiny_recipe(), seed=0)
    names = {parameter: name for name, parameter in student.named_parameters()}
    groups = parameter_groups(student, 0.05)
    decay = {group["weight_decay"]: {names[p] for p in group["params"]} for group in groups}
    trainable = {name for name, p in student.named_parameters() if p.requires_grad}
    assert decay[0.05] == {
        n for n in trainable if n.endswith("token") or (n.endswith("weight") and "norm" not in n)
    } - {
        "projector.1.weight",
        "predictor.1.weight",
    }
    assert decay[0.0] == trainable - decay[0.05]
    assert sum(len(group["params"]) for group in groups) == len(trainable)


def test_patches_are_row_major_with_pixels_as_row_column_channel() -> None:
    images = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    patches = patchify(images, 4)
    assert patches.shape == (2, 4, 48)
    for patch, row, column, channel in ((0, 0, 0, 0), (1, 2, 3, 1), (2, 1, 0, 2), (3, 3, 3, 2)):
        pixel = images[1, channel, 4 * (patch // 2) + row, 4 * (patch % 2) + column]
        assert patches[1, patch, (4 * row + column) * 3 + channel] == pixel
    assert torch.equal(unpatchify(patches, 4), images)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_reconstruction_keeps_what_was_visible_and_a_perfect_one_is_the_image(
    normalise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = build_student(tiny_recipe(normalise_target=normalise), seed=0)
    views = random_views()
    visible = visible_patches(views.noise, 4).view1
    rebuilt, truth = patchify(reconstruct(student, views), 4), patchify(views.view1, 4)
    for image in range(6):
        same = {patch for patch in range(16) if torch.equal(rebuilt[image, patch], truth[image, patch])}
        assert same == set(visible[image].tolist())
    mean, deviation = truth.mean(2, keepdim=True), (truth.var(2, keepdim=True) + 1e-6).sqrt()
    perfect = (truth - mean) / deviation if normalise else truth
    monkeypatch.setattr(student.decoder, "forward", lambda tokens, visible: perfect)
    assert torch.allclose(reconstruct(student, views), views.view1, atol=1e-5)
    assert losses_of(student, views).mim.item() < 1e-10


def test_only_masked_patches_count() -> None:
    student = build_student(tiny_recipe(context_weight=0.0, normalise_target=False), seed=0)
    views = random_views(batch=1)
    visible = visible_patches(views.noise, 4).view1[0].tolist()
    right = student.decoder.forward
    before = student(views).mim

    def disturbed(patch: int) -> Tensor:
        def forward(tokens: Tensor, visible: Tensor) -> Tensor:
            pixels = right(tokens, visible).clone()
            pixels[0, patch] += 1
            return pixels

        student.decoder.forward = forward  # type: ignore[method-assign]
        return student(views).mim

    for patch in range(16):
        assert torch.equal(disturbed(patch), before) == (patch in visible)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_width": 18}, "multiples of 4"),
        ({"decoder_heads": 3}, "decoder_heads = 3"),
        ({"mask_ratio": 0.3}, "two views"),
        ({"mask_ratio": 0.99}, "leaves 0 of 16"),
        (
            {"encoder": EncoderRecipe(model="vit_base_patch16_siglip_gap_224", width=24, depth=1, heads=3)},
            "class token",
        ),
        ({"encoder": EncoderRecipe(model="vit_base_patch16_reg4_gap_256", width=24, depth=1, heads=3)}, "class token"),
    ],
)
def test_a_recipe_that_cannot_be_built_is_refused(changes: dict[str, Any], message: str) -> None:
    recipe = tiny_recipe(**{k: v for k, v in changes.items() if k != "encoder"}).model_copy(update=changes)
    with pytest.raises(UserError, match=message):
        build_student(recipe, seed=0)


def test_one_direction_works_with_few_masked_patches() -> None:
    student = build_student(tiny_recipe(mask_ratio=0.3, both_directions=False), seed=0)
    assert losses_of(student, random_views()).total.isfinite()
