"""Per-token targets are the teacher's tokens at the same place of the image, whatever the crops and flips."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_student import random_views, tiny_recipe
from torch import Tensor
from torch.nn import functional

from lutbench.data.random_crop import Box
from lutbench.recipes.base import DataRecipe, EncoderRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.train.randomness import seeded
from pretrain.masking import visible_patches
from pretrain.student import build_student
from pretrain.teacher import Teacher
from pretrain.token_targets import interpolate, match, shares
from pretrain.views import PretrainTransform, upright

GRID = 4
ALL = torch.arange(GRID**2).unsqueeze(0)
"""Every patch of one image is visible."""


def numbers(*boxes: Box) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float32)


def box(upper: int = 0, left: int = 0, side: int = 16, flipped: bool = False, height: int = 0, width: int = 0) -> Box:
    """A square view in an image of 64 x 80."""
    return Box(upper, left, height or side, width or side, flipped, 64, 80)


def plain_match(own: Box, other: Box, patch: int) -> tuple[Fraction, Fraction] | None:
    """Return row and column, in patches from the first one's centre, at which the other view has a patch's centre; exactly."""
    row, column = divmod(patch, GRID)
    down, across = Fraction(2 * row + 1, 2 * GRID), Fraction(2 * column + 1, 2 * GRID)
    across = 1 - across if own.flipped else across
    y, x = own.upper + down * own.height, own.left + across * own.width
    if not (0 <= y <= own.image_height and 0 <= x <= own.image_width):
        return None
    down, across = (y - other.upper) / other.height, (x - other.left) / other.width
    if not (0 <= down <= 1 and 0 <= across <= 1):
        return None
    across = 1 - across if other.flipped else across
    return down * GRID - Fraction(1, 2), across * GRID - Fraction(1, 2)


def plain_target(tokens: Tensor, place: tuple[Fraction, Fraction]) -> Tensor:
    """Return tokens (N, D) interpolated at a row and a column, with weights written out."""
    row, column = (min(max(where, Fraction(0)), Fraction(GRID - 1)) for where in place)
    total = torch.zeros(tokens.shape[1], dtype=tokens.dtype)
    for i in range(GRID):
        for j in range(GRID):
            weight = max(Fraction(0), 1 - abs(row - i)) * max(Fraction(0), 1 - abs(column - j))
            total = total + float(weight) * tokens[GRID * i + j]
    return total


def test_identical_crops_match_every_token_with_itself() -> None:
    tokens = torch.randn(1, GRID**2, 5)
    for flipped in (False, True):
        same = numbers(box(3, 7, flipped=flipped))
        found = match(same, same, ALL, GRID)
        assert found.matched.all()
        torch.testing.assert_close(interpolate(tokens, found.places, GRID), tokens[0], atol=1e-5, rtol=0)


def test_a_flipped_crop_matches_the_mirrored_token() -> None:
    tokens = torch.randn(1, GRID**2, 5)
    found = match(numbers(box(3, 7)), numbers(box(3, 7, flipped=True)), ALL, GRID)
    assert found.matched.all()
    mirrored = tokens.unflatten(1, (GRID, GRID)).flip(2).flatten(1, 2)
    torch.testing.assert_close(interpolate(tokens, found.places, GRID), mirrored[0], atol=1e-5, rtol=0)


def test_a_shifted_crop_matches_the_shifted_token_and_leaves_out_what_it_does_not_show() -> None:
    tokens = torch.randn(1, GRID**2, 5)
    rows = tokens.unflatten(1, (GRID, GRID))[0]
    patch = match(numbers(box(4, 8)), numbers(box(4, 12)), ALL, GRID)
    assert patch.matched.view(GRID, GRID).tolist() == [[False, True, True, True]] * GRID
    found = interpolate(tokens, patch.places, GRID).view(GRID, GRID, 5)
    torch.testing.assert_close(found[:, 1:], rows[:, :-1], atol=1e-5, rtol=0)
    half = match(numbers(box(4, 8)), numbers(box(6, 8)), ALL, GRID)  # the first row's centres lie on the border
    assert half.matched.all()
    found = interpolate(tokens, half.places, GRID).view(GRID, GRID, 5)
    torch.testing.assert_close(found[1:], (rows[:-1] + rows[1:]) / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0], rows[0], atol=1e-5, rtol=0)
    assert not match(numbers(box(4, 8)), numbers(box(7, 8)), ALL, GRID).matched.view(GRID, GRID)[0].any()


def test_padding_is_not_matched_in_either_view() -> None:
    inside, padded = box(0, 0), box(-4, -4)
    there = match(numbers(padded), numbers(inside), ALL, GRID).matched.view(GRID, GRID)
    assert there.tolist() == [[False] * 4, *[[False, True, True, True]] * 3]
    same = match(numbers(padded), numbers(padded), ALL, GRID).matched.view(GRID, GRID)
    assert same.tolist() == there.tolist(), "both show the mirror image, which is another place"
    for other in (box(52, 68), box(48, 64)):
        below = match(numbers(box(52, 68)), numbers(other), ALL, GRID).matched.view(GRID, GRID)
        assert below.tolist() == [*[[True, True, True, False]] * 3, [False] * 4]


def drawn_boxes(count: int = 60) -> list[tuple[Box, Box]]:
    random = np.random.default_rng(0)

    def draw() -> Box:
        height, width = (int(side) for side in random.integers(10, 45, 2))
        upper, left = int(random.integers(-4, 64 - height + 4)), int(random.integers(-4, 80 - width + 4))
        return box(upper, left, flipped=bool(random.integers(2)), height=height, width=width)

    return [(draw(), draw()) for _ in range(count)]


def test_places_are_those_of_exact_arithmetic_for_any_two_boxes() -> None:
    pairs = drawn_boxes()
    own, other = (numbers(*side) for side in zip(*pairs, strict=True))
    found = match(own, other, ALL.expand(len(pairs), -1), GRID)
    tokens = torch.randn(len(pairs), GRID**2, 3, dtype=torch.float64)
    targets = interpolate(tokens, found.places, GRID).view(len(pairs), GRID**2, 3)
    seen = 0
    for number, pair in enumerate(pairs):
        for patch in range(GRID**2):
            place = plain_match(*pair, patch)
            assert found.matched[number, patch].item() == (place is not None), (pair, patch)
            if place is not None:
                seen += 1
                expected = plain_target(tokens[number], place).float()
                torch.testing.assert_close(targets[number, patch], expected, atol=1e-4, rtol=0)
    assert 100 < seen < 900, "some are matched and some are not"


def views_of(crop: str, key: int, side: int = 64) -> tuple[dict[str, Tensor], PretrainRecipe]:
    """Two views of an image whose red is the column and whose green is the row, in steps of 2."""
    rows, columns = np.meshgrid(np.arange(0, 96), np.arange(0, 120), indexing="ij")
    pixels = np.stack([2 * columns, 2 * rows, 0 * rows], -1).astype(np.uint8)
    encoder = EncoderRecipe(model="vit_tiny_patch16_224", image_size=side, patch_size=8, width=24, depth=1, heads=2)
    recipe = PretrainRecipe(data=DataRecipe(), encoder=encoder, crop=crop, photometric=False, context_target="tokens")  # type: ignore[arg-type]
    with seeded(key):
        return PretrainTransform(recipe)(Image.fromarray(pixels)), recipe


@pytest.mark.parametrize("crop", ["simple", "random"])
def test_the_boxes_of_real_crops_lead_to_the_same_colours_in_both_views(crop: str) -> None:
    """Colours tell the place: what a patch's centre shows in view 1, view 2 shows where the boxes say, to half a pixel or so."""
    flips, matched = set(), 0
    for key in range(25):
        sample, _ = views_of(crop, key)
        boxes = sample["boxes"]
        assert boxes.shape == (2, len(Box._fields))
        flips.add(tuple(boxes[:, 4].tolist()))
        grid, visible = 8, torch.arange(64).unsqueeze(0)
        cut = [sample[name].unsqueeze(0) for name in ("view1", "view2")]
        views = [
            upright(view, flip[None], torch.device("cpu")).float()
            for view, flip in zip(cut, sample["flips"], strict=True)
        ]
        for first, second in ((0, 1), (1, 0)):
            there = match(boxes[first : first + 1], boxes[second : second + 1], visible, grid)
            here = match(boxes[first : first + 1], boxes[first : first + 1], visible, grid)
            colours = [
                functional.grid_sample(view, places.unsqueeze(2), padding_mode="border", align_corners=False)[
                    0, :2, :, 0
                ]
                for view, places in ((views[first], here.places), (views[second], there.places))
            ]
            wrong = (colours[0] - colours[1]).abs()[:, there.matched[0]]
            assert wrong.numel() == 0 or wrong.max() < 3, (crop, key)
            matched += int(there.matched.sum())
    assert len(flips) == 4, "both views are flipped, and one of them"
    assert matched > 25 * 2 * 64 / 5


