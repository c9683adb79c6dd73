"""SimMIM is the paper's, and LUT goes around it as it does around MAE."""

from typing import Any

import pytest
import torch
from tiny_student import random_views, tiny_recipe
from torch import Tensor

from lutbench.errors import UserError
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from pretrain.frameworks.mae import MAE
from pretrain.frameworks.vit import patchify, unpatchify
from pretrain.masking import visible_patches
from pretrain.reconstruction import reconstruct
from pretrain.student import Student, build_student
from pretrain.teacher import Teacher

SIMMIM = {"framework": "simmim", "mask_unit": 8}
"""SimMIM with units of two by two of the 16 patches: 1 of 4 is visible."""


def simmim_recipe(**changes: Any) -> PretrainRecipe:
    return tiny_recipe(**SIMMIM, **changes)


def plain_simmim(student: Student, image: Tensor, seen: set[int]) -> tuple[Tensor, Tensor]:
    """Return tokens (1 + N, D) and loss of one image, written down from the paper without any of the suite's code."""
    encoder, head, size = student.encoder, student.framework.decoder, 4
    weights = dict(encoder.named_parameters())
    rows = [weights["cls_token"][0, 0] + weights["pos_embed"][0, 0]]
    for number in range(16):
        i, j = divmod(number, 4)
        patch = image[:, i * size : (i + 1) * size, j * size : (j + 1) * size]
        embedded = (weights["patch_embed.proj.weight"] * patch).sum((1, 2, 3)) + weights["patch_embed.proj.bias"]
        token = embedded if number in seen else head.mask_token[0, 0]
        rows.append(token + weights["pos_embed"][0, 1 + number])
    tokens = encoder.norm(encoder.blocks(torch.stack(rows)[None]))[0]
    differences = []
    for number in set(range(16)) - seen:
        i, j = divmod(number, 4)
        predicted = (head.predict(tokens[1 + number])).reshape(size, size, 3)
        for y in range(size):
            for x in range(size):
                truth = image[:, i * size + y, j * size + x]
                differences += (predicted[y, x] - truth).abs().tolist()
    return tokens, torch.tensor(differences).mean()


def test_simmims_loss_is_the_papers() -> None:
    student = build_student(simmim_recipe(context_weight=0.0), seed=0)
    views = random_views(3)
    visible = visible_patches(views.noise, 1, unit=2).view1
    tokens = student.framework.encode(student.encoder, views.view1, visible)
    plain = [plain_simmim(student, image, set(seen.tolist())) for image, seen in zip(views.view1, visible, strict=True)]
    assert torch.allclose(tokens, torch.stack([each[0] for each in plain]), atol=1e-5)
    assert student(views).mim.item() == pytest.approx(torch.stack([each[1] for each in plain]).mean().item(), rel=1e-5)


def test_the_encoder_of_simmim_starts_as_maes() -> None:
    one, other = (build_student(recipe, seed=3).encoder.state_dict() for recipe in (simmim_recipe(), tiny_recipe()))
    assert one.keys() == other.keys(), "no mask token in it"
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_simmims_defaults_are_its_papers_and_maes_stay() -> None:
    recipe = PretrainRecipe(data=DataRecipe(), framework="simmim")
    assert (recipe.mask_ratio, recipe.mask_unit, recipe.normalise_target) == (0.6, 32, False)
    assert build_on_meta(recipe).visible_count == 49 - 30
    assert "decoder_width" not in recipe.affecting_results()
    other = PretrainRecipe(data=DataRecipe())
    assert (other.mask_ratio, other.normalise_target) == (0.75, True)
    assert other.affecting_results().keys().isdisjoint({"framework", "mask_unit"}), (
        "runs that exist keep their identity"
    )


def build_on_meta(recipe: PretrainRecipe) -> Student:
    with torch.device("meta"):
        return build_student(recipe, seed=0)


@pytest.mark.parametrize(("unit", "found"), [(6, "mask_unit = 6 .* 4 or 8"), (16 * 3, "mask_unit = 48")])
def test_mask_units_that_do_not_fit_are_refused(unit: int, found: str) -> None:
    with pytest.raises(UserError, match=found):
        build_student(tiny_recipe(framework="simmim", mask_unit=unit), seed=0)


