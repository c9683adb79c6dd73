"""A set is checked: what is missing, broken, swapped, in both splits or another set is named, and kept in a manifest."""

import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from image_files import COLOURS, encoded, picture, tree
from PIL import Image
from toy_folders import camvid, flowers, text_of, told

from lutbench.data import integrity
from lutbench.data import verify as verifying
from lutbench.data.catalogue import CATALOGUE, MEASURED_ON, status_of
from lutbench.data.folder import open_folder
from lutbench.data.images import open_dataset
from lutbench.data.manifest import Manifest, manifest_path
from lutbench.data.verify import render_report, verify
from lutbench.files import read_model
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.loading import load_suite
from lutbench.recipes.segmentation import SegmentationRecipe
from lutbench.workspace import Workspace
from robustness.labels import imagenet_1k, known_folders


def test_a_whole_set_passes_its_check(tmp_path: Path) -> None:
    flowers(tmp_path)
    report = verify("flowers17", tmp_path)
    assert report.exit_status == 0
    assert (report.problems, report.notes) == ([], [])
    assert any("train: 1,020 images, 17 classes" in line for line in report.lines)
    assert "whole" in text_of(render_report(report))


def test_a_whole_set_with_masks_passes_its_check(tmp_path: Path) -> None:
    states = {
        status.known.name: status.state for status in (status_of(known, tmp_path) for known in CATALOGUE.values())
    }
    assert (states["camvid"], states["ade20k"], states["mosaics"]) == ("missing", "missing", "built on first use")
    folder = camvid(tmp_path)
    report = verify("camvid", tmp_path)
    assert (report.exit_status, report.problems, report.notes) == (0, [], [])
    assert any("val: 101 images, 11 classes" in line for line in report.lines)
    assert any("train: 256 masks checked" in line for line in report.lines)
    assert {status.known.name: status.state for status in (status_of(known, tmp_path) for known in CATALOGUE.values())}[
        "camvid"
    ] == "here"
    (folder / "annotations/validation").rename(folder / "annotations/elsewhere")
    states = {
        status.known.name: status.state for status in (status_of(known, tmp_path) for known in CATALOGUE.values())
    }
    assert states["camvid"] == "annotations/validation is missing"


def test_a_check_of_a_set_with_masks_names_what_is_wrong(tmp_path: Path) -> None:
    folder = camvid(tmp_path, highest=9)
    report = verify("camvid", tmp_path, full=True)
    assert report.problems == []
    assert report.notes == ["train: no mask has pixels of bicyclist.", "val: no mask has pixels of bicyclist."]
    (folder / "annotations/training/0100.png").write_bytes(encoded(Image.new("L", (6, 4), 11), "png"))
    (folder / "images/training/0366.jpg").write_bytes(b"broken")
    (folder / "annotations/validation/0007.png").unlink()
    report = verify("camvid", tmp_path, full=True)
    assert report.exit_status == 1
    found = " ".join(report.problems)
    assert "0100.png: expected values 0 to 10 and 255, found 11 in 24 pixels" in found
    assert "1 images cannot be decoded: 0366.jpg" in found
    assert "1 images without a mask (0007.jpg)" in found
    (folder / "images/validation/0007.jpg").unlink()
    assert "val, images: expected 101, found 100 (-1)" in " ".join(verify("camvid", tmp_path).problems)


def test_a_check_of_a_sample_looks_at_the_masks_of_all_its_images(tmp_path: Path) -> None:
    folder = camvid(tmp_path)
    (folder / "annotations/validation/0057.png").write_bytes(encoded(Image.new("L", (6, 4), 11), "png"))
    assert "0057.png: expected values" in " ".join(verify("camvid", tmp_path).problems)


@pytest.mark.parametrize("suite", ["camvid", "small"])
def test_the_suites_mean_by_camvid_what_is_checked(suite: str) -> None:
    recipes = [run.recipe.data for run in load_suite(suite).runs if isinstance(run.recipe, SegmentationRecipe)]
    assert recipes
    assert all(recipe == CATALOGUE["camvid"].recipe for recipe in recipes)


