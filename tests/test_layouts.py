"""Ways in which people keep datasets are read, or the likely setting is named."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from image_files import COLOURS, encoded, picture, tree
from PIL import Image

from lutbench.data.images import aligned, open_dataset
from lutbench.data.masks import check_masks
from lutbench.data.scenes import open_dataset as open_scenes
from lutbench.data.streaming import open_streamed
from lutbench.errors import UserError
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.segmentation import SegmentationDataRecipe

CONFIGS = """---
configs:
- config_name: small
  data_files:
  - split: train
    path: small/train.parquet
- config_name: large
  data_files:
  - split: train
    path: large/train.parquet
---
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache/downloads")
    datasets.disable_progress_bars()


def opened(root: Path, split: Any = "train", **changes: object) -> Any:
    return open_dataset(DataRecipe.model_validate({"path": "set", "source": "huggingface", **changes}), split, root)


def pictures(count: int = 4) -> list[Image.Image]:
    return [picture(COLOURS["cat"], k) for k in range(count)]


def rows(count: int = 4, label: object = datasets.ClassLabel(names=["cat", "dog"])) -> datasets.Dataset:
    columns = {
        "image": [{"bytes": encoded(one, "png"), "path": None} for one in pictures(count)],
        "label": [k % 2 for k in range(count)],
    }
    return datasets.Dataset.from_dict(columns, datasets.Features({"image": datasets.Image(), "label": label}))


def check(images: Any, count: int = 4) -> None:
    assert (len(images), images.classes) == (count, ("cat", "dog"))
    for k in range(count):
        assert np.array_equal(np.asarray(images.image(k)), np.asarray(pictures()[k]))
        assert images.sizes[k] == len(images.content(k))


# Hugging Face sets


def test_a_single_saved_dataset_is_a_split_and_can_be_divided(tmp_path: Path) -> None:
    rows().save_to_disk(tmp_path / "set")
    check(opened(tmp_path))
    assert opened(tmp_path).fingerprint == opened(tmp_path, train="").fingerprint
    parts = {"train": "train[:75%]", "val": "train[75%:]"}
    check(opened(tmp_path, **parts), 3)
    assert opened(tmp_path, "val", **parts).content(0) == encoded(pictures()[3], "png")
    with pytest.raises(
        UserError, match=r"saved with the splits \['train'\]\. Divide it with train\[:80%\] .* val = \"\""
    ):
        opened(tmp_path, "val")
    datasets.DatasetDict(train=rows(), extra=rows(2)).save_to_disk(tmp_path / "two")
    assert len(opened(tmp_path, path="two", train="train+extra")) == 6


def test_a_configuration_is_named_in_the_suite_file(tmp_path: Path) -> None:
    for name, count in (("small", 2), ("large", 4)):
        (tmp_path / "set" / name).mkdir(parents=True)
        rows(count).to_parquet(tmp_path / "set" / name / "train.parquet")
    (tmp_path / "set/README.md").write_text(CONFIGS)
    check(opened(tmp_path, config="small"), 2)
    check(opened(tmp_path, config="large"))
    streamed = DataRecipe(path="set", source="huggingface", config="large", streaming=True)
    assert len(open_streamed(streamed, "train", tmp_path)) == 4
    with pytest.raises(UserError) as error:
        opened(tmp_path)
    assert "['small', 'large']. Set config to one of them in the suite file's [data] table" in str(error.value)
    assert "load_dataset" not in str(error.value)
    with pytest.raises(UserError, match=r"'tiny' not found.*Set config to one of them"):
        opened(tmp_path, config="tiny")
    with pytest.raises(ValueError, match="config is the configuration of a Hugging Face dataset"):
        DataRecipe(config="small")


def test_bytes_and_paths_without_the_type_of_images_are_images(tmp_path: Path) -> None:
    plain = {"image": [{"bytes": encoded(one, "png"), "path": "x.png"} for one in pictures()], "label": [0, 1, 0, 1]}
    (tmp_path / "set").mkdir()
    made = datasets.Dataset.from_dict(plain).cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    made.to_parquet(tmp_path / "set/train-00000-of-00001.parquet")
    assert not isinstance(made.features["image"], datasets.Image)
    images = opened(tmp_path)
    check(images)
    assert [images.content(k) for k in range(4)] == [encoded(one, "png") for one in pictures()]
    assert images.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("relative", [True, False])
def test_a_column_of_paths_is_read_from_the_folder_of_the_dataset(tmp_path: Path, relative: bool) -> None:
    (tmp_path / "set/files").mkdir(parents=True)
    for k, one in enumerate(pictures()):
        one.save(tmp_path / f"set/files/{k}.png")
    start = "files" if relative else str(tmp_path / "set/files")
    columns = {"image": [f"{start}/{k}.png" for k in range(4)], "label": ["cat", "dog"] * 2}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "set/train.parquet")
    check(opened(tmp_path))
    (tmp_path / "set/files/3.png").unlink()
    with pytest.raises(
        UserError, match=r"holds file paths, but .*files/3\.png cannot be read: No such file .* are relative to "
    ):
        opened(tmp_path)
    with pytest.raises(UserError, match=r"holds file paths, but .*cat cannot be read"):
        opened(tmp_path, image_column="label")


