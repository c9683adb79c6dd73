"""Dense probes read what patch tokens tell of every pixel: the same bits whatever the machine, refused where nothing can be read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_runs import SCENES, killed_at_a_checkpoint, performed, performed_by, toy_run, write_scenes

pytest.importorskip("mmseg")

from PIL import Image
from torch.nn import functional

from downstream.segmentation import dense_data
from downstream.segmentation.dense import corners, padded, slide, windows_of
from downstream.segmentation.dense_knn import class_counts, patch_votes
from downstream.segmentation.dense_linear import dense_head, loss_of, polynomial_rate
from downstream.segmentation.tokens import grid_of, tokens_of
from lutbench.errors import UserError
from lutbench.models.encoders import create_encoder
from lutbench.plan.compute import count
from lutbench.recipes.dense import DenseKnnRecipe, DenseLinearRecipe
from lutbench.run import Run
from lutbench.train.batches import Schedule
from lutbench.train.loader import bytes_of

LINEAR = {"threads": 1, "kind": "segmentation-linear", "iterations": 12, "warmup": 2, "batch": 4, "lr": 0.01}
KNN = {"threads": 1, "kind": "segmentation-knn", "neighbours": 5, "bank": 400}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_scenes(tmp_path)
    return tmp_path


def dense_run(folder: Path, home: str = "here", model: str = "", **settings: Any) -> Run:
    """A run of a dense probe on toy scenes, of the encoder of their suite or of a ``model`` of timm."""
    kept = SCENES[: SCENES.index("iterations")].replace('kind = "segmentation"\n', "")
    if model:
        kept = kept.replace("vit_tiny_patch16_224", model)
        for size in ("patch_size = 4\n", "width = 16\n", "depth = 4\n", "heads = 2\n"):
            kept = kept.replace(size, "")
    before, task = kept.split("[downstream.task]")
    own = [line for line in task.splitlines() if line.split(" = ")[0] not in settings]
    return toy_run(folder, home, suite_text=f"{before}[downstream.task]" + "\n".join(own), **settings)


def linear(**settings: Any) -> DenseLinearRecipe:
    return DenseLinearRecipe.model_validate(recipe(**settings))


def recipe(model: str = "vit_tiny_patch16_224", architecture: Any = None, **settings: Any) -> dict[str, Any]:
    data = {"source": "scenes", "path": "scenes", "classes": ["ground", "amber", "blue"], "reduce_zero_label": True}
    return {
        "data": data,
        "encoder": {"architecture": {"model": model, **(architecture or {})}, "kind": "scratch"},
        **settings,
    }


# Tokens


def test_tokens_are_those_of_the_last_block_behind_the_last_norm() -> None:
    encoder: Any = create_encoder(linear().encoder.architecture, 64).eval()
    pixels = torch.randn(2, 3, 64, 64)
    expected = encoder.forward_features(pixels)[:, 1:]
    found = tokens_of(encoder, pixels, grid_of(linear(crop=64, stride=64)).blocks)
    assert torch.equal(found.flatten(2).transpose(1, 2), expected)


def test_tokens_of_several_blocks_are_one_behind_the_other() -> None:
    encoder: Any = create_encoder(linear().encoder.architecture, 64).eval()
    pixels = torch.randn(2, 3, 64, 64)
    settings = {"crop": 64, "stride": 64, "blocks": [4, 12]}
    both = tokens_of(encoder, pixels, grid_of(linear(**settings)).blocks)
    assert grid_of(linear(**settings))[:2] == (384, 4) == both.shape[1:3]
    assert torch.equal(both[:, 192:], tokens_of(encoder, pixels, (12,)))
    assert torch.equal(both[:, :192], tokens_of(encoder, pixels, (4,)))


def test_a_norm_behind_the_mean_is_applied_to_the_tokens() -> None:
    encoder: Any = create_encoder(linear().encoder.architecture, 64, pooled_norm=True).eval()
    torch.nn.init.uniform_(encoder.fc_norm.weight)
    pixels = torch.randn(1, 3, 64, 64)
    expected = encoder.fc_norm(encoder.forward_features(pixels)[:, 1:])
    found = tokens_of(encoder, pixels, (12,)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "model", ["vit_tiny_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224", "deit3_small_patch16_224"]
)
def test_every_kind_of_vision_transformer_has_a_grid_of_tokens(model: str) -> None:
    side = 56 if "patch14" in model else 64
    grid = grid_of(linear(model=model, crop=side, stride=side))
    assert (grid.side, grid.blocks) == (4, (12,))


@pytest.mark.parametrize("model", ["resnet18", "swin_tiny_patch4_window7_224", "convnext_atto"])
@pytest.mark.parametrize("settings", [LINEAR, KNN])
def test_an_encoder_without_a_grid_of_tokens_is_refused_by_its_row(folder: Path, model: str, settings: Any) -> None:
    run = dense_run(folder, model=model, **settings, crop=64, stride=64)
    with pytest.raises(
        UserError, match=r"downstream\.task, row scratch: model = .* a dense probe needs patch tokens on one grid"
    ):
        run.planned.kind.module.check(run)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"blocks": [2, 13]}, r"blocks = \[2, 13\]: there is no block 13; this encoder has 12"),
        ({"crop": 500}, "500 is not a multiple of patch_size"),
    ],
)
def test_a_block_or_crop_that_cannot_be_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        grid_of(linear(**settings))


# Windows


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 40), (23, 37), (48, 17), (24, 32)])
def test_windows_cover_every_pixel_as_mmsegmentations_do(height: int, width: int) -> None:
    """Where its slide_inference would put them: the last of a row at its end."""
    crop, stride = 16, 8
    expected = []
    for row in range(max(height - crop + stride - 1, 0) // stride + 1):
        for column in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + crop, height), min(column * stride + crop, width)
            expected.append((bottom - crop, right - crop))
    assert list(corners(height, width, crop, stride)) == expected
    covered = torch.zeros(height, width)
    for top, left in expected:
        covered[top : top + crop, left : left + crop] += 1
    assert covered.min() == 1 or covered.min() > 1


def test_sliding_is_mmsegmentations_slide_inference() -> None:
    """Of the same scores, which depend on the window that a pixel is seen in, the same classes."""
    from mmseg.models import EncoderDecoder

    torch.manual_seed(0)
    settings = linear(crop=16, stride=8, architecture={"patch_size": 4})
    image = torch.randn(3, 24, 38)

    def scores(windows: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(windows - windows.mean((2, 3), keepdim=True), 4)

    class Reference(EncoderDecoder):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            from mmengine.config import ConfigDict

            self.test_cfg = ConfigDict(stride=(8, 8), crop_size=(16, 16), mode="slide")
            self.out_channels = 3

        def encode_decode(self, inputs: torch.Tensor, batch_img_metas: Any) -> torch.Tensor:
            return functional.interpolate(scores(inputs), (16, 16), mode="bilinear", align_corners=False)

    reference = Reference().slide_inference(image[None], [{"img_shape": (24, 38), "ori_shape": (48, 76)}])
    expected = functional.interpolate(reference, (48, 76), mode="bilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(slide(image, scores, settings, (48, 76)), expected)
    assert len(expected.unique()) == 3


def test_an_image_smaller_than_the_window_is_padded_and_what_is_beyond_it_has_no_class() -> None:
    settings = linear(crop=16, stride=16, architecture={"patch_size": 4})
    image = torch.ones(3, 8, 12)
    assert windows_of(padded(image, 16), settings).shape == (1, 3, 16, 16)

    def scores(windows: torch.Tensor) -> torch.Tensor:
        """Class 1 on what is padded, else class 0."""
        inside = functional.avg_pool2d(windows[:, :1], 4)
        return torch.cat([inside, 2 * (1 - inside)], 1)

    predicted = slide(image, scores, settings, (16, 24))
    assert predicted.shape == (16, 24)
    assert (predicted[:12, :20] == 0).all()


def test_scores_that_are_not_finite_are_told_by_no_class() -> None:
    settings = linear(crop=16, stride=16, architecture={"patch_size": 4})
    found = slide(torch.ones(3, 16, 16), lambda windows: torch.full((1, 2, 4, 4), torch.nan), settings, (16, 16))
    assert (found == -1).all()


# The linear probe


def test_pixels_are_counted_as_masks_pair_them_and_those_without_a_prediction_apart() -> None:
    from downstream.segmentation.dense_data import counted
    from downstream.segmentation.scores import pairs_of, rows_of

    draw = torch.Generator().manual_seed(0)
    label, predicted = (torch.randint(0, 3, (5, 7), generator=draw) for _ in range(2))
    label[0, :4] = 255
    pixels = counted(label.to(torch.uint8), predicted, 3)
    assert rows_of(pixels[:-2].numpy(), 3).tolist() == pairs_of(label, predicted, 3, 255).tolist()
    assert pixels[-2:].tolist() == [4, 0]
    predicted[0, 0] = -1
    assert counted(label.to(torch.uint8), predicted, 3)[-2:].tolist() == [3, 1]


@pytest.mark.parametrize("together", [1, 64])
def test_the_first_image_whose_scores_are_not_finite_is_named(
    folder: Path, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from downstream.segmentation import dense_data

    monkeypatch.setattr(dense_data, "TOGETHER", together)
    passed: list[int] = []

    def scores(windows: torch.Tensor) -> torch.Tensor:
        passed.append(1)
        return torch.full((len(windows), 3, 4, 4), torch.nan if len(passed) in (2, 4) else 0.0)

    with pytest.raises(UserError, match=r"validation/1\.jpg: the probe's scores are not finite"):
        dense_data.evaluated(dense_run(folder, **LINEAR), scores)
    assert len(passed) == (2 if together == 1 else 5)


def test_the_linear_defaults_are_those_of_dinov2s_heads() -> None:
    found = linear()
    assert (found.iterations, found.warmup, found.batch, found.lr, found.weight_decay) == (40_000, 1500, 16, 1e-3, 1e-4)
    assert (found.crop, found.stride, found.scale, found.ratio) == (512, 341, [2048, 512], [0.5, 2.0])
    assert polynomial_rate(0, found) == pytest.approx(1e-9)
    assert polynomial_rate(750, found) == pytest.approx(5e-4)
    assert polynomial_rate(1500, found) == 1e-3
    assert polynomial_rate(20_750, found) == pytest.approx(5e-4)


def test_the_loss_counts_no_ignored_pixel_and_is_nothing_where_all_are() -> None:
    scores = torch.randn(2, 3, 4, 4)
    masks = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    masks[:, :4] = 255
    enlarged = functional.interpolate(scores, (8, 8), mode="bilinear", align_corners=False)
    by_hand = -enlarged.log_softmax(1).gather(1, masks[:, None].long().clamp(max=2))[:, 0, 4:].sum() / 128
    torch.testing.assert_close(loss_of(scores, masks), by_hand)
    assert loss_of(scores, torch.full_like(masks, 255)) == 0


def test_a_linear_probe_learns_and_leaves_layer_record_and_picture(folder: Path) -> None:
    run = dense_run(folder, **{**LINEAR, "iterations": 150})
    found = performed(run)
    assert found["n"] == 5
    assert found["measurements"]["mIoU"] > 40, "three colours are told apart by linear functions of them"
    assert found["measurements"].keys() == {"mIoU", "mAcc", "aAcc", "IoU ground", "IoU amber", "IoU blue"}
    with Image.open(run.folder / "predictions.png") as sheet:
        assert sheet.width > sheet.height > 100
    assert (run.folder / "linear.safetensors").is_file()


def test_the_encoder_stays_as_it_is(folder: Path) -> None:
    from downstream.segmentation import dense_linear

    run, kept = dense_run(folder, **LINEAR), {}

    def watched(*of: Any) -> Any:
        kept["encoder"] = original(*of)
        kept["before"] = {name: tensor.clone() for name, tensor in kept["encoder"].state_dict().items()}
        return kept["encoder"]

    original, dense_linear.encoder_of = dense_linear.encoder_of, watched
    try:
        performed(run)
    finally:
        dense_linear.encoder_of = original
    after = kept["encoder"].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in kept["before"].items())


@pytest.mark.parametrize("settings", [LINEAR, KNN])
def test_the_number_of_loader_workers_changes_nothing(folder: Path, settings: dict[str, Any]) -> None:
    alone = performed(dense_run(folder, "alone", **settings))
    assert performed(dense_run(folder, "helped", workers=3, **settings)) == alone


@pytest.mark.parametrize("settings", [LINEAR, KNN])
def test_two_processes_make_the_bits_of_one(folder: Path, settings: dict[str, Any]) -> None:
    one = performed_by(dense_run(folder, "one", **settings), 1)
    assert performed_by(dense_run(folder, "two", **settings), 2) == one


def test_no_more_bytes_of_training_crops_are_under_way_than_allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, schedule = dense_run(folder, **LINEAR), Schedule.of_iterations(10, 12, 4, 0)
    most = 4 * 16 * 16 * dense_data.PIXEL_BYTES
    batches = list(dense_data.training_crops(run.dataset("train"), run.recipe, schedule, 0))
    assert max(bytes_of(batch["image"]) + bytes_of(batch["mask"]) for batch in batches) == most
    made: dict[str, Any] = {}
    monkeypatch.setattr("lutbench.train.loader.IN_FLIGHT", 2 * most)
    monkeypatch.setattr(dense_data, "Loader", lambda dataset, **options: made.update(options) or [])
    dense_data.training_crops(run.dataset("train"), run.recipe.model_copy(update={"workers": 3}), schedule, 0)
    assert (made["num_workers"], made["prefetch_factor"]) == (2, 1)


def test_a_killed_run_started_again_ends_with_the_same_bits(folder: Path) -> None:
    settings = {**LINEAR, "iterations": 30, "save_every": 1}
    whole = performed_by(dense_run(folder, "whole", **settings), 1)
    run = dense_run(folder, "killed", **settings)
    killed_at_a_checkpoint(run, step=3)
    killed_at_a_checkpoint(run, step=12)
    assert run.status().state == "resumable"
    assert performed_by(run, 1) == whole


def test_a_run_in_which_nothing_can_move_is_an_error(folder: Path) -> None:
    with pytest.raises(UserError, match="No weight changed"):
        performed(dense_run(folder, **{**LINEAR, "lr": 1e-45, "weight_decay": 0.0, "iterations": 2, "warmup": 0}))


# The nearest patches


def test_a_patch_has_the_shares_of_its_pixels_classes() -> None:
    masks = torch.tensor([[0, 0, 1, 1], [0, 2, 1, 255], [255, 255, 2, 2], [255, 255, 2, 2]], dtype=torch.uint8)
    assert class_counts(masks[None], 2, 3).tolist() == [[3, 0, 1], [0, 3, 0], [0, 0, 0], [0, 0, 4]]
    two = class_counts(torch.stack([masks, masks.flip(1)]), 2, 3)
    assert two[4:].tolist() == [[0, 3, 0], [3, 0, 1], [0, 0, 4], [0, 0, 0]]


def test_the_nearest_patches_vote_by_their_similarity() -> None:
    bank = functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), dim=1)
    shares = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    votes = patch_votes(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), bank, shares, 2, 0.5)
    weights = np.exp(np.array([1, 0.5**0.5]) / 0.5)
    first = (weights[0] + 0.5 * weights[1]) / weights.sum()
    np.testing.assert_allclose(votes, [[first, 1 - first], [1 - first, first]], rtol=1e-5)


def test_nearest_patches_tell_colours_apart_and_say_how_many_vote(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = performed(dense_run(folder, **KNN))
    assert found["measurements"]["mIoU"] > 40
    assert found["extra"] == {"bank": 400, "precision": "fp32"}
    assert "400 patches of 10 training images vote" in " ".join(capsys.readouterr().out.split())


def test_the_bank_is_bounded_and_drawn_by_the_seed(folder: Path) -> None:
    few = performed(dense_run(folder, "few", **{**KNN, "bank": 20}))
    assert few["extra"] == {"bank": 20, "precision": "fp32"}
    again = performed(dense_run(folder, "again", **{**KNN, "bank": 20}))
    assert again == few
    every = performed(dense_run(folder, "every", **{**KNN, "bank": 100_000}))
    assert every["extra"]["bank"] == 10 * 6 * 16, "six windows of sixteen patches in every image"


def test_a_bank_of_fewer_patches_than_images_is_refused(folder: Path) -> None:
    run = dense_run(folder, **{**KNN, "bank": 9})
    with pytest.raises(
        UserError, match=r"bank = 9 patches are less than one for each of the 10 training images of .*: set bank to 10"
    ):
        run.planned.kind.module.check(run)


def test_more_neighbours_than_the_bank_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="neighbours = 30 must not be more than bank = 20"):
        DenseKnnRecipe.model_validate(recipe(bank=20))


# What they cost


@pytest.mark.parametrize("settings", [LINEAR, KNN])
def test_a_plan_counts_crops_windows_and_the_layer(folder: Path, settings: dict[str, Any]) -> None:
    run = dense_run(folder, **settings, scale=[64, 24])
    cost = run.planned.kind.module.cost(run, 3)
    encoder: Any = create_encoder(run.recipe.encoder.architecture, 16)
    flop = count(encoder.to("meta"), 16).flop
    if settings is LINEAR:
        layer = 2 * 16 * 3 * 16
        assert cost.train == flop + 3 * layer
        assert cost.evaluate == 6 * (flop + layer), "windows of 16 over 24 x 32 at 8"
        assert cost.exported == sum(
            tensor.numel() for name, tensor in dense_head(16, 3, 0).state_dict().items() if "num_" not in name
        )
        assert run.recipe.samples({"train": 10, "val": 5}) == (48, 5)
    else:
        assert cost.train == 6 * flop
        assert cost.evaluate == 6 * (flop + 2 * 16 * 400 * 16)
        assert run.recipe.samples({"train": 10, "val": 5}) == (10, 5)