def test_an_incomplete_ade20k_is_counted(tmp_path: Path) -> None:
    camvid(tmp_path).rename(tmp_path / "ADEChallengeData2016")
    problems = verify("ade20k", tmp_path).problems
    assert "expected the 20,210 images" in problems[0]
    assert "expected the 2,000 images" in problems[1]


def test_a_check_names_what_is_missing_and_what_is_broken(tmp_path: Path) -> None:
    folder = flowers(tmp_path, val=19)
    (folder / "train/c3/image_0007.jpg").unlink()
    (folder / "train/c5/image_0011.jpg").write_bytes(b"broken")
    report = verify("flowers17", tmp_path, full=True)
    found = " ".join(report.problems)
    assert report.exit_status == 1
    assert "train, images: expected 1,020, found 1,019 (-1)" in found
    assert "val, images: expected 340, found 323 (-17)" in found
    assert "c5/image_0011.jpg" in found
    shutil.rmtree(folder / "val")
    assert "no such folder" in " ".join(verify("flowers17", tmp_path).problems)


def test_a_check_of_a_sample_decodes_evenly_spaced_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "SAMPLE", 5)
    folder = flowers(tmp_path)
    (folder / "train/c9/image_0059.jpg").write_bytes(b"broken")  # the last of the last class in order of names
    report = verify("flowers17", tmp_path)
    assert "1 images cannot be decoded: c9/image_0059.jpg" in " ".join(report.problems)
    assert any("4 of 5 images checked" in line for line in report.lines)
    train = open_folder(folder / "train", "flowers17", "train")
    assert integrity.scan(train, 5).indices.tolist() == [0, 254, 509, 764, 1019]


def test_missing_classes_of_imagenet_are_named(tmp_path: Path) -> None:
    content = encoded(picture(COLOURS["cat"], side=4), "jpeg")
    names = imagenet_1k().names
    for split in ("train", "val"):
        for name in (*names[:100], *names[102:], "toucan"):
            (tmp_path / "imagenet-1k" / split / name).mkdir(parents=True)
            (tmp_path / "imagenet-1k" / split / name / f"{name}_{split}.JPEG").write_bytes(content)
    found = told(verify("imagenet-1k", tmp_path))
    assert "train, classes: expected 1,000, found 999 (-1)" in found
    assert f"val, missing classes: {names[100]}, {names[101]}." in found
    assert "val, folders that are not classes of imagenet-1k: toucan." in found


def test_a_set_half_unpacked_says_where_images_are_missing(tmp_path: Path) -> None:
    folder = flowers(tmp_path)
    for number in range(14, 18):
        shutil.rmtree(folder / f"train/c{number}")
    for k in range(31, 60):
        (folder / f"train/c13/image_{k:04d}.jpg").unlink()
    found = told(verify("flowers17", tmp_path))
    assert "train, classes: expected 17, found 13 (-4)" in found
    assert "found 751 (-269). Smallest classes: c13 (31), c1 (60), c10 (60)." in found
    assert "only in val: c14, c15, c16, c17" in found


def test_swapped_splits_are_called_swapped(tmp_path: Path) -> None:
    flowers(tmp_path, train=20, val=60)
    assert "train and val are probably swapped" in told(verify("flowers17", tmp_path))
    shutil.rmtree(tmp_path / "flowers17")
    flowers(tmp_path, train=21, val=60)
    assert "swapped" not in told(verify("flowers17", tmp_path))


def test_another_year_of_a_set_in_its_place_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for year, images in (("2018", {"train": 9, "val": 6}), ("2019", {"train": 12, "val": 3})):
        recipe = DataRecipe(label=f"species-{year}", path=f"species-{year}")
        known = replace(
            CATALOGUE["flowers17"], name=f"species-{year}", recipe=recipe, classes=3, images=dict[str, int](images)
        )
        monkeypatch.setitem(CATALOGUE, known.name, known)
    for split, count in (("train", 3), ("val", 2)):
        tree(tmp_path / "species-2019" / split, count=count)
    found = told(verify("species-2019", tmp_path))
    assert (
        f"numbers are those of species-2018, not of species-2019: is {tmp_path / 'species-2019'} that dataset?" in found
    )
    (tmp_path / "species-2019").rename(tmp_path / "species-2018")
    assert verify("species-2018", tmp_path).problems == []
    shutil.rmtree(tmp_path / "species-2018/val")
    assert "numbers are those of" not in told(verify("species-2018", tmp_path)), "of train alone, and those are right"


