"""Images with masks: listed as MMSegmentation lists them, and what is wrong with one is said before anything is computed."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from lutbench.data import masks
from lutbench.data.catalogue import CATALOGUE
from lutbench.data.decoding import UndecodableImage
from lutbench.data.masks import check_masks
from lutbench.data.scene_folder import choose_palette
from lutbench.data.scenes import SegmentationDataset, ade20k_colours, check_pair, open_dataset
from lutbench.errors import UserError
from lutbench.recipes.segmentation import SegmentationDataRecipe

ORIENTATION = 274
"""The EXIF tag."""


def picture(number: int = 0, size: tuple[int, int] = (12, 8)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def values(number: int = 0, highest: int = 2, size: tuple[int, int] = (12, 8)) -> Image.Image:
    """A mask with every value from 0 to ``highest``."""
    mask = np.random.default_rng(number).integers(0, highest + 1, (size[1], size[0]), np.uint8)
    mask[0, : highest + 1] = np.arange(highest + 1)
    return Image.fromarray(mask)


def write_set(root: Path, count: int = 3, highest: int = 2, suffix: str = ".jpg") -> Path:
    """A set in ADE20K's layout: ``count`` images in each split, masks with the values from 0 to ``highest``."""
    for part in ("training", "validation"):
        for kind in ("images", "annotations"):
            (root / "set" / kind / part).mkdir(parents=True)
        for k in range(count):
            number = k + 100 * (part == "validation")
            picture(number).save(root / f"set/images/{part}/{k}{suffix}")
            values(number, highest).save(root / f"set/annotations/{part}/{k}.png")
    return root / "set"


def recipe(**changes: Any) -> SegmentationDataRecipe:
    fields = {"source": "scenes", "path": "set", "classes": ["cat", "dog", "newt"], **changes}
    return SegmentationDataRecipe.model_validate(fields)


def opened(root: Path, split: Any = "train", **changes: Any) -> SegmentationDataset:
    return open_dataset(recipe(**changes), split, root)


# Listing


def test_a_split_is_listed_with_its_images_and_masks(tmp_path: Path) -> None:
    write_set(tmp_path, suffix=".png")
    (tmp_path / "set/images/training/readme.txt").write_text("no image")
    (tmp_path / "set/images/training/._0.png").write_bytes(b"left by another system")
    scenes = opened(tmp_path, "val", label="Pets", image_suffix=".png")
    assert (scenes.name, scenes.split, len(scenes)) == ("Pets", "val", 3)
    assert scenes.classes == ("cat", "dog", "newt")
    assert [scenes.image_name(index) for index in range(3)] == ["0.png", "1.png", "2.png"]
    assert scenes.image_path(1) == tmp_path / "set/images/validation/1.png"
    assert scenes.mask_path(1) == tmp_path / "set/annotations/validation/1.png"
    assert np.array_equal(scenes.image(1), picture(101))
    assert np.array_equal(scenes.mask(1), values(101))
    assert scenes.mask(1).dtype == np.uint8
    assert len(opened(tmp_path, image_suffix=".png")) == 3


