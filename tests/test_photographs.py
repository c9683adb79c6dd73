"""The two sets built from installed photographs: whole or not there, the same everywhere, and fair."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import RidgeClassifier

from lutbench.data.images import check_pair, open_dataset
from lutbench.data.prepare import prepare_set
from lutbench.data.toy import photographs
from lutbench.data.toy.photographs import BUILT, LEFT_OUT, PHOTOGRAPHS, crops, load_photograph, parts
from lutbench.data.verify import verify
from lutbench.errors import UserError
from lutbench.recipes.base import DataRecipe

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a set that is built in no time."""
    built = replace(BUILT["photographs"], name="small", photographs=("cat", "coins"), counts={"train": 6, "val": 2})
    monkeypatch.setitem(BUILT, "small", built)
    return "small"


@pytest.mark.parametrize("name", BUILT)
def test_the_pixels_are_those_of_the_published_records(tiny_data: Path, name: str) -> None:
    manifest = json.loads((tiny_data / name / "manifest.json").read_text())
    assert {split: facts["pixels"] for split, facts in manifest["splits"].items()} == BUILT[name].pixels


@pytest.mark.parametrize("name", BUILT)
def test_a_set_is_laid_out_as_imagenet_and_opens_like_any(tiny_data: Path, name: str) -> None:
    train, val = (open_dataset(DataRecipe(source=name), split, tiny_data) for split in ("train", "val"))
    check_pair(train, val)
    built = BUILT[name]
    assert train.classes == val.classes == built.classes
    assert len(train) == built.counts["train"] * len(built.classes)
    for images in (train, val):
        assert images.labels is not None
        assert set(np.bincount(images.labels)) == {built.counts[images.split]}
        image = images.image(len(images) - 1)
        assert (image.size, image.mode) == ((64, 64), "RGB")
        assert (tiny_data / name / images.split / images.image_name(0)).is_file()
    assert train.fingerprint == built.pixels["train"] != val.fingerprint


@pytest.mark.parametrize("name", BUILT)
def test_no_pixel_is_in_both_splits(name: str) -> None:
    built = BUILT[name]
    for photograph in built.photographs:
        size = load_photograph(PHOTOGRAPHS[photograph]).size
        used = {split: np.zeros(size[::-1], bool) for split in ("train", "val")}
        classes_of = np.zeros(size[::-1], int)
        for cls in (cls for cls, own in built.regions() if own == photograph):
            of_class = np.zeros(size[::-1], bool)
            for split, boxes in parts(built, cls, size).items():
                for left, upper, right, lower in crops(built, cls, split, boxes):
                    assert 0 <= left < right <= size[0]
                    assert 0 <= upper < lower <= size[1]
                    assert built.sides[0] <= right - left == lower - upper <= built.sides[1]
                    used[split][upper:lower, left:right] = True
                    of_class[upper:lower, left:right] = True
            classes_of += of_class
        assert not (used["train"] & used["val"]).any(), photograph
        assert classes_of.max() == 1, "two classes share a pixel"


def test_the_gap_between_the_splits_is_kept() -> None:
    for built in BUILT.values():
        boxes = parts(built, built.classes[0], (512, 400))
        edges = sorted((box[0], box[2]) for part in boxes.values() for box in part)
        assert [after[0] - before[1] for before, after in itertools.pairwise(edges)] == [built.gap] * 3


def test_a_second_build_has_the_same_pixels(tmp_path: Path, small: str, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("a", "b"):
        assert BUILT[small].build(tmp_path / place)
        assert "its pixels differ" in capsys.readouterr().out, "the pinned checksums are of the whole set"
    first, second = (BUILT[small].open("train", tmp_path / place) for place in ("a", "b"))
    assert first.fingerprint == second.fingerprint
    assert all(np.array_equal(first.image(k), second.image(k)) for k in range(len(first)))
    assert not BUILT[small].build(tmp_path / "a"), "what is there is not built again"


def test_an_interrupted_build_is_never_taken_for_a_whole_one(
    tmp_path: Path, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = photographs.load_photograph
    reached = FORK.Event()

    def slow(file: str) -> Image.Image:
        if "coins" in file:
            reached.set()
            time.sleep(60)
        return original(file)

    monkeypatch.setattr(photographs, "load_photograph", slow)
    process = FORK.Process(target=BUILT[small].build, args=(tmp_path,))
    process.start()
    assert reached.wait(30)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / small).exists()
    left = list(tmp_path.rglob("*.png"))
    assert left, "the build was under way"

    monkeypatch.setattr(photographs, "load_photograph", original)
    assert len(BUILT[small].open("train", tmp_path)) == 12
    assert {path for path in tmp_path.iterdir() if path.is_dir()} == {tmp_path / small}, "what was left behind is gone"


def _build_at(start: Event, name: str, root: Path, new: "multiprocessing.queues.Queue[bool]") -> None:
    start.wait()
    new.put(BUILT[name].build(root))


def test_processes_that_build_at_once_build_once(tmp_path: Path, small: str) -> None:
    start, new = FORK.Event(), FORK.Queue()
    processes = [FORK.Process(target=_build_at, args=(start, small, tmp_path, new)) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    assert sorted(new.get(timeout=600) for _ in processes) == [False, False, True]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(BUILT[small].open("val", tmp_path)) == 4


@pytest.fixture
def copy(tiny_data: Path, tmp_path: Path) -> Path:
    """A data tiny_data with a copy of the tiles that a test may spoil."""
    shutil.copytree(tiny_data / "photograph-tiles", tmp_path / "photograph-tiles")
    return tmp_path


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "0003.png").unlink(), r"1 files are missing \(astronaut-ne/0003.png\)"),
        (lambda folder: shutil.rmtree(folder), "100 files are missing"),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "no images in class folder astronaut-ne"),
        (lambda folder: shutil.copy(folder / "0003.png", folder / "more.png"), "1 files were added"),
        (lambda folder: (folder / "0003.png").write_bytes(b"other"), "changed in size"),
        (lambda folder: shutil.rmtree(folder.parent), "no such folder"),
        (lambda folder: (folder.parents[1] / "manifest.json").unlink(), "holds no manifest.json"),
    ],
)
def test_a_set_that_is_no_longer_whole_is_not_opened(copy: Path, spoil: object, told: str) -> None:
    spoil(copy / "photograph-tiles/train/astronaut-ne")  # type: ignore[operator]
    with pytest.raises(UserError, match=told) as error:
        BUILT["photograph-tiles"].open("train", copy)
    assert f"Remove or rename {copy / 'photograph-tiles'}" in str(error.value)


