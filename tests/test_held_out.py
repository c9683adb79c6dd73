"""Settings are chosen on images of train that no run trains on, and never on those that tables print."""

from pathlib import Path

import numpy as np
import pytest
from toy_runs import TOY, performed, toy_run, write_images

from lutbench.data.folder import open_folder
from lutbench.data.held_out import held_out_images, part_of_train
from lutbench.data.images import ImageDataset, open_dataset
from lutbench.data.subsets import SubsetImages, restricted, whole_of
from lutbench.errors import UserError
from lutbench.evaluate.features import features_of
from lutbench.recipes.base import DataRecipe, TrainingSubset
from lutbench.record import read_record

KNN = """
[method.one]
scratch = true
encoder = "toy"
[defaults.knn]
neighbours = 2
threads = 1
[downstream.knn]
kind = "knn"
data = "toy"
"""
HELD_OUT = TOY.replace("[data.toy]", "[data.toy]\nheld_out = 0.25")


def training(folder: Path) -> ImageDataset:
    return open_folder(folder / "toy" / "train", "toy", "train")


def test_both_parts_together_are_the_training_split_and_share_no_image(folder: Path) -> None:
    whole = training(folder)
    parts = [part_of_train(whole, split, 0.25) for split in ("train", "val")]
    names = [{part.image_name(i) for i in range(len(part))} for part in parts]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {whole.image_name(i) for i in range(len(whole))}
    assert [part.split for part in parts] == ["train", "val"]
    assert len({part.fingerprint for part in (*parts, whole)}) == 3


def test_of_every_class_its_share_is_held_out_and_a_larger_share_contains_a_smaller_one(folder: Path) -> None:
    whole = training(folder)
    assert whole.labels is not None
    held_out = held_out_images(whole, 0.25)
    counts, of_all = np.bincount(whole.labels[held_out]), np.bincount(whole.labels)
    assert counts.tolist() == [max(1, int(0.25 * count + 0.5)) for count in of_all]
    assert set(held_out) < set(held_out_images(whole, 0.6))


def test_an_only_image_of_a_class_is_trained_on(tmp_path: Path) -> None:
    write_images(tmp_path)
    for path in sorted((tmp_path / "toy" / "train").glob("*/*"))[1:]:
        if path.parent == sorted((tmp_path / "toy" / "train").iterdir())[0]:
            path.unlink()
    whole = training(tmp_path)
    assert whole.labels is not None
    assert 0 not in whole.labels[held_out_images(whole, 0.9)]


def test_a_run_is_measured_on_images_of_train_and_says_so(folder: Path) -> None:
    """The images of the real val are not needed, and a record names the part."""
    for path in (folder / "toy" / "val").glob("*/*"):
        path.unlink()
    run = toy_run(folder, suite_text=HELD_OUT + KNN)
    held_out = held_out_images(training(folder), 0.25)
    assert performed(run)["n"] == len(held_out) < len(training(folder))
    record = read_record(next(run.workspace.results.rglob("*.json")))
    assert record.identity_inputs["recipe"]["data"]["held_out"] == 0.25


def test_features_of_the_part_held_out_are_not_those_of_train(folder: Path) -> None:
    """Few shots are rows of the features of the part that is trained on, and no image of the other is encoded for them."""
    recipe = DataRecipe(path="toy", held_out=0.25)
    train, val = (open_dataset(recipe, split, folder) for split in ("train", "val"))  # type: ignore[arg-type]
    assert whole_of(val) is val
    assert whole_of(train) is train
    few = restricted(train, TrainingSubset(shots=1), folder)
    assert isinstance(few, SubsetImages)
    assert whole_of(few) is train
    run = toy_run(folder, suite_text=HELD_OUT + KNN)
    encoded = {split: features_of(run, split).values for split in ("train", "val")}
    assert [len(encoded[split]) for split in ("train", "val")] == [len(train), len(val)]


def test_a_streamed_set_has_no_images_to_hold_out() -> None:
    with pytest.raises(ValueError, match="held_out selects images by class"):
        DataRecipe(source="huggingface", path="x", streaming=True, held_out=0.1)


def test_a_set_of_which_nothing_can_be_held_out_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path)
    for folder in (tmp_path / "toy" / "train").iterdir():
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    with pytest.raises(UserError, match="use classes with at least two images"):
        part_of_train(training(tmp_path), "val", 0.5)
