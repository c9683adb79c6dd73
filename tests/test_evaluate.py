"""Every image of a set is looked at once, whatever the batches and processes, and its outcome is kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_runs import in_processes, toy_run, write_images

from lutbench.data.tensors import normalised
from lutbench.errors import UserError
from lutbench.evaluate.inference import batch_size, encode_images, evaluate, outcomes_of, over_images, rank_of_label
from lutbench.evaluate.outcomes import names_fingerprint
from lutbench.evaluate.transform import eval_transform
from lutbench.models.encoders import create_encoder
from lutbench.models.preprocessing import IMAGENETS
from lutbench.recipes.downstream import ClassificationRecipe
from lutbench.run import Run
from lutbench.train.processes import accelerator


def recipe_of(run: Run) -> ClassificationRecipe:
    assert isinstance(run.planned.recipe, ClassificationRecipe)
    return run.planned.recipe


def outcomes(run: Run) -> dict[str, Any]:
    torch.manual_seed(0)
    recipe = recipe_of(run)
    classifier = create_encoder(recipe.encoder.architecture, classes=3, pooled_norm=True)
    found = evaluate(classifier, run.dataset("val"), recipe, IMAGENETS, title="")
    return {name: np.asarray(getattr(found, name)).tolist() for name in ("label", "prediction", "rank", "images")}


def test_the_place_of_a_label_is_counted_from_the_highest_score() -> None:
    scores = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 7
    for (prediction, place), row, label in zip(
        rank_of_label(scores, labels)[:, :2].tolist(), scores, labels, strict=True
    ):
        assert prediction == row.argmax()
        assert place == sum(other > row[label] for other in row)


def test_of_equal_scores_the_lower_class_comes_first() -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert rank_of_label(scores, torch.tensor([1]))[:, :2].tolist() == [[1, 0]]
    assert rank_of_label(scores, torch.tensor([2]))[:, :2].tolist() == [[1, 1]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_stop_the_evaluation_and_name_the_image(folder: Path, bad: float) -> None:
    images = toy_run(folder, kind="knn").dataset("val")
    scores = torch.zeros(21, 3)
    scores[4, 1] = bad
    places = rank_of_label(scores, torch.zeros(21, dtype=torch.long))
    with pytest.raises(UserError, match=f"not finite for 1 of 21 images, such as {images.image_name(4)}"):
        outcomes_of(places, images, np.arange(21))


def test_outcomes_are_those_of_every_image_in_the_order_of_the_set(folder: Path) -> None:
    run = toy_run(folder, kind="knn")
    images, recipe = run.dataset("val"), recipe_of(run)
    torch.manual_seed(0)
    classifier = create_encoder(recipe.encoder.architecture, classes=3, pooled_norm=True).eval()
    found = outcomes(run)
    transform = eval_transform(recipe.side, recipe.eval_crop)
    for index in range(len(images)):
        scores = classifier(normalised(transform(images.image(index))[None], torch.device("cpu")))[0]
        assert found["prediction"][index] == scores.argmax()
        assert found["label"][index] == index // 7
    assert found["images"] == names_fingerprint(images.image_name(index) for index in range(len(images)))


@pytest.mark.parametrize("eval_batch", [1, 4, 21, 64])
def test_the_batch_size_changes_no_outcome(folder: Path, eval_batch: int) -> None:
    assert outcomes(toy_run(folder, kind="knn", eval_batch=eval_batch)) == outcomes(toy_run(folder, kind="knn"))


def test_batches_suit_a_cpu_unless_the_recipe_says_otherwise(folder: Path) -> None:
    sizes = [batch_size(recipe_of(toy_run(folder, kind="knn", **given))) for given in ({}, {"eval_batch": 256})]
    assert sizes == [32, 256]


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_images_and_all_get_the_same_outcomes(folder: Path, count: int) -> None:
    run = toy_run(folder, kind="knn", eval_batch=4)
    assert in_processes(lambda: outcomes(run), count) == [outcomes(run)] * count


@pytest.mark.parametrize("count", [2, 3])
def test_features_have_the_same_bits_whatever_the_number_of_processes(folder: Path, count: int) -> None:
    run = toy_run(folder, kind="knn", eval_batch=4)  # 21 images: a short last batch, and processes without one

    def features() -> list[list[float]]:
        accelerator()
        torch.set_num_threads(1)  # as accelerate leaves them only in one process
        torch.manual_seed(0)
        encoder = create_encoder(recipe_of(run).encoder.architecture)
        found = encode_images(encoder, run.dataset("val"), recipe_of(run), IMAGENETS, "")
        return found.values.tolist()  # type: ignore[no-any-return]

    (once,) = in_processes(features)
    assert len(once) == 21
    assert in_processes(features, count) == [once] * count


def test_more_processes_than_images_give_each_image_once(tmp_path: Path) -> None:
    write_images(tmp_path, val=1)
    run = toy_run(tmp_path, kind="knn")

    def indices() -> list[int]:
        recipe = recipe_of(run)
        computed = over_images(
            lambda pixels, index: index, run.dataset("val"), eval_transform(recipe.side, recipe.eval_crop), recipe, ""
        )
        return computed.values.tolist()  # type: ignore[no-any-return]

    assert in_processes(indices, 4) == [[0, 1, 2]] * 4


def test_an_image_that_cannot_be_decoded_is_left_out_of_the_outcomes_if_the_set_skips_it(folder: Path) -> None:
    (folder / "toy" / "val" / "amber" / "0.png").write_bytes(b"not an image")
    (folder / "toy" / "val" / "blue" / "3.png").write_bytes(b"")
    run = toy_run(folder, kind="knn", eval_batch=4)
    images, recipe = run.dataset("val"), recipe_of(run)
    computed = over_images(
        lambda pixels, index: index, images, eval_transform(recipe.side, recipe.eval_crop), recipe, ""
    )
    assert computed.index.tolist() == computed.values.tolist() == [i for i in range(21) if i not in (0, 10)]
    assert len(outcomes(run)["label"]) == 19


def test_an_image_that_cannot_be_decoded_stops_the_evaluation_if_the_set_does_not_skip_it(folder: Path) -> None:
    (folder / "toy" / "val" / "blue" / "3.png").write_bytes(b"")
    run = toy_run(folder, kind="knn", changes=["data.toy.undecodable=stop"])

    def look(pixels: Tensor, index: Tensor) -> Tensor:
        return index

    with pytest.raises(UserError, match=r"3\.png"):
        over_images(
            look, run.dataset("val"), eval_transform(recipe_of(run).side, recipe_of(run).eval_crop), recipe_of(run), ""
        )


def test_a_classifier_in_training_is_evaluated_in_evaluation_mode_and_left_in_training(folder: Path) -> None:
    run = toy_run(folder, kind="knn")
    classifier = create_encoder(recipe_of(run).encoder.architecture, drop_path=0.9, classes=3, pooled_norm=True)
    modes: set[bool] = set()
    classifier.register_forward_pre_hook(lambda module, inputs: modes.add(module.training))
    evaluate(classifier.train(), run.dataset("val"), recipe_of(run), IMAGENETS, title="")
    assert modes == {False}
    assert classifier.training