def test_a_mask_is_given_as_training_sees_it(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    Image.fromarray(np.array([[0, 1, 2], [3, 7, 255]], np.uint8)).save(folder / "annotations/training/0.png")
    assert opened(tmp_path, reduce_zero_label=True).mask(0).tolist() == [[255, 0, 1], [2, 6, 255]]
    assert opened(tmp_path).mask(0).tolist() == [[0, 1, 2], [3, 7, 255]]
    assert opened(tmp_path, ignore=7).mask(0).tolist() == [[0, 1, 2], [3, 255, 255]]


def test_the_suffixes_may_hold_a_part_of_the_name(tmp_path: Path) -> None:
    for kind, ends in (("images", ("_photo.png",)), ("annotations", ("_labels.png", "_colours.png"))):
        folder = tmp_path / "set" / kind / "training/ulm"
        folder.mkdir(parents=True)
        for end in ends:
            values().save(folder / f"000{end}")
    scenes = opened(tmp_path, image_suffix="_photo.png", mask_suffix="_labels.png")
    assert scenes.stems == ("ulm/000",)
    assert scenes.mask_path(0).name == "000_labels.png"
    picture().save(tmp_path / "set/annotations/training/ulm/000.jpg")
    opened(tmp_path, image_suffix="_photo.png", mask_suffix="_labels.png")
    picture().save(tmp_path / "set/annotations/training/ulm/000_labels.jpg")
    with pytest.raises(UserError, match=r"1 images .* ulm/000_labels\.jpg\. Remove one of each"):
        opened(tmp_path, image_suffix="_photo.png", mask_suffix="_labels.png")


@pytest.mark.parametrize("reduce_zero_label", [False, True])
def test_mmsegmentation_reads_the_same_images_and_masks_in_the_same_order(
    tmp_path: Path, reduce_zero_label: bool
) -> None:
    datasets = pytest.importorskip("mmseg.datasets")
    transforms = pytest.importorskip("mmcv.transforms")
    folder = write_set(tmp_path, suffix=".png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for number, name in enumerate(("1-b", "10", "deep/0", ".hidden/3", "Z", "é")):
        for kind in ("images", "annotations"):
            (folder / kind / "training" / name).parent.mkdir(exist_ok=True)
        turned = {"exif": exif} if name == "Z" else {}
        picture(number).save(folder / f"images/training/{name}.png", **turned)
        size = (8, 12) if turned else (12, 8)
        mask = values(number, size=size)
        if name == "10":
            mask = mask.convert("P")
        mask.save(folder / f"annotations/training/{name}.png")
    scenes = opened(tmp_path, image_suffix=".png", reduce_zero_label=reduce_zero_label)
    assert check_masks(scenes) == (["newt"] if reduce_zero_label else [])
    dataset = datasets.BaseSegDataset(
        metainfo={"classes": scenes.classes, "palette": scenes.palette},
        data_prefix={"img_path": str(scenes.images), "seg_map_path": str(scenes.masks)},
        img_suffix=scenes.image_suffix,
        seg_map_suffix=scenes.mask_suffix,
        reduce_zero_label=reduce_zero_label,
        ignore_index=255,
        pipeline=[transforms.LoadImageFromFile(), datasets.transforms.LoadAnnotations()],
    )
    assert len(dataset) == len(scenes) == 9
    for index in range(len(scenes)):
        sample = dataset[index]
        assert Path(sample["img_path"]) == scenes.image_path(index)
        assert np.array_equal(sample["img"][..., ::-1], scenes.image(index)), scenes.image_name(index)
        assert np.array_equal(sample["gt_seg_map"], scenes.mask(index)), scenes.image_name(index)


def test_the_fingerprint_tells_contents_and_their_meaning_apart_and_not_places(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a")
    shutil.copytree(folder, tmp_path / "b/set")
    first = opened(tmp_path / "a").fingerprint
    colours = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert opened(tmp_path / "b", label="other", palette=colours).fingerprint == first
    seen = {
        first,
        opened(tmp_path / "a", "val").fingerprint,
        opened(tmp_path / "a", classes=["dog", "cat", "newt"]).fingerprint,
        opened(tmp_path / "a", ignore=7).fingerprint,
        opened(tmp_path / "a", reduce_zero_label=True).fingerprint,
    }
    files = [tmp_path / "b/set/images/training/1.jpg", tmp_path / "b/set/annotations/training/1.png"]
    for file in files:
        file.write_bytes(file.read_bytes() + b" ")
        seen.add(opened(tmp_path / "b").fingerprint)
    files = [file.rename(file.with_stem("9")) for file in files]
    seen.add(opened(tmp_path / "b").fingerprint)
    for file in files:
        file.unlink()
    seen.add(opened(tmp_path / "b").fingerprint)
    assert len(seen) == 9


def test_a_folder_that_is_missing_is_named_with_the_layout_and_what_is_beside_it(tmp_path: Path) -> None:
    write_set(tmp_path)
    with pytest.raises(UserError) as error:
        opened(tmp_path, train="train")
    for told in (
        str(tmp_path / "set/images/train"),
        "training, validation. Did you mean 'training'?",
        "images/train/NAME.jpg and annotations/train/NAME.png",
        "lutbench data list",
    ):
        assert told in str(error.value)
    with pytest.raises(UserError, match="Did you mean 'set'"):
        opened(tmp_path, path="sets")
    (tmp_path / "set/annotations").rename(tmp_path / "set/annotation")
    with pytest.raises(
        UserError, match=r"set/annotations/training, but .* annotation, images\. Did you mean 'annotation'"
    ):
        opened(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        opened(tmp_path / "nowhere/at/all")


def test_a_folder_without_files_of_the_suffix_says_what_it_holds(tmp_path: Path) -> None:
    folder = write_set(tmp_path, suffix=".JPG")
    with pytest.raises(UserError, match=r"no file there ends in '\.jpg' \(there are images with \.JPG\)"):
        opened(tmp_path)
    for file in (folder / "images/training").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"no file there ends in '\.jpg'\. Folders"):
        opened(tmp_path)


def test_images_and_masks_that_do_not_pair_up_are_named_and_counted(tmp_path: Path) -> None:
    folder = write_set(tmp_path, count=9)
    for k in range(7):
        (folder / f"annotations/training/{k}.png").unlink()
    (folder / "images/training/8.jpg").unlink()
    with pytest.raises(UserError) as error:
        opened(tmp_path)
    assert "7 images without a mask (0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 2 more)" in str(error.value)
    assert "1 masks without an image (8.png)" in str(error.value)
    assert str(folder / "annotations/training") in str(error.value)
    for file in (folder / "annotations/validation").iterdir():
        file.rename(file.with_stem(file.stem + "_y"))
    with pytest.raises(UserError, match=r"Found 9 images without a mask .* and 9 masks without an image \(0_y\.png"):
        opened(tmp_path, "val")


@pytest.mark.parametrize("twin", ["images/training/1.png", "images/training/1.JPG", "annotations/training/1.tif"])
def test_two_files_of_one_name_are_refused(tmp_path: Path, twin: str) -> None:
    folder = write_set(tmp_path)
    picture().save(folder / twin)
    with pytest.raises(UserError, match=f"1 images in .* have the same name as another file .*{Path(twin).name}"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["me", "me.jpg", "images/training/me"])
@pytest.mark.parametrize("target", ["me", "nowhere"])
def test_a_link_to_itself_or_to_nothing_is_named(tmp_path: Path, name: str, target: str) -> None:
    folder = write_set(tmp_path) / "images/training"
    link = folder / Path(name).name
    link.symlink_to(Path(target).with_suffix(link.suffix))
    with pytest.raises(UserError, match=f"{link} cannot be read"):
        opened(tmp_path)


def test_names_that_are_not_utf_8_can_be_told(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    try:
        for kind, suffix in (("images", "jpg"), ("annotations", "png")):
            (folder / kind / f"training/0.{suffix}").rename(folder / kind / f"training/\udce9.{suffix}")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    scenes = opened(tmp_path)
    names = [scenes.image_name(index) for index in range(3)]
    assert "\\xe9.jpg" in names
    index = names.index("\\xe9.jpg")
    assert scenes.content(index) == scenes.image_path(index).read_bytes()
    assert scenes.sizes[index] == len(scenes.content(index))
    assert scenes.mask(index).shape == (8, 12)


def test_an_orientation_that_is_no_number_turns_nothing(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    path = folder / "images/training/0.jpg"
    text = b"II*\0" + struct.pack("<IHHHI", 8, 1, ORIENTATION, 2, 2) + b"6\0\0\0" + bytes(4)  # as ASCII
    exif = b"Exif\0\0" + text
    content = path.read_bytes()
    path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:])
    with Image.open(path) as image:
        assert image.getexif()[ORIENTATION] == "6"
    assert check_masks(opened(tmp_path), tmp_path / "checked") == []


def test_swapped_folders_of_ade20k_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path)
    (tmp_path / "set").rename(tmp_path / "ADEChallengeData2016")
    for split, count in (("train", 7), ("val", 3)):
        monkeypatch.setitem(CATALOGUE["ade20k"].images, split, count)
    with pytest.raises(UserError, match=r"found 3\. That is the size of val: are the folders swapped\?"):
        open_dataset(SegmentationDataRecipe(source="ade20k"), "train", tmp_path)


def test_a_link_to_a_folder_it_lies_in_is_named(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    (folder / "images/training/round").symlink_to(folder / "images/training")
    with pytest.raises(UserError, match="round is a link to a folder that contains it"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"classes": []}, "List the class names"),
        ({"classes": ["cat", "cat"]}, "a name appears twice"),
        ({"palette": [[1, 2, 3]]}, "expected 3 colours, one per class, found 1"),
        ({"ignore": 1}, "the mask value of class 'dog'"),
        ({"reduce_zero_label": True, "ignore": 7}, "Leave ignore at 255"),
        ({"classes": [str(k) for k in range(256)]}, "at most 255 classes"),
        ({"classes": [str(k) for k in range(255)], "reduce_zero_label": True}, "at most 254 classes"),
        ({"train": ""}, "at least 1 character"),
        ({"mask_suffix": ""}, "at least 1 character"),
        ({"source": "ade20k"}, "are predefined for ade20k"),
        ({"source": "mosaics", "classes": [], "ignore": 7}, "are predefined for mosaics"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        recipe(**changes)


def test_train_and_val_must_mean_the_same_and_be_two(tmp_path: Path) -> None:
    write_set(tmp_path)
    train, val = opened(tmp_path), opened(tmp_path, "val")
    check_pair(train, val)
    with pytest.raises(UserError, match="expected the same classes in train and val"):
        check_pair(train, opened(tmp_path, "val", classes=["cat", "dog", "toad"]))
    with pytest.raises(
        UserError, match="expected the same reduce_zero_label in train and val, found False in train and True in val"
    ):
        check_pair(train, opened(tmp_path, "val", reduce_zero_label=True))
    with pytest.raises(UserError, match="are the same images"):
        check_pair(train, opened(tmp_path, "val", val="training"))


def test_chosen_colours_differ_and_given_ones_stay(tmp_path: Path) -> None:
    colours = choose_palette(255)
    assert len(set(colours)) == 255
    assert (0, 0, 0) not in colours
    assert choose_palette(3) == colours[:3] == ((128, 0, 0), (0, 128, 0), (128, 128, 0))
    write_set(tmp_path)
    assert opened(tmp_path).palette == colours[:3]
    assert opened(tmp_path, palette=[[1, 2, 3], [4, 5, 6], [7, 8, 9]]).palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))


# ADE20K


def test_ade20k_has_its_classes_and_is_refused_if_it_is_not_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path, highest=11).rename(tmp_path / "ADEChallengeData2016")
    found = SegmentationDataRecipe(source="ade20k")
    with pytest.raises(UserError, match=r"expected the 20,210 images of ADE20K's train split in .*, found 3"):
        open_dataset(found, "train", tmp_path)
    for split, count in (("train", 3), ("val", 3)):
        monkeypatch.setitem(CATALOGUE["ade20k"].images, split, count)
    scenes = open_dataset(found, "train", tmp_path)
    assert (len(scenes.classes), scenes.classes[:3]) == (150, ("wall", "building", "sky"))
    assert scenes.palette[0] == (120, 120, 120)
    assert scenes.mask(0)[0, :3].tolist() == [255, 0, 1]
    assert check_masks(scenes) == list(scenes.classes[11:])
    (tmp_path / "ADEChallengeData2016").rename(tmp_path / "elsewhere")
    assert open_dataset(SegmentationDataRecipe(source="ade20k", path="elsewhere"), "val", tmp_path).split == "val"


