"""tiny's own A, R and O are what they say: wrong for raw pixels, renditions, and pictures of no class."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lutbench.data.folder import open_folder
from lutbench.data.toy.build import check_pixels
from lutbench.data.toy.photographs import BUILT, LEFT_OUT
from lutbench.errors import UserError
from robustness.toy_sets import MOST_WRONG, RENDITIONS, SETS


@pytest.mark.parametrize("name", SETS)
def test_its_pixels_are_the_pinned_ones_and_it_is_built_once(tiny_data: Path, name: str) -> None:
    images = SETS[name].open("test", tiny_data)
    assert (check_pixels(images), len(images)) == (SETS[name].pixels["test"], SETS[name].images)
    assert images.fingerprint == SETS[name].pixels["test"]
    assert images.image(0).size == (64, 64)
    assert not SETS[name].build(tiny_data)


def test_crops_of_a_are_those_whose_nearest_training_crop_is_of_another_class(tiny_data: Path) -> None:
    train, val = (BUILT["photographs"].open(split, tiny_data) for split in ("train", "val"))
    assert train.labels is not None
    assert val.labels is not None
    chosen = SETS["photographs-a"].open("test", tiny_data)
    names = {chosen.image_name(index) for index in range(len(chosen))}
    known = np.stack([_blocks(train.image(index)) for index in range(0, len(train))])
    wrong: dict[int, int] = {}
    for index in range(3, len(val), 23):  # of every class, in all bands
        distances = np.square(known - _blocks(val.image(index))).sum(1)
        right = train.labels[distances.argmin()] == val.labels[index]
        if val.image_name(index) in names:
            assert not right, val.image_name(index)
        elif not right:
            wrong[int(val.labels[index])] = wrong.get(int(val.labels[index]), 0) + 1
    counts = dict(zip(chosen.classes, np.bincount(chosen.labels), strict=True))  # type: ignore[arg-type]
    assert all(counts[val.classes[label]] == MOST_WRONG for label in wrong), "one was left out though there was room"


def _blocks(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Means over blocks of 4 x 4, rounded as Pillow's box filter rounds them: first those of rows, then theirs."""
    rows = (np.asarray(image, np.int64).reshape(64, 16, 4, 3).sum(2) + 2) // 4
    return ((rows.reshape(16, 4, 16, 3).sum(1) + 2) // 4).ravel()


def test_r_has_every_rendition_of_every_class_named_as_in_imagenet_r(tiny_data: Path) -> None:
    images = SETS["photographs-r"].open("test", tiny_data)
    val = BUILT["photographs"].open("val", tiny_data)
    names = [images.image_name(index) for index in range(len(images))]
    assert names == sorted(f"{cls}/{kind}_{k}.png" for cls in val.classes for kind in RENDITIONS for k in range(5))
    crops = {val.image(index).tobytes() for index in range(len(val))}
    assert not crops & {images.image(index).tobytes() for index in range(len(images))}


def test_o_has_pictures_that_are_of_no_class(tiny_data: Path) -> None:
    images = SETS["photographs-o"].open("test", tiny_data)
    assert set(images.classes) == set(LEFT_OUT)
    assert not set(images.classes) & set(BUILT["photographs"].open("val", tiny_data).classes)
    greys = [np.asarray(images.image(index).convert("L"), float).std() for index in range(len(images))]
    assert min(greys) > 2


def test_a_set_that_lost_an_image_says_which_and_what_to_do(tiny_data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_data / "photographs-o", tmp_path / "photographs-o"))
    (folder / "clock" / "0003.png").rename(tmp_path / "kept.png")
    with pytest.raises(UserError, match=r"1 files are missing \(clock/0003.png\)\. Remove or rename"):
        SETS["photographs-o"].open("test", tmp_path)
    (tmp_path / "kept.png").rename(folder / "clock" / "0003.png")
    assert len(open_folder(folder, "o", "test")) == SETS["photographs-o"].images
