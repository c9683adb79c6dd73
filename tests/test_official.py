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

import pytest
from image_files import picture
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import DTD, Flowers102
from torchvision.datasets.utils import calculate_md5
from toy_runs import HEAD

from lutbench.data.catalogue import CATALOGUE
from lutbench.data.images import ImageDataset, UndecodableImage, check_pair, open_dataset
from lutbench.data.official import FORMATS, _sizes
from lutbench.data.prepare import prepare_set
from lutbench.data.toy.drawn import write_lines
from lutbench.data.toy.official_sets import WRITERS
from lutbench.errors import UserError
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.loading import load_suite

Patch = pytest.MonkeyPatch


def lines(path: Path, *texts: str) -> None:
    write_lines(path, texts)


def written(name: str, root: Path, patch: Patch) -> None:
    """A known set as it unpacks: six images of three classes, of Flowers-102 and DTD nine; which are for training differs."""
    recipe = CATALOGUE[name].recipe
    assert isinstance(recipe, DataRecipe)
    WRITERS[recipe.source](root / recipe.path, 1, 12, (recipe.train, recipe.val))
    if name == "flowers-102":
        sums = {part: (file, calculate_md5(root / recipe.path / file)) for part, (file, _) in MINE.items()}
        patch.setattr(Flowers102, "_file_dict", {**Flowers102._file_dict, **sums})


MINE = {part: Flowers102._file_dict[part] for part in ("label", "setid")}
"""Lists of Flowers-102 whose sums torchvision knows."""

SETS = (
    "cub-200-2011", "stanford-cars", "fgvc-aircraft", "flowers-102", "oxford-pets", "stanford-dogs", "inaturalist-2018", "food-101",
    "dtd", "places365",
)  # fmt: skip


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
    sources = {CATALOGUE[name].recipe.source for name in SETS}
    assert sources == set(FORMATS)


