"""The mosaics of photographs: masks are exact, no pixel is in both splits, and a spoilt set is not opened."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import RidgeClassifier

from lutbench.data.masks import check_masks
from lutbench.data.prepare import prepare_set
from lutbench.data.scenes import SegmentationDataset, check_pair, open_dataset
from lutbench.data.toy import mosaics
from lutbench.data.toy.mosaics import MOSAICS, MosaicDataset, Region, regions
from lutbench.data.toy.photographs import PHOTOGRAPHS, bands, load_photograph
from lutbench.data.verify import verify
from lutbench.errors import UserError
from lutbench.recipes.segmentation import SegmentationDataRecipe

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def photographs() -> dict[int, Image.Image]:
    """By their values in the masks."""
    return {value: load_photograph(PHOTOGRAPHS[name]) for value, name in enumerate(MOSAICS.photographs)}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> MosaicDataset:
    """A set that is built in no time, in place of the whole one."""
    built = replace(MOSAICS, counts={"train": 4, "val": 2})
    monkeypatch.setattr(mosaics, "MOSAICS", built)
    return built


def plan(photographs: dict[int, Image.Image], split: str, number: int) -> list[Region]:
    boxes = {value: bands((0, 0, *image.size), MOSAICS.gap)[split] for value, image in photographs.items()}
    return regions(MOSAICS, split, number, boxes)  # type: ignore[arg-type]


def test_the_pixels_are_those_of_the_published_records(tiny_data: Path) -> None:
    manifest = json.loads((tiny_data / "mosaics/manifest.json").read_text())
    assert {split: facts["pixels"] for split, facts in manifest["splits"].items()} == MOSAICS.pixels


def test_the_set_is_laid_out_as_ade20k_and_opens_like_any(tiny_data: Path) -> None:
    train, val = (
        open_dataset(SegmentationDataRecipe(source="mosaics"), split, tiny_data) for split in ("train", "val")
    )
    check_pair(train, val)
    assert (len(train), len(val)) == (600, 150)
    assert train.reduce_zero_label
    assert len(set(train.palette)) == len(train.classes) == 8
    assert (train.fingerprint, val.fingerprint) == (MOSAICS.pixels["train"], MOSAICS.pixels["val"])
    for scenes in (train, val):
        assert check_masks(scenes) == [], "every class is in both splits"
        assert (scenes.image(0).size, scenes.image(0).mode) == ((96, 96), "RGB")
    assert (tiny_data / "mosaics/images/training/0000.png").is_file()
    assert (tiny_data / "mosaics/annotations/validation/0149.png").is_file()


def test_masks_are_exact_and_every_pixel_is_from_the_photograph_of_its_class(
    tiny_data: Path, photographs: dict[int, Image.Image]
) -> None:
    scenes = mosaics.MOSAICS.open("train", tiny_data)
    numbers = set()
    for index in range(60):
        parts = plan(photographs, "train", index)
        numbers.add(len(parts))
        filled = {
            part.value: np.asarray(photographs[part.value].crop(part.box).resize((96, 96), Image.Resampling.BICUBIC))
            for part in parts
        }
        assert len(filled) == len(parts), "no photograph is in an image twice"
        with Image.open(scenes.mask_path(index)) as file:
            mask = np.asarray(file)
        image = np.asarray(scenes.image(index))
        for y in range(0, 96, 5):
            for x in range(0, 96, 5):
                distances = [(x - part.point[0]) ** 2 + (y - part.point[1]) ** 2 for part in parts]
                value = parts[distances.index(min(distances))].value
                assert mask[y, x] == value
                assert np.array_equal(image[y, x], filled[value][y, x])
        assert set(np.unique(mask)) == set(filled)
    assert numbers == {2, 3, 4}


def test_zero_is_the_photograph_that_is_no_class(tiny_data: Path) -> None:
    scenes = mosaics.MOSAICS.open("val", tiny_data)
    assert MOSAICS.photographs[0] == "rocket"
    assert "rocket" not in scenes.classes
    shares = (
        np.bincount(np.concatenate([scenes.mask(index).ravel() for index in range(150)]), minlength=256) / 150 / 96**2
    )
    assert shares[:8].min() > 0.05, "no class is rare"
    assert 0.05 < shares[255] < 0.2
    assert shares[8:255].sum() == 0


def test_no_pixel_is_in_both_splits(photographs: dict[int, Image.Image]) -> None:
    used = {
        split: {value: np.zeros(image.size[::-1], bool) for value, image in photographs.items()} for split in SPLITS
    }
    for split in SPLITS:
        for number in range(MOSAICS.counts[split]):
            for value, _, (left, upper, right, lower) in plan(photographs, split, number):
                width, height = photographs[value].size
                assert 0 <= left < right <= width
                assert 0 <= upper < lower <= height
                used[split][value][upper:lower, left:right] = True
    for value in photographs:
        assert used["train"][value].any()
        assert used["val"][value].any()
        assert not (used["train"][value] & used["val"][value]).any(), MOSAICS.photographs[value]


def test_a_second_build_has_the_same_pixels(
    tmp_path: Path, small: MosaicDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("a", "b"):
        assert mosaics.MOSAICS.build(tmp_path / place)
        assert "its pixels differ" in capsys.readouterr().out, "the pinned checksums are of the whole set"
    first, second = (mosaics.MOSAICS.open("train", tmp_path / place) for place in ("a", "b"))
    assert first.fingerprint == second.fingerprint != mosaics.MOSAICS.open("val", tmp_path / "a").fingerprint
    assert not mosaics.MOSAICS.build(tmp_path / "a"), "what is there is not built again"


def test_an_image_does_not_depend_on_how_many_there_are(tiny_data: Path, tmp_path: Path, small: MosaicDataset) -> None:
    mosaics.MOSAICS.build(tmp_path)
    for kind in ("images", "annotations"):
        for number in range(4):
            path = f"mosaics/{kind}/training/{number:04d}.png"
            assert (tmp_path / path).read_bytes() == (tiny_data / path).read_bytes()


def test_a_build_that_fails_leaves_nothing_that_could_be_taken_for_a_set(
    tmp_path: Path, small: MosaicDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PHOTOGRAPHS, "tissue", "skimage/data/eagle.png")  # scikit-image would download this one
    with pytest.raises(UserError, match=r"skimage/data/eagle\.png is not installed"):
        mosaics.MOSAICS.open("train", tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(mosaics, "MOSAICS", small)
    assert not list(tmp_path.rglob("*.png"))
    assert len(mosaics.MOSAICS.open("train", tmp_path)) == 4
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be built"):
        mosaics.MOSAICS.build(tmp_path / "file")


def _remove_pair(folder: Path) -> None:
    for kind in ("images", "annotations"):
        (folder / kind / "training/0003.png").unlink()


def _add_pair(folder: Path) -> None:
    for kind in ("images", "annotations"):
        shutil.copy(folder / kind / "training/0003.png", folder / kind / "training/more.png")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_remove_pair, r"1 files are missing \(0003\.png\)"),
        (_add_pair, r"1 files were added \(more\.png\)"),
        (lambda folder: (folder / "annotations/training/0003.png").unlink(), "1 images without a mask"),
        (lambda folder: (folder / "images/training/0003.png").unlink(), "1 masks without an image"),
        (lambda folder: (folder / "annotations/training/0003.png").write_bytes(b"other"), "changed in size"),
        (lambda folder: (folder / "images/training/0003.png").write_bytes(b"other"), "changed in size"),
        (lambda folder: shutil.rmtree(folder / "annotations"), "no such folder"),
        (lambda folder: (folder / "manifest.json").unlink(), "holds no manifest.json"),
    ],
)
def test_a_set_that_is_no_longer_whole_is_not_opened(
    tmp_path: Path, small: MosaicDataset, spoil: Callable[[Path], None], told: str
) -> None:
    mosaics.MOSAICS.build(tmp_path)
    spoil(tmp_path / "mosaics")
    with pytest.raises(UserError, match=told) as error:
        mosaics.MOSAICS.open("train", tmp_path)
    assert f"Remove or rename {tmp_path / 'mosaics'}" in str(error.value)


def test_a_set_of_another_version_is_not_mistaken_for_this_ones(
    tmp_path: Path, small: MosaicDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    mosaics.MOSAICS.build(tmp_path)
    monkeypatch.setattr(mosaics, "MOSAICS", replace(small, revision=2))
    with pytest.raises(UserError, match="another version of the suite"):
        mosaics.MOSAICS.open("val", tmp_path)


def test_pixels_changed_within_the_same_size_are_found_by_a_full_check(tiny_data: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_data / "mosaics", tmp_path / "mosaics")
    report = verify("mosaics", tmp_path, full=True)
    assert (report.exit_status, report.problems, report.notes) == (0, [], [])
    files = sorted((tmp_path / "mosaics/images/training").iterdir(), key=lambda file: file.stat().st_size)
    files[-1].write_bytes(files[0].read_bytes().ljust(files[-1].stat().st_size, b"\0"))
    assert verify("mosaics", tmp_path).exit_status == 0
    assert "train: pixels changed since they were written" in verify("mosaics", tmp_path, full=True).problems[0]


def test_a_set_that_is_not_built_is_prepared_and_not_by_a_check(tmp_path: Path, small: MosaicDataset) -> None:
    assert "lutbench data prepare mosaics" in verify("mosaics", tmp_path).problems[0]
    assert not (tmp_path / "mosaics").exists()
    assert "was built" in prepare_set("mosaics", tmp_path).text
    assert "exists already" in prepare_set("mosaics", tmp_path).text


def patches(scenes: SegmentationDataset, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every so many-th image the patches of 16 x 16 pixels that are of one class: their pixels, halved, and the class."""
    found, classes = [], []
    for index in range(0, len(scenes), every):
        image, mask = np.asarray(scenes.image(index).reduce(2), np.float32) / 255, scenes.mask(index)
        for y in range(0, 96, 16):
            for x in range(0, 96, 16):
                values = np.unique(mask[y : y + 16, x : x + 16])
                if len(values) == 1 and values[0] != 255:
                    patch = image[y // 2 : y // 2 + 8, x // 2 : x // 2 + 8]
                    found.append(np.concatenate([patch.ravel(), patch.std((0, 1)), patch.mean((0, 1)) ** 2]))
                    classes.append(values[0])
    return np.stack(found), np.array(classes)


def test_the_classes_can_be_told_from_pixels_but_not_well(tiny_data: Path) -> None:
    model = RidgeClassifier(alpha=10).fit(*patches(mosaics.MOSAICS.open("train", tiny_data), 4))
    assert 0.5 < model.score(*patches(mosaics.MOSAICS.open("val", tiny_data), 2)) < 0.9