def test_pixels_changed_within_the_same_size_are_found_by_a_full_check(copy: Path) -> None:
    files = sorted((copy / "photograph-tiles/train/tissue-sw").iterdir(), key=lambda file: file.stat().st_size)
    files[-1].write_bytes(files[0].read_bytes().ljust(files[-1].stat().st_size, b"\0"))
    assert verify("photograph-tiles", copy).exit_status == 0
    report = verify("photograph-tiles", copy, full=True)
    assert report.exit_status == 1
    assert "pixels changed since they were written" in report.problems[0]


def test_a_set_of_another_version_is_not_mistaken_for_this_ones(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = replace(BUILT["photograph-tiles"], revision=2)
    monkeypatch.setitem(BUILT, "photograph-tiles", changed)
    with pytest.raises(UserError, match="another version of the suite"):
        BUILT["photograph-tiles"].open("val", copy)


def test_a_full_check_of_a_whole_set_passes(copy: Path) -> None:
    report = verify("photograph-tiles", copy, full=True)
    assert (report.exit_status, report.problems, report.notes) == (0, [], [])


def test_a_set_that_is_not_built_is_prepared_and_not_by_a_check(tmp_path: Path) -> None:
    assert verify("photographs", tmp_path).exit_status == 1
    assert not (tmp_path / "photographs").exists()


def test_preparing_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(BUILT["photographs"], photographs=("cat",), counts={"train": 1, "val": 1})
    monkeypatch.setitem(BUILT, "photographs", tiny)
    assert "was built" in prepare_set("photographs", tmp_path).text
    assert "exists already" in prepare_set("photographs", tmp_path).text


def test_a_photograph_that_is_not_installed_is_named_and_not_downloaded(
    tmp_path: Path, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PHOTOGRAPHS, "coins", "skimage/data/eagle.png")  # scikit-image would download this one
    with pytest.raises(
        UserError, match=r"skimage/data/eagle\.png is not installed .*pip install --force-reinstall scikit-image"
    ):
        BUILT[small].build(tmp_path)
    assert not list(tmp_path.rglob("*.png"))


def test_a_data_root_that_cannot_be_written_is_named(tmp_path: Path, small: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be built"):
        BUILT[small].build(tmp_path / "file")


def test_pictures_kept_for_later_are_installed_and_in_no_class() -> None:
    assert not set(LEFT_OUT.values()) & set(PHOTOGRAPHS.values())
    for file in LEFT_OUT.values():
        if not file.endswith(".npy"):
            assert load_photograph(file).mode == "RGB"


def pixels_of(root: Path, name: str, split: str, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Every so many-th image as 16 x 16 x 3 numbers, and its class."""
    images = BUILT[name].open(split, root)
    assert images.labels is not None
    indices = range(0, len(images), every)
    small = [np.asarray(images.image(k).reduce(4), np.float32).ravel() / 255 - 0.5 for k in indices]
    return np.stack(small), images.labels[list(indices)]


def test_the_tasks_can_be_learnt_from_pixels_but_not_well_and_the_tiles_less(tiny_data: Path) -> None:
    accuracy = {}
    for name in BUILT:
        model = RidgeClassifier(alpha=100).fit(*pixels_of(tiny_data, name, "train", 4))
        accuracy[name] = model.score(*pixels_of(tiny_data, name, "val", 2))
    assert 0.25 < accuracy["photographs"] < 0.6
    assert 2 / 24 < accuracy["photograph-tiles"] < accuracy["photographs"] - 0.05