@pytest.mark.parametrize("name", SETS)
def test_a_set_as_it_unpacks_is_opened_with_its_official_split(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    written(name, tmp_path, monkeypatch)
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
    written("fgvc-aircraft", tmp_path, monkeypatch)
    train, _ = opened("fgvc-aircraft", tmp_path)
    with Image.open(tmp_path / "fgvc-aircraft-2013b/data" / "images/0000000.jpg") as whole:
        assert whole.size == (12, 32)
        assert train.image(0).tobytes() == whole.convert("RGB").crop((0, 0, 12, 12)).tobytes()
    picture((1, 2, 3), side=20).save(tmp_path / "fgvc-aircraft-2013b/data/images/0000000.jpg")
    with pytest.raises(UndecodableImage, match=r"0000000\.jpg is only 20 pixels high, but a banner of 20 pixels"):
        opened("fgvc-aircraft", tmp_path)[0].image(0)


def test_the_labels_are_those_of_the_lists(tmp_path: Path, monkeypatch: Patch) -> None:
    written("flowers-102", tmp_path, monkeypatch)
    train, _ = opened("flowers-102", tmp_path)
    assert train.labels is not None
    named = {train.image_name(index): int(train.labels[index]) for index in range(6)}
    assert named == {f"jpg/image_{k:05d}.jpg": (k - 1) % 3 for k in (1, 3, 8, 9, 2, 7)}


def test_a_changed_label_is_another_fingerprint(tmp_path: Path, monkeypatch: Patch) -> None:
    written("cub-200-2011", tmp_path, monkeypatch)
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
    written("stanford-dogs", tmp_path, monkeypatch)
    for k in (0, 2):
        next((tmp_path / "stanford-dogs/Images").rglob(f"*_{k}.jpg")).unlink()
    with pytest.raises(UserError, match=r"2 of the 3 images listed for train are missing in .*Chihuahua/n02085620_0"):
        opened("stanford-dogs", tmp_path)


def test_the_wrong_years_inaturalist_is_named(tmp_path: Path, monkeypatch: Patch) -> None:
    written("inaturalist-2019", tmp_path, monkeypatch)
    (tmp_path / "inaturalist-2019").rename(tmp_path / "inaturalist-2018")
    with pytest.raises(UserError, match=r"train2018\.json is missing.* train2019\.json, train_val2019, val2019\.json"):
        opened("inaturalist-2018", tmp_path)


def test_a_list_with_what_belongs_to_no_image_is_told(tmp_path: Path, monkeypatch: Patch) -> None:
    written("inaturalist-2018", tmp_path, monkeypatch)
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
    assert "entry 'annotations' is missing" in told(lambda content: content.pop("annotations"))
    assert "entry 100 is missing" in told(lambda content: content["annotations"].pop())
    assert "entry 9 is missing" in told(lambda content: content["annotations"][0].update(category_id=9))


@pytest.mark.parametrize("line", ["1 1 ", "\ufeff1 1", "1  1"])
def test_spaces_and_marks_in_cubs_lists_move_no_image(tmp_path: Path, monkeypatch: Patch, line: str) -> None:
    written("cub-200-2011", tmp_path, monkeypatch)
    before = opened("cub-200-2011", tmp_path)[0].fingerprint
    path = tmp_path / "CUB_200_2011/train_test_split.txt"
    good = path.read_text()
    path.write_text(line + "\r\n" + good.partition("\n")[2])
    assert opened("cub-200-2011", tmp_path)[0].fingerprint == before
    path.write_text(good.replace("1 1", "1 7"))
    with pytest.raises(UserError, match="entry '7' is missing"):
        opened("cub-200-2011", tmp_path)


def test_an_image_twice_in_a_list_is_refused(tmp_path: Path, monkeypatch: Patch) -> None:
    written("cub-200-2011", tmp_path, monkeypatch)
    path = tmp_path / "CUB_200_2011/images.txt"
    first, _, *rest = path.read_text().splitlines()
    lines(path, first, f"2 {first.split()[1]}", *rest)
    with pytest.raises(UserError, match=r"lists of train name 1 images more than once, first images/001\."):
        opened("cub-200-2011", tmp_path)


def lists_of(root: Path) -> list[Path]:
    """All files below ``root`` but the images."""
    return sorted(path for path in root.rglob("*") if path.suffix in (".txt", ".mat", ".json"))


@pytest.mark.parametrize("name", SETS)
def test_every_list_that_is_missing_or_cut_off_is_told(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    written(name, tmp_path, monkeypatch)
    lists = lists_of(tmp_path)
    assert len(lists) > 1
    for path in lists:
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(UserError, match=f"{path} is missing, but split '[a-z0-9]+' needs it"):
            opened(name, tmp_path)
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError) as caught:
            opened(name, tmp_path)
        assert name in str(caught.value)
        assert "download=True" not in str(caught.value), "which the reader cannot set"
        path.write_bytes(content)
    opened(name, tmp_path)


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_found_from_within_the_data_root(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    written(name, tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    for here, there in zip(opened(name, Path()), opened(name, tmp_path), strict=True):
        assert here.fingerprint == there.fingerprint
        assert here.image(0).size == (12, 12)


def test_a_set_with_an_empty_list_and_overlapping_splits_are_refused(tmp_path: Path, monkeypatch: Patch) -> None:
    written("fgvc-aircraft", tmp_path, monkeypatch)
    recipe = CATALOGUE["fgvc-aircraft"].recipe
    assert isinstance(recipe, DataRecipe)
    home = tmp_path / "fgvc-aircraft-2013b/data"
    shutil.copy(home / "images_variant_trainval.txt", home / "images_variant_train.txt")
    with pytest.raises(UserError, match=r"lists of trainval\+train name 3 images more than once, first data/images/0"):
        open_dataset(recipe.model_copy(update={"train": "trainval+train"}), "train", tmp_path)
    lines(home / "images_variant_val.txt")
    with pytest.raises(UserError, match=r"list of split val .* is empty"):
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
    written("cub-200-2011", tmp_path, monkeypatch)
    path = next((tmp_path / "CUB_200_2011/images").rglob("*_0001.jpg"))
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(UserError, match=f"{path} cannot be read: Too many levels of symbolic links"):
        opened("cub-200-2011", tmp_path)


def test_a_set_an_unknown_split_and_a_list_that_are_not_there_are_named(tmp_path: Path, monkeypatch: Patch) -> None:
    with pytest.raises(UserError, match="expected its folder at"):
        opened("stanford-cars", tmp_path)
    written("food-101", tmp_path, monkeypatch)
    recipe = CATALOGUE["food-101"].recipe
    assert isinstance(recipe, DataRecipe)
    with pytest.raises(UserError, match="Did you mean 'train'"):
        open_dataset(recipe.model_copy(update={"train": "trein"}), "train", tmp_path)
    (tmp_path / "food-101/meta/test.json").unlink()
    with pytest.raises(UserError, match=r"test\.json is missing"):
        open_dataset(recipe, "val", tmp_path)


def test_a_list_that_is_not_the_published_one_is_refused(tmp_path: Path, monkeypatch: Patch) -> None:
    written("flowers-102", tmp_path, monkeypatch)
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
    written("dtd", tmp_path / "there", monkeypatch)
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
    text = f"""{HEAD}[data.birds]
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
    with pytest.raises(
        UserError, match=r"no known dataset 'cub-2011' for \[data\.NAME\]\. Did you mean 'cub-200-2011'"
    ):
        load_suite(str(suite))
    suite.write_text(text.replace("cub-200-2011", "imagenet-a"))
    with pytest.raises(UserError, match=r"'imagenet-a' is a robustness dataset"):
        load_suite(str(suite))
    for wrong, told in (("3", "no known dataset 3"), ("[]", r"no known dataset \[\]")):
        suite.write_text(text.replace('"cub-200-2011"', wrong))
        with pytest.raises(UserError, match=told):
            load_suite(str(suite))
