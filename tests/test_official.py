"""Sets in their authors' layouts are opened with their official splits, and what is missing is named."""

import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from image_files import picture
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import DTD, Flowers102, Places365
from torchvision.datasets.utils import calculate_md5

from lutbench.data.catalogue import CATALOGUE
from lutbench.data.images import ImageDataset, UndecodableImage, check_pair, open_dataset
from lutbench.data.official import FORMATS, _sizes
from lutbench.data.prepare import prepare_set
from lutbench.errors import UserError
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.loading import load_suite

Patch = pytest.MonkeyPatch


def jpeg(path: Path, number: int, banner: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph = picture((20 * number % 250, 90, 40), number)
    whole = Image.new("RGB", (photograph.width, photograph.height + banner))
    whole.paste(photograph)
    whole.save(path, quality=95)


def lines(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in texts))


# The sets as they unpack: in each, six images of three classes; which are for training differs


def cub(root: Path, patch: Patch) -> None:
    home = root / "CUB_200_2011"
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]
    files = [f"{names[k % 3]}/{names[k % 3][4:]}_{k:04d}.jpg" for k in range(6)]
    for k, file in enumerate(files):
        jpeg(home / "images" / file, k)
    lines(home / "classes.txt", *(f"{k + 1} {name}" for k, name in enumerate(names)))
    lines(home / "images.txt", *(f"{k + 1} {file}" for k, file in enumerate(files)))
    lines(home / "image_class_labels.txt", *(f"{k + 1} {k % 3 + 1}" for k in reversed(range(6))))
    lines(home / "train_test_split.txt", *(f"{k + 1} {int(k < 3)}" for k in range(6)))