@pytest.mark.parametrize("full", [False, True])
def test_images_that_are_in_both_splits_are_counted_and_named(
    tmp_path: Path, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = flowers(tmp_path)
    assert any("no image is in both splits" in line for line in verify("flowers17", tmp_path, full).lines)
    for source, copy in (("c3/image_0007", "c3/image_0002"), ("c4/image_0050", "c11/image_0019")):
        shutil.copyfile(folder / f"train/{source}.jpg", folder / f"val/{copy}.jpg")
    monkeypatch.setattr(verifying, "SAMPLE", 340)  # all of val
    report = verify("flowers17", tmp_path, full)
    assert report.problems == []
    note = next(note for note in report.notes if "byte for byte" in note)
    assert note.startswith("2 val images are also in train")
    assert "val c3/image_0002.jpg = train c3/image_0007.jpg" in note
    assert "val c11/image_0019.jpg = train c4/image_0050.jpg" in note


def test_a_sample_is_compared_with_files_of_its_sizes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "COMPARED", 2)
    for split, sizes in (("train", (10, 20, 20, 20, 30)), ("val", (20, 40))):
        (tmp_path / split).mkdir()
        for number, size in enumerate(sizes):
            (tmp_path / split / f"{number}.png").write_bytes(b"a" * size)
    train, val = (open_folder(tmp_path / split, "toy", split) for split in ("train", "val"))
    read: list[str] = []

    def content(index: int) -> bytes:
        read.append(train.image_name(index))
        return b"a" * int(train.sizes[index])

    monkeypatch.setattr(train, "content", content)
    looks = integrity.scan(val), integrity.scan(val)
    found = integrity.find_duplicates(train, val, looks)
    assert sorted(read) == ["1.png", "3.png"]
    assert found.pairs == [("0.png", "1.png")]
    assert "2 of 3 of the same size in bytes" in str(found)


def test_images_of_unusual_kinds_are_noted_and_no_problem(tmp_path: Path) -> None:
    folder = flowers(tmp_path)
    red = Image.new("RGB", (4, 4), (250, 10, 20))
    deep = Image.fromarray((np.arange(16, dtype=np.uint16) * 4096).reshape(4, 4))
    kinds = {
        "with a palette": encoded(red.quantize(4), "png"),
        "in CMYK": encoded(red.convert("CMYK"), "jpeg"),
        "of more than 8 bits": encoded(deep, "png"),
        "with transparency": encoded(red.convert("RGBA"), "png"),
        "black and white": encoded(red.convert("1"), "png"),
    }
    for number, content in enumerate([*kinds.values(), encoded(red.convert("L"), "png")]):
        (folder / f"train/c1/image_{number:04d}.jpg").write_bytes(content)
    report = verify("flowers17", tmp_path, full=True)
    assert report.problems == []
    expected = {
        f"train: 1 images are {kind}; they are converted to RGB: c1/image_{number:04d}.jpg."
        for number, kind in enumerate(kinds)
    }
    assert set(report.notes) == expected


def test_an_empty_file_is_found_even_where_only_a_sample_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "SAMPLE", 2)
    folder = flowers(tmp_path)
    (folder / "train/c2/image_0030.jpg").write_bytes(b"")
    assert "train: 1 files are empty: c2/image_0030.jpg." in told(verify("flowers17", tmp_path))
    whole = encoded(picture(COLOURS["cat"], side=64), "jpeg")
    (folder / "val/c2/image_0003.jpg").write_bytes(whole[:900])
    report = verify("flowers17", tmp_path, full=True)
    assert "val: 1 images cannot be decoded: c2/image_0003.jpg." in report.problems
    assert "train: 1,019 of 1,020 images checked can be decoded" in report.lines


