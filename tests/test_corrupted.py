"""Corrupted copies on disk: ImageNet-C's layout, the same pixels however they are built, cell by cell whole or not there."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lutbench.data.folder import FolderImages, open_folder
from lutbench.data.toy.build import check_pixels
from lutbench.data.toy.photographs import BUILT
from lutbench.errors import UserError
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness import corrupted
from robustness.corrupted import build_corrupted, prepared
from robustness.corrupted_folder import open_corrupted
from robustness.corruptions import corrupt, draw_of
from robustness.listing import DatasetState, look_for

FORK = multiprocessing.get_context("fork")

NAMES = ["contrast", "gaussian_noise", "frost"]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    """Twelve photographs of two classes."""
    small = replace(BUILT["photographs"], name="small", photographs=("cat", "coins"), counts={"train": 1, "val": 6})
    return small.open("val", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def built(clean: FolderImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three corruptions of it at two severities."""
    folder = tmp_path_factory.mktemp("built") / "small-c"
    assert build_corrupted(clean, folder, NAMES, [2, 5], side=64)
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(built, tmp_path / "small-c")
    return tmp_path / "small-c"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_is_laid_out_as_imagenet_c_and_keeps_names_and_classes(built: Path, clean: FolderImages) -> None:
    assert sorted(path.name for path in built.iterdir() if path.is_dir()) == sorted(NAMES)
    cell = open_corrupted(built, "frost", 5)
    assert (built / "frost/5/cat/0003.png").is_file()
    assert (cell.name, cell.split, cell.classes) == ("small-c", "frost/5", clean.classes)
    assert cell.labels is not None
    assert np.array_equal(cell.labels, np.repeat([0, 1], 6))
    assert [cell.image_name(k) for k in range(12)] == [clean.image_name(k) for k in range(12)]
    for index in (0, 7):
        expected = corrupt(np.asarray(clean.image(index)), "frost", 5, draw_of("frost", 5, index))
        assert np.array_equal(np.asarray(cell.image(index)), expected)


def test_the_robustness_stage_finds_it_whole(built: Path) -> None:
    settings = {"path": built.name, "kind": "corruptions", "severities": [2, 5], "classes": 2, "images": 12}
    found = look_for(RobustnessDatasetRecipe.model_validate(settings), built.parent)
    assert (found.state, found.problems) == (DatasetState.WHOLE, ())
    assert set(found.images) == {f"{name}/{severity}" for name in NAMES for severity in (2, 5)}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_files_come_from_any_number_of_workers(
    built: Path, clean: FolderImages, tmp_path: Path, workers: int
) -> None:
    assert build_corrupted(clean, tmp_path / "small-c", NAMES[::-1], [5, 2], side=64, workers=workers)
    assert contents(tmp_path / "small-c") == contents(built)


def test_some_images_of_each_class_are_corrupted_as_among_all(built: Path, clean: FolderImages, tmp_path: Path) -> None:
    build_corrupted(clean, tmp_path / "some", NAMES, [5], side=64, per_class=3)
    some, every = open_corrupted(tmp_path / "some", "frost", 5), open_corrupted(built, "frost", 5)
    assert some.labels is not None
    assert np.bincount(some.labels).tolist() == [3, 3]
    places = {every.image_name(k): k for k in range(len(every))}
    names = [some.image_name(k) for k in range(len(some))]
    assert names[:3] == ["cat/0000.png", "cat/0002.png", "cat/0005.png"], "evenly spaced"
    assert all(some.image(k) == every.image(places[name]) for k, name in enumerate(names))