def test_a_zipped_image_folder_has_the_classes_of_its_folders(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set/train.zip", "w") as archive:
        for k, one in enumerate(pictures()):
            archive.writestr(f"train/{('cat', 'dog')[k // 2]}/{k}.png", encoded(one, "png"))
        archive.writestr("__MACOSX/train/cat/._0.png", b"\0\5\26\7")
    images = opened(tmp_path)
    check(images)
    assert images.labels.tolist() == [0, 0, 1, 1]


def test_of_a_failure_the_innermost_cause_is_told(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.csv").write_text("image,label\na.png,cat\n1,2,3,4\n")
    with pytest.raises(UserError) as error:
        opened(tmp_path)
    assert "Expected 2 fields in line 3, saw 4" in str(error.value)
    assert "occurred while generating" not in str(error.value)


@pytest.mark.parametrize("values", [("ant", "bee", "cow"), (2, 10, 30)])
def test_labels_of_a_column_are_numbered_as_in_train(tmp_path: Path, values: tuple[object, ...]) -> None:
    (tmp_path / "set").mkdir()
    for name, labels in (("train", [2, 0, 1, 0]), ("val", [1, 2, 2, 1])):
        plain = rows(4).remove_columns("label").add_column("label", [values[k] for k in labels])
        plain.to_parquet(tmp_path / "set" / f"{name}.parquet")
    train, val = (opened(tmp_path, path=f"set/{name}.parquet", train="train") for name in ("train", "val"))
    assert (val.labels.tolist(), val.classes) == ([0, 1, 1, 0], tuple(map(str, values[1:])))
    assert (aligned(train, val).labels.tolist(), aligned(train, val).classes) == ([1, 2, 2, 1], train.classes)
    with pytest.raises(UserError, match=f"only in val: {values[0]}"):
        aligned(val, train)


# Folders one level too deep or too high


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("train-1", r'train-1: set path = "train-1"'),
        ("set/inner", r'set/inner: set path = "set/inner"'),
        ("", r'is itself such a dataset: .* set path = "\."'),
    ],
)
def test_a_dataset_that_lies_elsewhere_is_found(tmp_path: Path, place: str, told: str) -> None:
    tree(tmp_path / place / "train", ("cat", "dog"))
    path = "" if place == "train-1" else "set"
    with pytest.raises(UserError, match=told):
        opened(tmp_path, source="folder", path=path)
    for kind in ("images", "annotations"):
        (tmp_path / place / kind / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=told):
        open_scenes(scenes_recipe(train="train", path=path), "train", tmp_path)


def test_folders_without_splits_and_other_names_of_splits_are_recognised(tmp_path: Path) -> None:
    tree(tmp_path / "set", ("cat", "dog"))
    with pytest.raises(UserError, match=r"Its folders cat, dog hold images.* the classes .* train/CLASS and val/CLASS"):
        opened(tmp_path, source="folder")
    shutil.rmtree(tmp_path / "set/cat")
    (tmp_path / "set/dog").rename(tmp_path / "set/train")
    (tmp_path / "set/validation").mkdir()
    with pytest.raises(UserError, match='Did you mean val = "validation"'):
        opened(tmp_path, "val", source="folder")
    (tmp_path / "loose").mkdir()
    picture(COLOURS["cat"]).save(tmp_path / "loose/0.png")
    with pytest.raises(UserError, match=r'has images but no splits: .* set train = "" and val = ""'):
        opened(tmp_path, source="folder", path="loose")
    assert len(opened(tmp_path, source="folder", path="loose", train="")) == 1


# Masks


def scenes_recipe(**changes: object) -> SegmentationDataRecipe:
    fields = {"source": "scenes", "path": "set", "classes": ["dark", "light"], **changes}
    return SegmentationDataRecipe.model_validate(fields)


def write_scenes(root: Path, mask: Callable[[np.ndarray[Any, Any]], Image.Image], suffixes: tuple[str, ...]) -> None:
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (root / "set" / kind / split).mkdir(parents=True)
        for k in range(4):
            picture(COLOURS["dog"], k).save(root / f"set/images/{split}/{k}{suffixes[k % len(suffixes)]}")
            values = (np.random.default_rng(k).random((12, 12)) < 0.4).astype(np.uint8)
            mask(values).save(root / f"set/annotations/{split}/{k}.png")