def cars(root: Path, patch: Patch) -> None:
    home, boxes = root / "stanford_cars", dict.fromkeys(("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), 0)

    def annotations(images: list[int]) -> np.ndarray:
        rows = [{**boxes, "class": k % 3 + 1, "fname": f"{k:05d}.jpg"} for k in images]
        kinds = [(name, object) for name in rows[0]]
        return np.array([tuple(row.values()) for row in rows], dtype=kinds)

    for k in range(6):
        jpeg(home / ("cars_train" if k < 3 else "cars_test") / f"{k:05d}.jpg", k)
    (home / "devkit").mkdir()
    savemat(home / "devkit/cars_meta.mat", {"class_names": np.array(["Acura TL", "BMW M3", "Fiat 500"], object)})
    savemat(home / "devkit/cars_train_annos.mat", {"annotations": annotations([0, 1, 2])})
    savemat(home / "cars_test_annos_withlabels.mat", {"annotations": annotations([3, 4, 5])})


def aircraft(root: Path, patch: Patch) -> None:
    home, names = root / "fgvc-aircraft-2013b/data", ["707-320", "A300B4", "DC-3"]
    for k in range(6):
        jpeg(home / f"images/{k:07d}.jpg", k, banner=20)
    lines(home / "variants.txt", *names)
    lines(home / "images_variant_trainval.txt", *(f"{k:07d} {names[k]}" for k in range(3)))
    lines(home / "images_variant_test.txt", *(f"{k:07d} {names[k % 3]}" for k in range(3, 6)))


def flowers102(root: Path, patch: Patch) -> None:
    home = root / "flowers-102"
    for k in range(1, 10):
        jpeg(home / f"jpg/image_{k:05d}.jpg", k)
    savemat(home / "setid.mat", {"trnid": [[1, 3, 8]], "valid": [[9, 2, 7]], "tstid": [[4, 5, 6]]})
    savemat(home / "imagelabels.mat", {"labels": [[1, 2, 3, 1, 2, 3, 1, 2, 3]]})
    kept = {part: (name, md5) for part, (name, md5) in Flowers102._file_dict.items()}
    for part in ("label", "setid"):
        kept[part] = (kept[part][0], calculate_md5(home / kept[part][0]))
    patch.setattr(Flowers102, "_file_dict", kept)


def pets(root: Path, patch: Patch) -> None:
    home, names = root / "oxford-iiit-pet", ["Abyssinian", "american_bulldog", "Birman"]
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for k in range(6):
        jpeg(home / f"images/{names[k % 3]}_{k}.jpg", k)
        lists["trainval" if k < 3 else "test"].append(f"{names[k % 3]}_{k} {k % 3 + 1} 1 1")
    for name, texts in lists.items():
        lines(home / f"annotations/{name}.txt", *texts)


def dogs(root: Path, patch: Patch) -> None:
    home, names = root / "stanford-dogs", ["n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02085936-Maltese_dog"]
    files = [f"{names[k % 3]}/{names[k % 3][:9]}_{k}.jpg" for k in range(6)]
    for k, file in enumerate(files):
        jpeg(home / "Images" / file, k)
    for split, some in (("train", [0, 1, 2]), ("test", [3, 4, 5])):
        content = {
            "file_list": np.array([files[k] for k in some], object)[:, None], "labels": [[k % 3 + 1] for k in some]
        }  # fmt: skip
        savemat(home / f"{split}_list.mat", content)


def inaturalist(root: Path, patch: Patch, year: int = 2018) -> None:
    home = root / f"inaturalist-{year}"
    categories = [{"id": k, "name": name} for k, name in ((7, "Apis mellifera"), (2, "Rana"), (5, "Rana"))]
    for split, some in (("train", [0, 1, 2]), ("val", [3, 4, 5])):
        files = {k: f"train_val{year}/Insecta/{(2, 5, 7)[k % 3]}/{k}.jpg" for k in some}
        for k, file in files.items():
            jpeg(home / file, k)
        content = {
            "images": [{"id": 100 + k, "file_name": file} for k, file in files.items()],
            "annotations": [{"id": k, "image_id": 100 + k, "category_id": (2, 5, 7)[k % 3]} for k in reversed(some)],
            "categories": categories,
        }
        (home / f"{split}{year}.json").write_text(json.dumps(content))


def food101(root: Path, patch: Patch) -> None:
    home, names = root / "food-101", ["apple_pie", "baby_back_ribs", "baklava"]
    (home / "meta").mkdir(parents=True)
    for split, some in (("train", range(3)), ("test", range(3, 6))):
        for k in some:
            jpeg(home / f"images/{names[k % 3]}/{k}.jpg", k)
        (home / f"meta/{split}.json").write_text(json.dumps({names[k % 3]: [f"{names[k % 3]}/{k}"] for k in some}))


def dtd(root: Path, patch: Patch) -> None:
    home, names = root / "dtd/dtd", ["banded", "blotchy", "braided"]
    files = [f"{names[k % 3]}/{names[k % 3]}_{k:04d}.jpg" for k in range(9)]
    for k, file in enumerate(files):
        jpeg(home / "images" / file, k)
    for part, name in enumerate(("train1", "val1", "test1")):
        lines(home / f"labels/{name}.txt", *files[3 * part : 3 * part + 3])


def places365(root: Path, patch: Patch) -> None:
    home, names = root / "places365", ["/a/airfield", "/a/alcove", "/b/bar"]
    for k in range(3):
        jpeg(home / f"data_large_standard{names[k]}/{k:08d}.jpg", k)
        jpeg(home / f"val_large/Places365_val_{k:08d}.jpg", 3 + k)
    lines(home / "categories_places365.txt", *(f"{name} {k}" for k, name in enumerate(names)))
    lines(home / "places365_train_standard.txt", *(f"{names[k]}/{k:08d}.jpg {k}" for k in range(3)))
    lines(home / "places365_val.txt", *(f"Places365_val_{k:08d}.jpg {k}" for k in range(3)))
    sums = {split: (name, calculate_md5(home / name) if (home / name).is_file() else md5)
            for split, (name, md5) in Places365._FILE_LIST_META.items()}  # fmt: skip
    patch.setattr(Places365, "_FILE_LIST_META", sums)
    name = Places365._CATEGORIES_META[0]
    patch.setattr(Places365, "_CATEGORIES_META", (name, calculate_md5(home / name)))


WRITERS: dict[str, Callable[[Path, Patch], None]] = {
    "cub-200-2011": cub, "stanford-cars": cars, "fgvc-aircraft": aircraft, "flowers-102": flowers102, "oxford-pets": pets,
    "stanford-dogs": dogs, "inaturalist-2018": inaturalist, "food-101": food101, "dtd": dtd, "places365": places365,
}  # fmt: skip

CLASSES = {
    "cub-200-2011": ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"),
    "stanford-cars": ("Acura TL", "BMW M3", "Fiat 500"),
    "fgvc-aircraft": ("707-320", "A300B4", "DC-3"),
    "flowers-102": ("pink primrose", "hard-leaved pocket orchid", "canterbury bells"),
    "oxford-pets": ("Abyssinian", "American Bulldog", "Birman"),
    "stanford-dogs": ("Chihuahua", "Japanese_spaniel", "Maltese_dog"),
    "inaturalist-2018": ("Rana (0)", "Rana (1)", "Apis mellifera"),
    "food-101": ("apple_pie", "baby_back_ribs", "baklava"),
    "dtd": ("banded", "blotchy", "braided"),
    "places365": ("/a/airfield", "/a/alcove", "/b/bar"),
}


def opened(name: str, root: Path) -> tuple[ImageDataset, ImageDataset]:
    recipe = CATALOGUE[name].recipe
    assert isinstance(recipe, DataRecipe)
    return open_dataset(recipe, "train", root), open_dataset(recipe, "val", root)


def test_every_official_format_is_tried_below() -> None:
    sources = {CATALOGUE[name].recipe.source for name in WRITERS}
    assert sources == set(FORMATS)


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_as_it_unpacks_is_opened_with_its_official_split(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    WRITERS[name](tmp_path, monkeypatch)
    train, val = opened(name, tmp_path)
    check_pair(train, val)
    assert train.classes[:3] == val.classes[:3] == CLASSES[name]
    number = {"dtd": 6, "flowers-102": 6}.get(name, 3)
    assert (len(train), len(val)) == (number, 3)
    assert train.labels is not None
    assert val.labels is not None
    assert train.labels.tolist() == {"flowers-102": [0, 2, 1, 2, 1, 0]}.get(name, [0, 1, 2] * (number // 3))
    assert val.labels.tolist() == [0, 1, 2]
    names = [images.image_name(index) for images in (train, val) for index in range(len(images))]
    assert len(set(names)) == number + 3
    assert train.sizes.tolist() == [len(train.content(index)) for index in range(number)]
    assert train.image(0).size == (12, 12)
    assert train.fingerprint != val.fingerprint


def test_the_banner_of_aircraft_is_cut_off(tmp_path: Path, monkeypatch: Patch) -> None:
    aircraft(tmp_path, monkeypatch)
    train, _ = opened("fgvc-aircraft", tmp_path)
    with Image.open(tmp_path / "fgvc-aircraft-2013b/data" / "images/0000000.jpg") as whole:
        assert whole.size == (12, 32)
        assert train.image(0).tobytes() == whole.convert("RGB").crop((0, 0, 12, 12)).tobytes()
    picture((1, 2, 3), side=20).save(tmp_path / "fgvc-aircraft-2013b/data/images/0000000.jpg")
    with pytest.raises(UndecodableImage, match=r"0000000\.jpg is 20 pixels high, of which 20 should be a banner"):
        opened("fgvc-aircraft", tmp_path)[0].image(0)


def test_the_labels_are_those_of_the_lists(tmp_path: Path, monkeypatch: Patch) -> None:
    flowers102(tmp_path, monkeypatch)
    train, _ = opened("flowers-102", tmp_path)
    assert train.labels is not None
    named = {train.image_name(index): int(train.labels[index]) for index in range(6)}
    assert named == {f"jpg/image_{k:05d}.jpg": (k - 1) % 3 for k in (1, 3, 8, 9, 2, 7)}


def test_a_changed_label_is_another_fingerprint(tmp_path: Path, monkeypatch: Patch) -> None:
    cub(tmp_path, monkeypatch)
    before = opened("cub-200-2011", tmp_path)[0].fingerprint
    image = next((tmp_path / "CUB_200_2011/images").rglob("*_0000.jpg"))
    image.write_bytes(image.read_bytes() + b" ")
    larger = opened("cub-200-2011", tmp_path)[0].fingerprint
    assert larger != before
    lines(
        tmp_path / "CUB_200_2011/image_class_labels.txt", *(f"{k + 1} {1 if k == 1 else k % 3 + 1}" for k in range(6))
    )
    assert opened("cub-200-2011", tmp_path)[0].fingerprint not in (before, larger)


def test_a_set_half_unpacked_is_counted(tmp_path: Path, monkeypatch: Patch) -> None:
    dogs(tmp_path, monkeypatch)
    for k in (0, 2):
        next((tmp_path / "stanford-dogs/Images").rglob(f"*_{k}.jpg")).unlink()
    with pytest.raises(
        UserError, match=r"2 of the 3 images that the list of train names are not in .*Chihuahua/n02085620_0"
    ):
        opened("stanford-dogs", tmp_path)


def test_the_wrong_years_inaturalist_is_named(tmp_path: Path, monkeypatch: Patch) -> None:
    inaturalist(tmp_path, monkeypatch, 2019)
    (tmp_path / "inaturalist-2019").rename(tmp_path / "inaturalist-2018")
    with pytest.raises(UserError, match=r"train2018\.json is missing.* train2019\.json, train_val2019, val2019\.json"):
        opened("inaturalist-2018", tmp_path)


def test_a_list_with_what_belongs_to_no_image_is_told(tmp_path: Path, monkeypatch: Patch) -> None:
    inaturalist(tmp_path, monkeypatch)
    path = tmp_path / "inaturalist-2018/train2018.json"
    good = path.read_text()

    def told(change: Callable[[dict[str, Any]], Any]) -> str:
        content = json.loads(good)
        change(content)
        path.write_text(json.dumps(content))
        with pytest.raises(UserError) as caught:
            opened("inaturalist-2018", tmp_path)
        return str(caught.value)

    for name in (3, None, ["a"], "a\ud800.jpg"):
        assert "the lists of split 'train2018'" in told(
            lambda content, name=name: content["images"][0].update(file_name=name)
        )
    assert "1 of the 3 images" in told(lambda content: content["images"][0].update(file_name="a\0.jpg"))
    assert "they have no 'annotations'" in told(lambda content: content.pop("annotations"))
    assert "they have no 100" in told(lambda content: content["annotations"].pop())
    assert "they have no 9" in told(lambda content: content["annotations"][0].update(category_id=9))


@pytest.mark.parametrize("line", ["1 1 ", "\ufeff1 1", "1  1"])
def test_spaces_and_marks_in_cubs_lists_move_no_image(tmp_path: Path, monkeypatch: Patch, line: str) -> None:
    cub(tmp_path, monkeypatch)
    before = opened("cub-200-2011", tmp_path)[0].fingerprint
    path = tmp_path / "CUB_200_2011/train_test_split.txt"
    good = path.read_text()
    path.write_text(line + "\r\n" + good.partition("\n")[2])
    assert opened("cub-200-2011", tmp_path)[0].fingerprint == before
    path.write_text(good.replace("1 1", "1 7"))
    with pytest.raises(UserError, match="they have no '7'"):
        opened("cub-200-2011", tmp_path)


def test_an_image_twice_in_a_list_is_refused(tmp_path: Path, monkeypatch: Patch) -> None:
    cub(tmp_path, monkeypatch)
    path = tmp_path / "CUB_200_2011/images.txt"
    first, _, *rest = path.read_text().splitlines()
    lines(path, first, f"2 {first.split()[1]}", *rest)
    with pytest.raises(UserError, match=r"lists of train name 1 images more than once, first images/001\."):
        opened("cub-200-2011", tmp_path)


def lists_of(root: Path) -> list[Path]:
    """All files below ``root`` but the images."""
    return sorted(path for path in root.rglob("*") if path.suffix in (".txt", ".mat", ".json"))


@pytest.mark.parametrize("name", WRITERS)
def test_every_list_that_is_missing_or_cut_off_is_told(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    WRITERS[name](tmp_path, monkeypatch)
    lists = lists_of(tmp_path)
    assert len(lists) > 1
    for path in lists:
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(UserError, match=f"{path} is missing, and split '[a-z0-9]+' needs it"):
            opened(name, tmp_path)
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError) as caught:
            opened(name, tmp_path)
        assert name in str(caught.value)
        assert "download=True" not in str(caught.value), "which the reader cannot set"
        path.write_bytes(content)
    opened(name, tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_is_found_from_within_the_data_root(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    WRITERS[name](tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    for here, there in zip(opened(name, Path()), opened(name, tmp_path), strict=True):
        assert here.fingerprint == there.fingerprint
        assert here.image(0).size == (12, 12)


def test_a_set_with_an_empty_list_and_overlapping_splits_are_refused(tmp_path: Path, monkeypatch: Patch) -> None:
    aircraft(tmp_path, monkeypatch)
    recipe = CATALOGUE["fgvc-aircraft"].recipe
    assert isinstance(recipe, DataRecipe)
    home = tmp_path / "fgvc-aircraft-2013b/data"
    shutil.copy(home / "images_variant_trainval.txt", home / "images_variant_train.txt")
    with pytest.raises(UserError, match=r"lists of trainval\+train name 3 images more than once, first data/images/0"):
        open_dataset(recipe.model_copy(update={"train": "trainval+train"}), "train", tmp_path)
    lines(home / "images_variant_val.txt")
    with pytest.raises(UserError, match=r"list of split val .* names no image"):
        open_dataset(recipe.model_copy(update={"val": "val"}), "val", tmp_path)


def test_the_largest_lists_are_read_in_little_memory(tmp_path: Path) -> None:
    """Bytes for each image: Places365 has 1.8 million, iNaturalist 2017 0.6 million."""
    number = 20_000
    files = [f"Plantae/Some species/{k:032x}.jpg" for k in range(number)]
    lines(tmp_path / "categories_places365.txt", *(f"/a/class{k} {k}" for k in range(100)))
    lines(tmp_path / "places365_train_standard.txt", *(f"/{file} {k % 100}" for k, file in enumerate(files)))
    told = {"license": 3, "rights_holder": "somebody", "height": 600, "width": 800}
    content = {
        "images": [{"id": k, "file_name": file, **told} for k, file in enumerate(files)],
        "annotations": [{"id": k, "image_id": k, "category_id": k % 100, "bbox": [1, 2, 3, 4]} for k in range(number)],
        "categories": [{"id": k, "name": f"species {k}"} for k in range(100)],
    }
    (tmp_path / "train2017.json").write_text(json.dumps(content))
    for source, split, most in (("places365", "train", 250), ("inaturalist", "train2017", 750)):
        tracemalloc.start()
        found = FORMATS[source].read(tmp_path, split)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(found.files) == number
        assert peak < most * number


def test_sizes_of_many_images_are_found_in_little_memory(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(b"1234567")
    number = 50_000
    tracemalloc.start()
    sizes = _sizes(tmp_path, [b"image.jpg"] * number, "many", "train")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (sizes == 7).all()
    assert len(sizes) == number
    assert peak < 100 * number, "bytes; a task of a thread for each image takes more than ten times as many"


def test_an_image_that_cannot_be_looked_at_is_named(tmp_path: Path, monkeypatch: Patch) -> None:
    cub(tmp_path, monkeypatch)
    path = next((tmp_path / "CUB_200_2011/images").rglob("*_0001.jpg"))
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(UserError, match=f"{path} cannot be read: Too many levels of symbolic links"):
        opened("cub-200-2011", tmp_path)


def test_a_set_an_unknown_split_and_a_list_that_are_not_there_are_named(tmp_path: Path, monkeypatch: Patch) -> None:
    with pytest.raises(UserError, match="expected its folder at"):
        opened("stanford-cars", tmp_path)
    food101(tmp_path, monkeypatch)
    recipe = CATALOGUE["food-101"].recipe
    assert isinstance(recipe, DataRecipe)
    with pytest.raises(UserError, match="Did you mean 'train'"):
        open_dataset(recipe.model_copy(update={"train": "trein"}), "train", tmp_path)
    (tmp_path / "food-101/meta/test.json").unlink()
    with pytest.raises(UserError, match=r"test\.json is missing"):
        open_dataset(recipe, "val", tmp_path)


def test_a_list_that_is_not_the_published_one_is_refused(tmp_path: Path, monkeypatch: Patch) -> None:
    flowers102(tmp_path, monkeypatch)
    savemat(tmp_path / "flowers-102/setid.mat", {"trnid": [[1]], "valid": [[2]], "tstid": [[3]]})
    with pytest.raises(UserError, match="not found or corrupted"):
        opened("flowers-102", tmp_path)


@pytest.fixture
def served() -> Iterator[Callable[[Path], str]]:
    """Serves a folder on this machine; gives its address."""
    servers = []

    def serve(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()


def test_a_set_that_torchvision_can_download_is_downloaded_and_its_checksum_compared(
    tmp_path: Path, monkeypatch: Patch, served: Callable[[Path], str]
) -> None:
    dtd(tmp_path / "there", monkeypatch)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    archive = Path(shutil.make_archive(str(tmp_path / "dtd-r1.0.1"), "gztar", tmp_path / "there/dtd", "dtd"))
    (tmp_path / "served").mkdir()
    archive = archive.rename(tmp_path / "served" / archive.name)
    monkeypatch.setattr(DTD, "_URL", f"{served(archive.parent)}/{archive.name}")
    monkeypatch.setattr(DTD, "_MD5", "0" * 32)
    root = tmp_path / "root"
    assert "--download" in prepare_set("dtd", root, 8).text
    with pytest.raises(UserError, match="could not be downloaded"):
        prepare_set("dtd", root, 8, download=True)
    shutil.rmtree(root)
    monkeypatch.setattr(DTD, "_MD5", calculate_md5(archive))
    assert prepare_set("dtd", root, 8, download=True).ready
    assert [len(images) for images in opened("dtd", root)] == [6, 3]
    with pytest.raises(UserError, match="cannot be downloaded by this command"):
        prepare_set("stanford-cars", root, 8, download=True)


def test_a_suite_names_a_known_set_in_one_line(tmp_path: Path) -> None:
    text = """
title = "toy"
about = "for tests"
kind = "pipeline"
[data.birds]
known = "cub-200-2011"
path = "birds"
[encoder.b]
[method.scratch]
scratch = true
encoder = "b"
[downstream.birds]
kind = "knn"
data = "birds"
"""
    suite = tmp_path / "toy.toml"
    suite.write_text(text)
    data = load_suite(str(suite)).runs[0].recipe.data  # type: ignore[attr-defined]
    expected = CATALOGUE["cub-200-2011"].recipe.model_copy(update={"path": "birds"})
    assert data.affecting_results() == expected.affecting_results()
    assert data.path == "birds"
    suite.write_text(text.replace("cub-200-2011", "cub-2011"))
    with pytest.raises(UserError, match=r"no set 'cub-2011' for \[data\.NAME\]\. Did you mean 'cub-200-2011'"):
        load_suite(str(suite))
    suite.write_text(text.replace("cub-200-2011", "imagenet-a"))
    with pytest.raises(UserError, match=r"no set 'imagenet-a' for \[data\.NAME\]\. It is a robustness dataset"):
        load_suite(str(suite))
    for wrong, told in (("3", "no set 3"), ("[]", r"no set \[\]")):
        suite.write_text(text.replace('"cub-200-2011"', wrong))
        with pytest.raises(UserError, match=told):
            load_suite(str(suite))