def test_what_is_there_is_not_built_again_and_more_can_be_added(copy: Path, clean: FolderImages) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.png")}
    assert not build_corrupted(clean, copy, NAMES, [2, 5], side=64)
    shutil.rmtree(copy / "frost/5")
    assert build_corrupted(clean, copy, [*NAMES, "spatter"], [2, 5], side=64)
    assert len(open_corrupted(copy, "spatter", 2)) == len(open_corrupted(copy, "frost", 5)) == 12
    kept = {path: stamp for path, stamp in before.items() if "frost/5" not in str(path)}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_an_interrupted_build_leaves_whole_cells_and_goes_on(
    built: Path, clean: FolderImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "small-c"
    reached = FORK.Event()

    def slow(image: NDArray[np.uint8], name: str, severity: int, draw: np.random.Generator) -> NDArray[np.uint8]:
        if name == "frost" and (folder / "frost/.2.partial/coins/0002.png").exists():
            reached.set()
            time.sleep(60)
        return corrupt(image, name, severity, draw)

    monkeypatch.setattr(corrupted, "corrupt", slow)
    process = FORK.Process(target=build_corrupted, args=(clean, folder, NAMES, [2, 5]), kwargs={"side": 64})
    process.start()
    assert reached.wait(60)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (folder / "gaussian_noise/5").is_dir()
    with pytest.raises(UserError, match=r"has no frost/2\..* Existing: contrast/2, contrast/5, "):
        open_corrupted(folder, "frost", 2)

    monkeypatch.setattr(corrupted, "corrupt", corrupt)
    assert build_corrupted(clean, folder, NAMES, [2, 5], side=64)
    assert contents(folder) == contents(built), "and nothing is left behind"


def test_processes_that_build_at_once_build_once(built: Path, clean: FolderImages, tmp_path: Path) -> None:
    new = FORK.Queue()

    def work() -> None:
        new.put(build_corrupted(clean, tmp_path / "small-c", NAMES, [2, 5], side=64))

    processes = [FORK.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    assert sorted(new.get(timeout=600) for _ in processes) == [False, False, True]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert contents(tmp_path / "small-c") == contents(built)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda cell: (cell / "cat/0003.png").unlink(), "12 images that were written, found 11"),
        (
            lambda cell: shutil.copy(cell / "cat/0003.png", cell / "cat/more.png"),
            "12 images that were written, found 13",
        ),
        (lambda cell: (cell / "cat/0003.png").write_bytes(b"other"), "or other names or sizes"),
        (lambda cell: (cell / "cat/0003.png").rename(cell / "cat/0009.png"), "or other names or sizes"),
        (lambda cell: (cell / "manifest.json").unlink(), r"has no frost/5.* Build it"),
        (lambda cell: shutil.rmtree(cell), r"has no frost/5\. Did you mean 'frost/2'\?"),
        (lambda cell: (cell.parents[1] / "manifest.json").unlink(), "it is not a corrupted copy"),
        (lambda cell: set_to(cell.parents[1] / "manifest.json", "revision", 0), "another version of the corruptions"),
    ],
)
def test_a_cell_that_is_no_longer_whole_is_not_opened(copy: Path, spoil: Callable[[Path], None], told: str) -> None:
    spoil(copy / "frost/5")
    with pytest.raises(UserError, match=told):
        open_corrupted(copy, "frost", 5)