def test_links_in_a_circle_are_a_problem_and_names_that_are_not_utf_8_are_none(tmp_path: Path) -> None:
    folder = flowers(tmp_path)
    try:
        (folder / "val/c1/image_0000.jpg").rename(f"{folder}/val/c1/\udce9.jpg")
        for split in ("train", "val"):
            (folder / split / "c2").rename(f"{folder}/{split}/c2\udce9")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (folder / "val/c1/image_0001.jpg").write_bytes(b"broken")
    (folder / "val/c2\udce9/image_0001.jpg").write_bytes(b"")
    report = verify("flowers17", tmp_path, full=True)
    assert "c2\\xe9/image_0001.jpg" in told(report)
    text_of(render_report(report)).encode()
    (folder / "val/c2\udce9/round").symlink_to(folder / "val")
    report = verify("flowers17", tmp_path)
    assert "round is a link to a folder that contains it" in told(report)
    text_of(render_report(report)).encode()


# Manifests


def test_a_manifest_has_the_fingerprints_that_runs_and_records_have(tmp_path: Path) -> None:
    folder = flowers(tmp_path)
    (folder / "train/c2/image_0030.jpg").write_bytes(b"")
    report = verify("flowers17", tmp_path, full=True)
    path = tmp_path / ".lutbench/flowers17.json"
    assert any(str(path) in line for line in report.lines)
    manifest = json.loads(path.read_text())
    workspace = Workspace(tmp_path, tmp_path / "runs", tmp_path / "results")
    recipe = DataRecipe(label="flowers17", path="flowers17")
    assert (manifest["set"], set(manifest["splits"])) == ("flowers17", {"train", "val"})
    for split, facts in manifest["splits"].items():
        assert facts["fingerprint"] == workspace.open(recipe, split).fingerprint
        images = open_dataset(recipe, split, tmp_path)
        assert (facts["images"], facts["classes"], facts["looked_at"]) == (len(images), 17, len(images))
        assert facts["bytes"] == sum(file.stat().st_size for file in (folder / split).rglob("*.jpg"))
    assert manifest["splits"]["train"]["undecodable_names"] == ["c2/image_0030.jpg"]


def test_a_second_check_says_whether_anything_changed(tmp_path: Path) -> None:
    folder = flowers(tmp_path)
    assert any(line.startswith("manifest: ") for line in verify("flowers17", tmp_path).lines)
    again = verify("flowers17", tmp_path)
    assert any(line.startswith("unchanged since ") for line in again.lines)
    assert again.notes == []
    (folder / "train/c1/image_0001.jpg").unlink()
    shutil.rmtree(folder / "val/c17")
    (note,) = [note for note in verify("flowers17", tmp_path).notes if note.startswith("Changed since the check on ")]
    assert "train: 1,019 images (-1), " in note
    assert "val: 320 images (-20), 16 classes (-1), " in note
    assert not any("Changed" in note for note in verify("flowers17", tmp_path).notes)
    (folder / "train/c1/image_0002.jpg").rename(folder / "train/c1/other.jpg")
    (note,) = [note for note in verify("flowers17", tmp_path).notes if "Changed" in note]
    assert "train: same number of images, classes and bytes, but other names" in note
    assert "val" not in note
    shutil.rmtree(folder / "val")
    assert any("val can no longer be opened" in note for note in verify("flowers17", tmp_path).notes)


def test_what_a_full_check_found_outlives_the_check_of_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "SAMPLE", 2)
    folder = flowers(tmp_path)
    (folder / "train/c2/image_0030.jpg").write_bytes(b"broken")
    verify("flowers17", tmp_path, full=True)
    report = verify("flowers17", tmp_path)
    manifest = read_model(manifest_path("flowers17", tmp_path), Manifest)
    assert manifest is not None
    assert manifest.looked_at == 1360
    assert report.exit_status == 1
    assert "1 images could not be decoded in the check on" in told(report)
    assert "c2/image_0030.jpg" in told(report)