def test_images_may_end_in_one_of_several_suffixes(tmp_path: Path) -> None:
    write_scenes(tmp_path, Image.fromarray, (".jpg", ".jpeg"))
    with pytest.raises(UserError, match=r'2 of the masks have .* set image_suffix = \["\.jpg", "\.jpeg"\]'):
        open_scenes(scenes_recipe(), "train", tmp_path)
    scenes = open_scenes(scenes_recipe(image_suffix=[".jpg", ".jpeg"]), "train", tmp_path)
    assert [scenes.image_name(k) for k in range(4)] == ["0.jpg", "1.jpeg", "2.jpg", "3.jpeg"]
    assert [scenes.image_path(k).is_file() for k in range(4)] == [True] * 4
    assert check_masks(scenes) == []
    picture(COLOURS["dog"]).save(tmp_path / "set/images/training/0.jpeg")
    with pytest.raises(UserError, match=r"have the same name as another file .* 0\.jpe?g\. Remove one of each"):
        open_scenes(scenes_recipe(image_suffix=[".jpg", ".jpeg"]), "train", tmp_path)
    with pytest.raises(ValueError, match="one suffix ends with another one"):
        scenes_recipe(image_suffix=["_a.jpg", ".jpg"])


def test_one_suffix_in_a_list_is_that_suffix(tmp_path: Path) -> None:
    write_scenes(tmp_path, Image.fromarray, (".jpg",))
    one, several = (open_scenes(scenes_recipe(image_suffix=s), "train", tmp_path) for s in (".jpg", [".jpg"]))
    assert one.fingerprint == several.fingerprint


def test_mmsegmentation_lists_several_suffixes_in_the_same_order(tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    from mmseg.registry import DATASETS
    from mmseg.utils import register_all_modules

    from downstream.segmentation import hooks  # noqa: F401 - registers the dataset
    from downstream.segmentation.config import dataset_config

    register_all_modules()
    write_scenes(tmp_path, Image.fromarray, (".jpg", ".jpeg"))
    scenes = open_scenes(scenes_recipe(image_suffix=[".jpg", ".jpeg"]), "train", tmp_path)
    listed = DATASETS.build(dataset_config(scenes, []))
    found = [listed.get_data_info(k) for k in range(len(listed))]
    assert [info["img_path"] for info in found] == [str(scenes.image_path(k)) for k in range(4)]
    assert [info["seg_map_path"] for info in found] == [str(scenes.mask_path(k)) for k in range(4)]


def test_masks_of_one_bit_are_read_as_mmsegmentation_reads_them(tmp_path: Path) -> None:
    write_scenes(tmp_path, lambda values: Image.fromarray(values * 255).convert("1"), (".jpg",))
    scenes = open_scenes(scenes_recipe(), "train", tmp_path)
    assert check_masks(scenes) == []
    expected = (np.random.default_rng(2).random((12, 12)) < 0.4).astype(np.uint8)
    assert np.array_equal(scenes.mask(2), expected)
    transforms = pytest.importorskip("mmseg.datasets.transforms")
    info = {"seg_map_path": str(scenes.mask_path(2)), "reduce_zero_label": False, "seg_fields": []}
    assert np.array_equal(transforms.LoadAnnotations()(info)["gt_seg_map"], expected)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (lambda values: Image.fromarray(values.astype(np.uint16)), "mode I;16, which is 16 or 32-bit integers"),
        (lambda values: Image.fromarray(values).convert("LA"), "mode LA, which is grey with transparency"),
        (lambda values: Image.fromarray(values).convert("RGB"), "mode RGB, which is colours"),
    ],
)
def test_other_masks_are_told_what_they_are(
    tmp_path: Path, mask: Callable[[np.ndarray[Any, Any]], Image.Image], told: str
) -> None:
    write_scenes(tmp_path, mask, (".jpg",))
    with pytest.raises(UserError, match=told):
        check_masks(open_scenes(scenes_recipe(), "train", tmp_path))


def test_masks_that_teach_nothing_are_refused_with_the_share_that_is_ignored(tmp_path: Path) -> None:
    write_scenes(tmp_path / "a", lambda values: Image.fromarray(values * 255), (".jpg",))
    with pytest.raises(UserError) as error:
        check_masks(open_scenes(scenes_recipe(), "train", tmp_path / "a"), tmp_path / "stamps")
    for told in (
        "all valid pixels have the same class, dark.",
        "% of the pixels have the value 255, which ignore = 255 ignores. If one of these values is a class",
    ):
        assert told in str(error.value)
    assert check_masks(open_scenes(scenes_recipe(), "val", tmp_path / "a")) == ["light"]  # something to measure
    write_scenes(tmp_path / "b", lambda values: Image.fromarray(values * 0), (".jpg",))
    recipe = scenes_recipe(reduce_zero_label=True)
    for split in ("train", "val"):
        with pytest.raises(
            UserError, match=r"all pixels are ignored\. 100% of the pixels have the value 0, which reduce_zero_label"
        ):
            check_masks(open_scenes(recipe, split, tmp_path / "b"))