def set_to(path: Path, key: str, value: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


def test_the_fingerprint_is_of_the_pixels(copy: Path) -> None:
    cell = open_corrupted(copy, "frost", 5)
    assert check_pixels(cell) == cell.fingerprint
    first, second = (copy / f"frost/5/cat/{name}.png" for name in ("0000", "0001"))
    first.write_bytes(second.read_bytes())
    cell = open_corrupted(copy, "frost", 5)
    assert check_pixels(cell) != cell.fingerprint, "changed within the same number of bytes"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"side": 48}, r"other images: it differs in side \(64 before, 48 now\)"),
        ({"side": 64, "per_class": 2}, r"per_class \(None before, 2 now\)"),
    ],
)
def test_a_copy_of_other_images_is_not_added_to(
    copy: Path, clean: FolderImages, changes: dict[str, int], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        build_corrupted(clean, copy, ["fog"], [1], **changes)
    with pytest.raises(UserError, match="source"):
        build_corrupted(replace(clean, fingerprint="0" * 64), copy, ["fog"], [1], side=64)
    assert not (copy / "fog").exists()


def test_cells_of_other_package_versions_are_not_mixed(copy: Path, clean: FolderImages) -> None:
    set_to(copy / "manifest.json", "packages", {"numpy": "1.0"})
    assert not build_corrupted(clean, copy, NAMES, [2, 5], side=64), "whole, so nothing is to be mixed"
    with pytest.raises(UserError, match=r"started with other versions of numpy \(1.0 before, "):
        build_corrupted(clean, copy, ["fog"], [1], side=64)


def test_a_folder_with_something_else_is_left_alone(clean: FolderImages, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(UserError, match=r"is not empty and has no manifest\.json"):
        build_corrupted(clean, tmp_path, ["fog"], [1], side=64)
    assert contents(tmp_path) == {"thesis.txt": b"chapter 1"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cell_that_was_not_built_here_is_left_alone(copy: Path, clean: FolderImages, workers: int) -> None:
    (copy / "frost/5/manifest.json").unlink()
    before = contents(copy)
    with pytest.raises(UserError, match=r"frost/5 has no manifest\.json.* Remove or rename it\.$"):
        build_corrupted(clean, copy, NAMES, [2, 5], side=64, workers=workers)
    assert contents(copy) == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corruption_that_cannot_be_written_is_named(clean: FolderImages, tmp_path: Path, workers: int) -> None:
    build_corrupted(clean, tmp_path / "c", ["contrast"], [1], side=64)
    (tmp_path / "c/fog").write_text("in the way")
    with pytest.raises(UserError, match=r"fog/1 could not be saved \(Not a directory\)"):
        build_corrupted(clean, tmp_path / "c", ["fog"], [1], side=64, workers=workers)


def test_a_folder_that_cannot_be_written_is_named(clean: FolderImages, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be saved"):
        build_corrupted(clean, tmp_path / "file" / "small-c", ["fog"], [1], side=64)


def test_unknown_names_are_refused_before_anything_is_written(clean: FolderImages, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'fog'"):
        build_corrupted(clean, tmp_path / "c", ["contrast", "fogg"], [1], side=64)
    with pytest.raises(UserError, match="no severity 6"):
        build_corrupted(clean, tmp_path / "c", ["fog"], [1, 6], side=64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_stops_the_build_by_its_name_or_is_passed_over(
    clean: FolderImages, tmp_path: Path, workers: int
) -> None:
    shutil.copytree(clean.folder, tmp_path / "val")
    (tmp_path / "val/cat/0001.png").write_bytes(b"no image")
    broken = open_folder(tmp_path / "val", "broken", "val")
    with pytest.raises(UserError, match=r"cat/0001\.png cannot be decoded") as error:
        build_corrupted(broken, tmp_path / "c", ["contrast"], [1], side=64, workers=workers)
    assert "Traceback" not in str(error.value)
    assert not list((tmp_path / "c/contrast").iterdir())
    assert build_corrupted(replace(broken, skip_undecodable=True), tmp_path / "c", ["contrast"], [1], side=64)
    assert len(open_corrupted(tmp_path / "c", "contrast", 1)) == 11


@dataclass
class Listed:
    """Images of one colour under any names."""

    names: list[str]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] = ("a-b", "a")
    name: str = "listed"
    split: str = "val"
    fingerprint: str = "f"
    skip_undecodable: bool = False
    size: tuple[int, int] = field(default=(64, 64))

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", self.size, (20 * index, 0, 0))

    def image_name(self, index: int) -> str:
        return self.names[index]


def test_sets_without_folders_get_class_folders_by_their_labels(tmp_path: Path) -> None:
    images = Listed([f"val/{row:08d}" for row in range(4)], np.array([1, 0, 1, 0]), ("a-b", "a", "empty"))
    build_corrupted(images, tmp_path / "c", ["contrast"], [1], side=64)
    cell = open_corrupted(tmp_path / "c", "contrast", 1)
    assert [cell.image_name(k) for k in range(4)] == [
        *("a/00000000.png", "a/00000002.png", "a-b/00000001.png", "a-b/00000003.png")
    ]
    assert [cell.image(k).getpixel((0, 0)) for k in range(4)] == [(20 * row, 0, 0) for row in (0, 2, 1, 3)]
    assert cell.classes == ("a", "a-b"), "classes without images are left out"
    assert check_pixels(cell) == cell.fingerprint


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (Listed(["x"], None), "has no labels"),
        (Listed(["a/x.png", "a/x.jpg"], np.array([0, 0]), ("a",)), "1 images of class a have the same name as another"),
        (Listed(["x"], np.array([0]), ("a/b",)), "a/b: not a valid name of a class folder"),
    ],
)
def test_sets_that_cannot_be_laid_out_are_refused(images: Listed, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        build_corrupted(images, tmp_path / "c", ["contrast"], [1], side=64)
    assert not list(tmp_path.iterdir())


def test_images_in_deeper_folders_keep_apart(tmp_path: Path) -> None:
    images = Listed(["a/2/x.png", "a/1/x.png"], np.array([0, 0]), ("a",))
    build_corrupted(images, tmp_path / "c", ["contrast"], [1], side=64)
    cell = open_corrupted(tmp_path / "c", "contrast", 1)
    assert [cell.image_name(k) for k in range(2)] == ["a/1_x.png", "a/2_x.png"]
    assert check_pixels(cell) == cell.fingerprint, "in the order of the listing"


def test_larger_images_are_resized_and_cropped_as_for_imagenet_c() -> None:
    rows, columns = np.indices((400, 600))
    image = Image.fromarray(np.stack([rows / 4, columns / 4, rows * 0], -1).astype(np.uint8))
    crop = np.asarray(prepared(image, 224)).astype(float)
    assert crop.shape == (224, 224, 3)
    assert crop[..., 0].mean() * 4 == pytest.approx(200, abs=3), "the centre"
    assert crop[..., 1].mean() * 4 == pytest.approx(300, abs=3)
    assert np.ptp(crop[..., 0]) * 4 == pytest.approx(400 * 224 / 256, abs=8), "224 of 256 pixels of the short side"
    same = Image.new("RGB", (224, 224))
    assert prepared(same, 224) is same
    assert prepared(Image.new("RGB", (30, 50)), 64).size == (64, 64)