@pytest.mark.parametrize("content", ["", "[]", "[" * 200_000, '{"set": "flowers17", "later": 1}'])
def test_a_manifest_that_cannot_be_read_is_written_anew(tmp_path: Path, content: str) -> None:
    flowers(tmp_path)
    (tmp_path / ".lutbench").mkdir()
    manifest_path("flowers17", tmp_path).write_text(content)
    report = verify("flowers17", tmp_path)
    assert report.exit_status == 0
    assert [note for note in report.notes if "flowers17.json could not be read and is written again" in note]
    assert read_model(manifest_path("flowers17", tmp_path), Manifest) is not None


def test_a_check_goes_on_where_nothing_can_be_written(tmp_path: Path) -> None:
    flowers(tmp_path)
    (tmp_path / ".lutbench").write_text("a file where a folder should be")
    report = verify("flowers17", tmp_path)
    assert report.exit_status == 0
    assert [note for note in report.notes if "flowers17.json could not be written: " in note]


# Shifted sets


def shifted(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ImageNet-A's layout with one image for each class."""
    published = MEASURED_ON["imagenet-a"]
    recipe = published.recipe.model_copy(update={"images": 200})
    monkeypatch.setitem(CATALOGUE, "imagenet-a", replace(published, recipe=recipe))
    for name in known_folders("imagenet-1k", "imagenet-a") or ():
        (root / "imagenet-a" / name).mkdir(parents=True)
        picture(COLOURS["cat"], side=4).save(root / "imagenet-a" / name / "0.jpg")
    return root / "imagenet-a"


def test_a_shifted_set_is_checked_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = verify("imagenet-a", tmp_path)
    assert "How to get it: lutbench data list imagenet-a" in told(report)
    assert not manifest_path("imagenet-a", tmp_path).exists()
    folder = shifted(tmp_path, monkeypatch)
    report = verify("imagenet-a", tmp_path)
    assert report.problems == []
    assert any("200 images, 200 classes" in line for line in report.lines)
    workspace = Workspace(tmp_path, tmp_path / "runs", tmp_path / "results")
    manifest = read_model(manifest_path("imagenet-a", tmp_path), Manifest)
    assert manifest is not None
    assert manifest.fingerprint == workspace.open(MEASURED_ON["imagenet-a"].recipe, "test").fingerprint
    (folder / "n01498041/0.jpg").write_bytes(b"broken")
    shutil.rmtree(folder / "n01531178")
    found = told(verify("imagenet-a", tmp_path))
    assert "n01498041/0.jpg" in found
    assert "expected 200 classes, found 199; missing: n01531178" in found


def test_every_part_of_a_shifted_set_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = MEASURED_ON["imagenet-c"]
    small = {"corruptions": ["fog", "snow"], "severities": [1, 2], "images": 1000, "alexnet": False}
    monkeypatch.setitem(CATALOGUE, "imagenet-c", replace(published, recipe=published.recipe.model_copy(update=small)))
    content = encoded(picture(COLOURS["cat"], side=4), "jpeg")
    for cell in ("fog/1", "fog/2", "snow/1", "snow/2"):
        for name in imagenet_1k().names:
            (tmp_path / "imagenet-c" / cell / name).mkdir(parents=True)
            (tmp_path / "imagenet-c" / cell / name / "0.JPEG").write_bytes(content)
    (tmp_path / "imagenet-c/snow/2/n01440764/0.JPEG").write_bytes(b"broken")
    report = verify("imagenet-c", tmp_path)
    assert "4,000 images in 4 parts, 1,000 classes" in report.lines[0]
    assert report.lines[1] == "255 of 256 images checked can be decoded"
    assert report.problems == ["snow/2: 1 images cannot be decoded: n01440764/0.JPEG."]


# A million files


def test_listing_takes_little_memory_for_every_file(tmp_path: Path) -> None:
    for number in range(20):
        folder = tmp_path / f"n{number:08d}"
        folder.mkdir()
        for k in range(1000):
            (folder / f"n{number:08d}_{k}.JPEG").touch()
    tracemalloc.start()
    try:
        images = open_folder(tmp_path, "toy", "train")
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(images) == 20_000
    assert kept / len(images) < 80, "a name and three numbers"
    assert peak / len(images) < 200, "never an object for every file at once"
