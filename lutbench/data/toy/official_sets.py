"""Sets in miniature, as their authors' archives unpack: three classes of drawn images, with the official lists.

A function for each format of :data:`lutbench.data.official.FORMATS`, called with the set's folder, how many images ``each`` class has in each split,
the ``side`` of the images in pixels, and the names of the two splits. Image ``k`` is of class ``k % 3``; the first half is for training.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbench.data.toy.drawn import save_drawn, write_lines

CLASSES = 3

Writer = Callable[[Path, int, int, tuple[str, str]], None]


def _cub(home: Path, each: int, side: int, splits: tuple[str, str]) -> None:
    names, half = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"], CLASSES * each
    files = [f"{names[k % 3]}/{names[k % 3][4:]}_{k:04d}.jpg" for k in range(2 * half)]
    for k, file in enumerate(files):
        save_drawn(home / "images" / file, k % 3, k, side)
    write_lines(home / "classes.txt", [f"{k + 1} {name}" for k, name in enumerate(names)])
    write_lines(home / "images.txt", [f"{k + 1} {file}" for k, file in enumerate(files)])
    write_lines(home / "image_class_labels.txt", [f"{k + 1} {k % 3 + 1}" for k in reversed(range(2 * half))])
    write_lines(home / "train_test_split.txt", [f"{k + 1} {int(k < half)}" for k in range(2 * half)])


def _cars(home: Path, each: int, side: int, splits: tuple[str, str]) -> None:
    from scipy.io import savemat  # here and below, because it takes long to import

    half, boxes = CLASSES * each, dict.fromkeys(("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), 0)

    def annotations(images: range) -> NDArray[np.void]:
        rows: list[dict[str, Any]] = [{**boxes, "class": k % 3 + 1, "fname": f"{k:05d}.jpg"} for k in images]
        return np.array([tuple(row.values()) for row in rows], dtype=[(name, object) for name in rows[0]])

    for k in range(2 * half):
        save_drawn(home / ("cars_train" if k < half else "cars_test") / f"{k:05d}.jpg", k % 3, k, side)
    (home / "devkit").mkdir()
    savemat(home / "devkit/cars_meta.mat", {"class_names": np.array(["Acura TL", "BMW M3", "Fiat 500"], object)})
    savemat(home / "devkit/cars_train_annos.mat", {"annotations": annotations(range(half))})
    savemat(home / "cars_test_annos_withlabels.mat", {"annotations": annotations(range(half, 2 * half))})


def _aircraft(home: Path, each: int, side: int, splits: tuple[str, str]) -> None:
    names, half, data = ["707-320", "A300B4", "DC-3"], CLASSES * each, home / "data"
    for k in range(2 * half):
        save_drawn(data / f"images/{k:07d}.jpg", k % 3, k, side, banner=20)
    write_lines(data / "variants.txt", names)
    for number, split in enumerate(splits):
        some = range(number * half, (number + 1) * half)
        write_lines(data / f"images_variant_{split}.txt", [f"{k:07d} {names[k % 3]}" for k in some])


def _flowers102(home: Path, each: int, side: int, splits: tuple[str, str]) -> None:
    """Write train, val and test: of each class as many in each, in no order."""
    from scipy.io import savemat

    count = 3 * CLASSES * each
    for k in range(count):
        save_drawn(home / f"jpg/image_{k + 1:05d}.jpg", k % 3, k, side)
    parts = [[9 * block + k for block in range(each) for k in some] for some in ((1, 3, 8), (9, 2, 7), (4, 5, 6))]
    savemat(home / "setid.mat", {"trnid": [parts[0]], "valid": [parts[1]], "tstid": [parts[2]]})
    savemat(home / "imagelabels.mat", {"labels": [[k % 3 + 1 for k in range(count)]]})


def _pets(home: Path, each: int, side: int, splits: tuple[str, str]) -> None:
    names, half = ["Abyssinian", "american_bulldog", "Birman"], CLASSES * each
    for k in range(2 * half):
        save_drawn(home / f"images/{names[k % 3]}_{k}.jpg", k % 3, k, side)
    for number, split in enumerate(splits):
        some = range(number * half, (number + 1) * half)
        write_lines(home / f"annotations/{split}.txt", [f"{names[k % 3]}_{k} {k % 3 + 1} 1 1" for k in some])


def _dogs(home: Path, each: int, side: int, splits: tuple[str, str]) -> None:
    from scipy.io import savemat

    names = ["n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02085936-Maltese_dog"]
    half = CLASSES * each
    files = [f"{names[k % 3]}/{names[k % 3][:9]}_{k}.jpg" for k in range(2 * half)]
    for k, file in enumerate(files):
        save_drawn(home / "Images" / file, k % 3, k, side)
    for split, some in (("train", range(half)), ("test", range(half, 2 * half))):
        listed = np.array([files[k] for k in some], object)[:, None]
        savemat(home / f"{split}_list.mat", {"file_list": listed, "labels": [[k % 3 + 1] for k in some]})


def _inaturalist(home: Path, each: int, side: int, splits: tuple[str, str]) -> None:
    """Write the lists of the splits, such as ``train2018``: of two species one name, and numbers that are in no order."""
    half = CLASSES * each
    folder = f"train_val{splits[0].removeprefix('train')}"
    categories = [{"id": k, "name": name} for k, name in ((7, "Apis mellifera"), (2, "Rana"), (5, "Rana"))]
    for number, split in enumerate(splits):
        files = {k: f"{folder}/Insecta/{(2, 5, 7)[k % 3]}/{k}.jpg" for k in range(number * half, (number + 1) * half)}
        for k, file in files.items():
            save_drawn(home / file, k % 3, k, side)
        content = {
            "images": [{"id": 100 + k, "file_name": file} for k, file in files.items()],
            "annotations": [{"id": k, "image_id": 100 + k, "category_id": (2, 5, 7)[k % 3]} for k in reversed(files)],
            "categories": categories,
        }
        (home / f"{split}.json").write_text(json.dumps(content))


def _food101(home: Path, each: int, side: int, splits: tuple[str, str]) -> None:
    names, half = ["apple_pie", "baby_back_ribs", "baklava"], CLASSES * each
    (home / "meta").mkdir(parents=True)
    for split, some in (("train", range(half)), ("test", range(half, 2 * half))):
        for k in some:
            save_drawn(home / f"images/{names[k % 3]}/{k}.jpg", k % 3, k, side)
        content = {name: [f"{name}/{k}" for k in some if names[k % 3] == name] for name in names}
        (home / f"meta/{split}.json").write_text(json.dumps(content))


def _dtd(home: Path, each: int, side: int, splits: tuple[str, str]) -> None:
    """Write the first partition's train, val and test."""
    names, part = ["banded", "blotchy", "braided"], CLASSES * each
    files = [f"{names[k % 3]}/{names[k % 3]}_{k:04d}.jpg" for k in range(3 * part)]
    for k, file in enumerate(files):
        save_drawn(home / "dtd/images" / file, k % 3, k, side)
    for number, name in enumerate(("train1", "val1", "test1")):
        write_lines(home / f"dtd/labels/{name}.txt", files[part * number : part * (number + 1)])


def _places365(home: Path, each: int, side: int, splits: tuple[str, str]) -> None:
    names, half = ["/a/airfield", "/a/alcove", "/b/bar"], CLASSES * each
    for k in range(half):
        save_drawn(home / f"data_large_standard{names[k % 3]}/{k:08d}.jpg", k % 3, k, side)
        save_drawn(home / f"val_large/Places365_val_{k:08d}.jpg", k % 3, half + k, side)
    write_lines(home / "categories_places365.txt", [f"{name} {k}" for k, name in enumerate(names)])
    write_lines(home / "places365_train_standard.txt", [f"{names[k % 3]}/{k:08d}.jpg {k % 3}" for k in range(half)])
    write_lines(home / "places365_val.txt", [f"Places365_val_{k:08d}.jpg {k % 3}" for k in range(half)])


WRITERS: dict[str, Writer] = {
    "cub": _cub, "cars": _cars, "aircraft": _aircraft, "flowers102": _flowers102, "pets": _pets, "dogs": _dogs,
    "inaturalist": _inaturalist, "food101": _food101, "dtd": _dtd, "places365": _places365,
}  # fmt: skip
"""By a recipe's source."""
