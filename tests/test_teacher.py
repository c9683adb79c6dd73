"""The teacher: what it holds, what it sees, how it moves."""

import math
from typing import Any

import pytest
import torch
from tiny_student import CONTROLS, random_views, tiny_recipe
from torch import Tensor, nn

from lutbench.train.momentum import momentum_at
from pretrain.frameworks.mae import MAE
from pretrain.masking import visible_patches
from pretrain.student import Student, build_student
from pretrain.teacher import Teacher
from pretrain.views import Views


def moved(student: Student, step: int) -> None:
    """Change every parameter and float buffer, and count a batch."""
    draw = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in student.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype))
            else:
                tensor.add_(1)


def test_it_holds_encoder_and_projector_alone_without_gradients() -> None:
    teacher = Teacher(build_student(tiny_recipe(), seed=0))
    assert {name.split(".")[0] for name in teacher.state_dict()} == {"encoder", "projector"}
    assert not any(p.requires_grad for p in teacher.parameters())
    targets = teacher(random_views())
    assert not targets.view2.requires_grad


def test_it_is_never_in_training_mode() -> None:
    teacher = Teacher(build_student(tiny_recipe(), seed=0))
    parent = nn.ModuleDict({"teacher": teacher})
    parent.train()
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher(random_views())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_an_update_is_the_formula_for_parameters_and_averages_and_a_copy_for_counters() -> None:
    student = build_student(tiny_recipe(), seed=0)
    teacher = Teacher(student)
    for step, momentum in enumerate((0.996, 0.3, 1.0, 0.0)):
        moved(student, step)
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        teacher.update(student, momentum)
        for name, value in teacher.state_dict().items():
            theirs = student.state_dict()[name]
            expected = momentum * before[name] + (1 - momentum) * theirs if value.is_floating_point() else theirs
            assert torch.allclose(value, expected, rtol=1e-5, atol=1e-6), name
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.state_dict().items())


def test_position_embeddings_never_drift() -> None:
    student = build_student(tiny_recipe(), seed=0)
    teacher = Teacher(student)
    for _ in range(100):
        teacher.update(student, 0.7)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.state_dict().items())


def test_it_goes_on_after_loading_a_state_and_after_moving() -> None:
    student = build_student(tiny_recipe(), seed=0)
    kept, fresh = Teacher(student), Teacher(build_student(tiny_recipe(), seed=1))
    moved(student, 0)
    kept.update(student, 0.9)
    fresh.update(student, 0.1)
    fresh.load_state_dict(kept.state_dict())
    for module in (student, kept, fresh):
        module.double()  # makes new tensors of all buffers, as moving to another device does
    moved(student, 1)
    before = {name: value.clone() for name, value in kept.state_dict().items()}
    kept.update(student, 0.5)
    fresh.update(student, 0.5)
    for name, value in kept.state_dict().items():
        theirs = student.state_dict()[name]
        assert torch.equal(value, fresh.state_dict()[name])
        assert torch.allclose(value, (before[name] + theirs) / 2 if value.is_floating_point() else theirs), name


@pytest.mark.parametrize("changes", [c for c in CONTROLS.values() if c.get("context_weight") != 0], ids=str)
def test_it_encodes_once_what_the_loss_needs(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    student = build_student(tiny_recipe(**changes), seed=0)
    teacher, views = Teacher(student), random_views()
    assert views.view2 is not None
    visible = visible_patches(views.noise, student.visible_count)
    calls: list[tuple[Any, Tensor, Tensor | None]] = []
    right = MAE.encode

    def watched(self: MAE, encoder: Any, images: Tensor, visible: Tensor | None) -> Tensor:
        calls.append((encoder, images, visible))
        return right(self, encoder, images, visible)

    monkeypatch.setattr(MAE, "encode", watched)
    targets = teacher(views)
    ((encoder, images, shown),) = calls
    assert encoder is teacher.encoder
    both = changes.get("both_directions", True)
    assert torch.equal(images, torch.cat([views.view1, views.view2]) if both else views.view2)
    assert (targets.view1 is not None) == both
    if changes.get("teacher_view") == "masked":
        assert shown is not None
        assert torch.equal(shown, torch.cat(visible) if both else visible.view2)
    else:
        assert shown is None


def test_both_views_in_one_batch_equal_two_passes() -> None:
    teacher, views = Teacher(build_student(tiny_recipe(), seed=0)), random_views()
    assert views.view2 is not None
    targets, swapped = teacher(views), teacher(Views(views.view2, views.view1, views.noise))
    assert targets.view1 is not None
    for view, target in ((views.view1, targets.view1), (views.view2, targets.view2)):
        tokens = teacher.encoder.forward_features(view)
        assert torch.allclose(teacher.projector(tokens[:, 1:].mean(1)), target, atol=1e-6)
    assert torch.allclose(targets.view1, swapped.view2, atol=1e-6)


def test_momentum_rises_to_one_by_a_half_cosine() -> None:
    assert momentum_at(0.996, 0, 100) == pytest.approx(0.996)
    assert momentum_at(0.996, 50, 100) == pytest.approx(0.998)
    assert momentum_at(0.996, 100, 100) == 1.0
    assert [momentum_at(0.9, step, 3) for step in range(3)] == pytest.approx([0.9, 0.925, 0.975])
    assert momentum_at(0.9, 10, 40) == pytest.approx(1 - 0.1 * (1 + math.cos(math.pi / 4)) / 2)


def test_a_fixed_momentum_stays_where_it_is() -> None:
    assert [momentum_at(0.9, step, 3, "fixed") for step in range(3)] == [0.9] * 3
    assert momentum_at(0.9, 1, 3, "cosine") == momentum_at(0.9, 1, 3)


def test_a_momentum_of_one_is_the_first_teacher_for_ever_and_of_zero_the_student_bit_for_bit() -> None:
    student = build_student(tiny_recipe(), seed=0)
    never, at_once = Teacher(student), Teacher(student)
    first = {name: value.clone() for name, value in never.state_dict().items()}
    moved(student, 0)
    never.update(student, momentum_at(1.0, 2, 10, "fixed"))
    at_once.update(student, momentum_at(0.0, 2, 10, "fixed"))
    for name, value in at_once.state_dict().items():
        assert torch.equal(value, student.state_dict()[name]), name
        if value.is_floating_point():
            assert torch.equal(never.state_dict()[name], first[name]), name


def test_where_it_changes_nothing_the_schedule_is_no_part_of_the_identity() -> None:
    def settings(**changes: Any) -> dict[str, Any]:
        return tiny_recipe(**changes).affecting_results()

    assert settings(momentum_schedule="fixed")["momentum_schedule"] == "fixed"
    assert settings(momentum=1.0, momentum_schedule="fixed") == settings(momentum=1.0)
    assert settings(context_weight=0.0, momentum_schedule="fixed") == settings(context_weight=0.0)


def test_it_follows_the_student_that_it_is_given() -> None:
    first, second = (build_student(tiny_recipe(), seed=seed) for seed in range(2))
    teacher = Teacher(first)
    teacher.update(first, 0.5)
    teacher.update(second, 0.0)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in teacher.state_dict().items())