def test_no_other_target_hands_boxes_on_and_draws_are_the_same() -> None:
    with_boxes, recipe = views_of("random", 3)
    others = PretrainTransform(recipe.model_copy(update={"context_target": "pooled"}))
    rows, columns = np.meshgrid(np.arange(0, 96), np.arange(0, 120), indexing="ij")
    with seeded(3):
        without = others(Image.fromarray(np.stack([2 * columns, 2 * rows, 0 * rows], -1).astype(np.uint8)))
    assert with_boxes.keys() - without.keys() == {"boxes"}
    assert all(torch.equal(with_boxes[name], value) for name, value in without.items())


@pytest.mark.parametrize("changes", [{}, {"both_directions": False}, {"framework": "simmim", "mask_unit": 8}], ids=str)
def test_the_loss_is_the_one_that_is_written_out(changes: dict[str, Any]) -> None:
    student = build_student(tiny_recipe(context_target="tokens", **changes), seed=0)
    teacher, views = Teacher(student), random_views(5)
    assert views.boxes is not None
    assert views.view2 is not None
    targets = teacher(views)
    losses = student(views, targets)
    visible = visible_patches(views.noise, student.visible_count, student.framework.mask_unit)
    boxes = [[Box(*map(int, one)) for one in pair] for pair in views.boxes.tolist()]
    assert student.projector is not None
    assert student.predictor is not None
    distances = []
    for own, images, others, seen in (
        (0, views.view1, views.view2, visible.view1),
        (1, views.view2, views.view1, visible.view2),
    ):
        tokens = student.framework.encode(student.encoder, images, seen)
        rows = student.framework.unmasked(tokens, seen)[:, 1:].flatten(0, 1)
        outputs = student.predictor(student.projector(rows)).view(5, -1, 24)  # its batch norm sees every token
        whole = teacher.framework.encode(teacher.encoder, others, None)[:, 1:]
        means = []
        for image in range(5):
            found = []
            for row, patch in enumerate(seen[image].tolist()):
                place = plain_match(boxes[image][own], boxes[image][1 - own], patch)
                if place is not None:
                    z = teacher.projector(plain_target(whole[image], place)[None])[0]
                    q = outputs[image, row]
                    found.append(2 - 2 * (q @ z) / (q.norm() * z.norm()))
            means.append(torch.stack(found).mean() if found else torch.zeros(()))
        assert any(mean == 0 for mean in means) or own, "an image without a match is among them"
        distances.append(torch.stack(means).mean())
    expected = distances[0] if changes.get("both_directions") is False else sum(distances) / 2
    assert losses.context is not None
    assert losses.context.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (targets.view1 is None) == (changes.get("both_directions") is False)