def test_ade20k_has_the_names_and_colours_of_mmsegmentation() -> None:
    theirs = pytest.importorskip("mmseg.datasets").ADE20KDataset.METAINFO
    assert list(ade20k_colours()) == [name.strip() for name in theirs["classes"]]
    assert [list(rgb) for rgb in ade20k_colours().values()] == theirs["palette"]


# Masks


def test_a_whole_set_passes_and_classes_without_a_pixel_are_named(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    assert check_masks(opened(tmp_path)) == []
    values().convert("P").save(folder / "annotations/training/0.png")
    assert check_masks(opened(tmp_path, classes=["cat", "dog", "newt", "toad"])) == ["toad"]
    assert check_masks(opened(tmp_path, reduce_zero_label=True)) == ["newt"]
    assert check_masks(opened(tmp_path, classes=["cat", "dog"], ignore=2)) == []


def _save_mask(mask: Image.Image) -> Callable[[Path], None]:
    return lambda folder: mask.save(folder / "annotations/training/1.png")


def _save_turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    picture().save(folder / "images/training/1.jpg", exif=exif)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            _save_mask(values(highest=4)),
            r"1\.png: expected values 0 to 2 and 255, found 3 in \d+ pixels, 4 in \d+ pixels",
        ),
        (_save_mask(Image.new("L", (12, 8), 254)), r"1\.png: expected values 0 to 2 and 255, found 254 in 96 pixels"),
        (_save_mask(values().convert("RGB")), r"1\.png: expected a mask with one 8-bit channel .* found mode RGB"),
        (_save_mask(Image.new("I;16", (12, 8))), r"1\.png: expected a mask with one 8-bit channel .* found mode I;16"),
        (_save_mask(Image.new("LA", (12, 8))), r"1\.png: expected a mask with one 8-bit channel .* found mode LA"),
        (_save_mask(values(size=(8, 12))), r"1\.png: expected the size of its image, 12 x 8, found 8 x 12"),
        (_save_turned, r"1\.png: expected the size of its image, 8 x 12 \(after EXIF rotation\), found 12 x 8"),
        (lambda folder: (folder / "annotations/training/1.png").write_bytes(b""), r"1\.png cannot be decoded: not an"),
        (lambda folder: (folder / "images/training/1.jpg").write_bytes(b"<html>"), r"1\.jpg cannot be decoded: not an"),
        (
            lambda folder: os.truncate(folder / "annotations/training/1.png", 60),
            r"annotations/training/1\.png cannot be decoded",
        ),
    ],
)
def test_a_mask_that_cannot_be_trained_on_is_named_with_what_was_expected(
    tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    folder = write_set(tmp_path)
    spoil(folder)
    with pytest.raises(UserError, match=told) as error:
        check_masks(opened(tmp_path))
    assert str(folder / "annotations/training") in str(error.value)
    assert ("If there are more classes" in str(error.value)) == ("expected values" in told)
    assert "2.png" not in str(error.value)
    assert check_masks(opened(tmp_path, "val")) == []


def test_an_image_that_would_be_resized_to_nothing_is_named(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    picture().resize((4000, 2)).save(folder / "images/training/1.jpg")
    Image.new("L", (4000, 2)).save(folder / "annotations/training/1.png")
    with pytest.raises(UserError, match=r"1\.png: expected an aspect ratio of at most 32, found 4000 x 2"):
        check_masks(opened(tmp_path))


def test_a_pipe_in_the_place_of_a_stamp_is_not_waited_for(tmp_path: Path) -> None:
    write_set(tmp_path)
    check_masks(opened(tmp_path), tmp_path)
    (stamp,) = tmp_path.glob("masks-*.json")
    stamp.unlink()
    os.mkfifo(stamp)
    check_masks(opened(tmp_path), tmp_path)
    assert stamp.is_file()


def test_a_wrong_number_of_classes_is_found_at_once(tmp_path: Path) -> None:
    write_set(tmp_path, count=20)
    with pytest.raises(UserError, match=r"those of the 2 classes in the suite file\. If there are more") as error:
        check_masks(opened(tmp_path, classes=["cat", "dog"]))
    assert str(error.value).count("found 2 in") == 3
    assert "may be more" in str(error.value)
    with pytest.raises(UserError, match="expected values 0 to 1 and 7, found 2"):
        check_masks(opened(tmp_path, classes=["cat", "dog"], ignore=7))


def test_an_image_or_mask_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    scenes = opened(tmp_path)
    shutil.rmtree(folder)
    for read in (scenes.image, scenes.mask):
        with pytest.raises(UndecodableImage, match="No such file"):
            read(0)


def test_a_set_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_set(tmp_path)
    stamps = tmp_path / "runs/checked"
    mask = folder / "annotations/training/0.png"
    whole, spoilt = mask.read_bytes(), b"\0" * mask.stat().st_size
    mask.write_bytes(spoilt)
    with pytest.raises(UserError, match="cannot be decoded"):
        check_masks(opened(tmp_path), stamps)
    mask.write_bytes(whole)
    classes = ["cat", "dog", "newt", "toad"]
    assert check_masks(opened(tmp_path, classes=classes), stamps) == ["toad"]
    mask.write_bytes(spoilt)
    assert check_masks(opened(tmp_path, classes=classes), stamps) == ["toad"], "by its fingerprint the set is the same"
    for changed in ({"classes": ["cat", "dog", "newt"]}, {"classes": classes, "ignore": 9}):
        with pytest.raises(UserError, match="cannot be decoded"):
            check_masks(opened(tmp_path, **changed), stamps)
    with pytest.raises(UserError, match="cannot be decoded"):
        check_masks(opened(tmp_path, classes=classes))
    with monkeypatch.context() as later:
        later.setattr(masks, "REVISION", masks.REVISION + 1)
        with pytest.raises(UserError, match="cannot be decoded"):
            check_masks(opened(tmp_path, classes=classes), stamps)
    [stamp] = (one for one in stamps.iterdir() if json.loads(one.read_text())["absent"] == ["toad"])
    values = json.loads(stamp.read_text())
    edited = [values | change for change in ({"absent": []}, {"absent": 5}, {"absent": ["\x1b[31m"]}, {"seal": None})]
    for content in ([], {}, {name: value for name, value in values.items() if name != "absent"}, *edited):
        stamp.write_text(json.dumps(content))
        with pytest.raises(UserError, match="cannot be decoded"):
            check_masks(opened(tmp_path, classes=classes), stamps)
    stamp.write_text("{")
    with pytest.raises(UserError, match="cannot be decoded"):
        check_masks(opened(tmp_path, classes=classes), stamps)