@pytest.mark.parametrize("teacher_view", ["whole", "masked"])
def test_every_parameter_of_another_framework_learns(teacher_view: str) -> None:
    student = build_student(simmim_recipe(teacher_view=teacher_view), seed=0)
    teacher, views = Teacher(student), random_views()
    student(views, teacher(views)).total.backward()
    teacher.update(student, 0.9)
    assert all(p.grad is not None and p.grad.any() for p in student.parameters() if p.requires_grad)
    parts = {name.split(".")[0] for name, _ in student.named_parameters()}
    assert parts == {"encoder", "decoder", "projector", "predictor"}
    own = {"encoder", "projector"} | ({"decoder"} if teacher_view == "masked" else set())
    assert {name.split(".")[0] for name in teacher.state_dict()} == own


def test_a_masked_teacher_is_shown_its_average_of_the_mask_token() -> None:
    student = build_student(simmim_recipe(teacher_view="masked"), seed=0)
    teacher, views = Teacher(student), random_views()
    before, token = teacher(views).view2, student.decoder.mask_token
    assert isinstance(token, Tensor)
    with torch.no_grad():
        token += 1
    assert torch.equal(teacher(views).view2, before), "the student's own has changed"
    teacher.update(student, 0.75)
    assert torch.allclose(teacher.state_dict()["decoder.mask_token"], token - 0.75)
    assert not torch.equal(teacher(views).view2, before)


def test_a_run_whose_masked_teacher_was_shown_the_students_mask_token_is_another() -> None:
    assert simmim_recipe(teacher_view="masked").affecting_results()["teacher_view"] != "masked"
    assert simmim_recipe().affecting_results()["teacher_view"] == "whole"
    assert tiny_recipe(teacher_view="masked").affecting_results()["teacher_view"] == "masked"


def test_the_heads_read_unmasked_tokens_only() -> None:
    student = build_student(simmim_recipe(teacher_view="masked"), seed=0)
    teacher, views = Teacher(student), random_views()
    read, read_by_teacher = list[Tensor](), list[Tensor]()
    assert student.projector is not None
    student.projector.register_forward_hook(lambda _module, inputs, _output: read.append(inputs[0]))
    teacher.projector.register_forward_hook(lambda _module, inputs, _output: read_by_teacher.append(inputs[0]))
    student(views, teacher(views))
    assert torch.allclose(torch.cat(read), torch.cat(read_by_teacher), atol=1e-6), "they start as copies"
    visible = visible_patches(views.noise, 1, unit=2)
    for view, indices, pooled in zip((views.view1, views.view2), visible, read, strict=True):
        assert view is not None
        tokens = student.framework.encode(student.encoder, view, indices)
        assert tokens.shape[1] == 1 + 16
        for image in range(len(view)):
            assert torch.allclose(pooled[image], tokens[image, 1 + indices[image]].mean(0), atol=1e-6)


def test_its_reconstructions_keep_visible_patches() -> None:
    student = build_student(simmim_recipe(context_weight=0.0), seed=0)
    views = random_views()
    rebuilt, truth = patchify(reconstruct(student, views), 4), patchify(views.view1, 4)
    same = (rebuilt == truth).all(dim=2)
    visible = visible_patches(views.noise, 1, unit=2).view1
    assert torch.equal(same, torch.zeros_like(same).scatter(1, visible, True))


def test_mae_encodes_visible_patches_alone() -> None:
    student = build_student(tiny_recipe(), seed=0)
    views = random_views()
    visible = visible_patches(views.noise, 4).view1
    changed = patchify(views.view1, 4)
    hidden = torch.ones_like(changed[..., :1]).scatter(1, visible.unsqueeze(-1), 0.0)
    encoded = [
        student.framework.encode(student.encoder, images, visible)
        for images in (views.view1, unpatchify(changed + hidden, 4))
    ]
    assert isinstance(student.framework, MAE)
    assert encoded[0].shape == (6, 1 + 4, 24)
    assert torch.equal(*encoded)