def test_a_batch_without_any_match_has_a_loss_of_zero_and_a_gradient() -> None:
    student = build_student(tiny_recipe(context_target="tokens"), seed=0)
    apart = numbers(box(0, 0), box(40, 40)).expand(6, 2, -1)
    views = replace(random_views(), boxes=apart)
    losses = student(views, Teacher(student)(views))
    losses.total.backward()
    assert losses.context.item() == 0
    assert student.predictor is not None
    for p in student.predictor.parameters():
        assert p.grad is not None
        assert not p.grad.any()
    assert student.encoder.cls_token is not None
    assert student.encoder.cls_token.grad is not None
    assert student.encoder.cls_token.grad.isfinite().all()


def test_the_loss_is_the_mean_of_its_micro_batches_however_matches_are_spread() -> None:
    recipe = tiny_recipe(context_target="tokens", head_norm="layer")
    student = build_student(recipe, seed=0)
    teacher, views = Teacher(student), random_views()

    def context(rows: slice) -> Tensor:
        assert views.view2 is not None
        assert views.boxes is not None
        part = replace(
            views,
            view1=views.view1[rows],
            view2=views.view2[rows],
            noise=views.noise[rows],
            boxes=views.boxes[rows],
        )
        found: Tensor = student(part, teacher(part)).context
        return found

    whole, parts = context(slice(None)), [context(slice(0, 3)), context(slice(3, 6))]
    assert torch.allclose(whole, sum(parts) / 2, rtol=1e-6)  # type: ignore[arg-type]
    assert not torch.allclose(parts[0], parts[1], rtol=1e-2)


def test_shares_are_a_mean_over_tokens_and_images() -> None:
    matched = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])
    assert shares(matched).tolist() == pytest.approx([1 / 6] * 2 + [0] * 6 + [1 / 12] * 4)


def test_the_nearest_tokens_count_between_the_border_and_their_centres() -> None:
    tokens = torch.arange(16.0).view(1, 16, 1)
    places = torch.tensor([[[-1.0, -1.0], [1.0, 1.0], [-1.0, 0.0]]])
    assert interpolate(tokens, places, GRID).flatten().tolist() == pytest.approx([0, 15, 6])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher_view": "masked"}, "teacher_view = 'masked' hides"),
        ({"context_loss": "infonce"}, "'infonce' compares whole images"),
    ],
)
def test_what_makes_no_sense_with_tokens_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tiny_recipe(context_target="tokens", **changes)
    tiny_recipe(context_target="tokens", context_weight=0.0, **changes)  # then there is nothing to be refused
