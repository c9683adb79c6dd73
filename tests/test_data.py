"""Image sets of every source are opened alike, and what is wrong with one is said before anything is computed."""

import pickle
import shutil
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from rich.console import Console, RenderableType

from lutbench.data import catalogue
from lutbench.data.catalogue import check_set, list_sets, prepare_set, render_check, render_list
from lutbench.data.decoding import decode
from lutbench.data.images import ImageSet, UndecodableImage, check_pair, load_or_next, open_images
from lutbench.data.known import CATALOGUE, known_set
from lutbench.errors import UserError
from lutbench.recipes import DataRecipe, SegmentationRecipe
from lutbench.recipes.loading import load_suite

COLOURS = {"cat": (200, 40, 30), "dog": (20, 160, 220), "newt": (90, 200, 10)}


def picture(colour: tuple[int, int, int], number: int = 0, side: int = 12) -> Image.Image:
    pixels = np.random.default_rng(number).integers(-15, 16, (side, side, 3)) + np.array(colour)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def tree(folder: Path, classes: tuple[str, ...] = ("cat", "dog", "newt"), count: int = 3, suffix: str = "png") -> Path:
    """A class folder of ``count`` images for each class."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            picture(COLOURS[name], 10 * number + k).save(folder / name / f"{k}.{suffix}")
    return folder


def opened(root: Path, split: str = "train", **changes: object) -> ImageSet:
    recipe = DataRecipe.model_validate({"path": "set", **changes})
    return open_images(recipe, split, root)  # type: ignore[arg-type]


# Folders


def test_a_class_folder_tree_is_read_in_order_of_class_and_name(tmp_path: Path) -> None:
    tree(tmp_path / "set/train", ("dog", "cat"))
    deep = tmp_path / "set/train/cat/more/still"
    deep.mkdir(parents=True)
    picture(COLOURS["newt"]).save(deep / "UPPER.PNG")
    (tmp_path / "set/train/cat/readme.txt").write_text("no image")
    (tmp_path / "set/train/cat/._0.png").write_bytes(b"left by another system")
    images = opened(tmp_path)
    assert images.classes == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert images.labels.dtype == np.int64
    names = [images.image_name(index) for index in range(len(images))]
    assert names == [
        "cat/0.png",
        "cat/1.png",
        "cat/2.png",
        "cat/more/still/UPPER.PNG",
        "dog/0.png",
        "dog/1.png",
        "dog/2.png",
    ]
    assert np.array_equal(images.image(3), picture(COLOURS["newt"]))
    assert images.image(4).mode == "RGB"


def test_images_without_class_folders_are_a_set_without_labels(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number in range(3):
        picture(COLOURS["cat"], number).save(tmp_path / f"set/{number}.jpg")
    images = opened(tmp_path, train="")
    assert (len(images), images.classes, images.labels) == (3, (), None)
    with pytest.raises(UserError, match="has no labels"):
        check_pair(images, images)


def test_a_link_to_a_class_folder_is_followed_and_a_circle_is_named(tmp_path: Path) -> None:
    tree(tmp_path / "elsewhere")
    tree(tmp_path / "set/train", ("cat",))
    (tmp_path / "set/train/dog").symlink_to(tmp_path / "elsewhere/dog")
    assert len(opened(tmp_path)) == 6
    (tmp_path / "set/train/cat/round").symlink_to(tmp_path / "set/train/cat")
    with pytest.raises(UserError, match="cat/round is a link to a folder that it lies in"):
        opened(tmp_path)


def test_names_that_are_not_utf_8_are_read(tmp_path: Path) -> None:
    tree(tmp_path / "set/train", ("cat",), count=1)
    try:
        (tmp_path / "set/train/cat/0.png").rename(bytes(tmp_path / "set/train/cat").decode() + "/\udce9t\udce9.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    images = opened(tmp_path)
    assert np.array_equal(images.image(0), picture(COLOURS["cat"]))
    images.image_name(0).encode()


def test_a_missing_folder_is_named_in_full_with_what_is_beside_it(tmp_path: Path) -> None:
    tree(tmp_path / "set/training")
    with pytest.raises(UserError) as error:
        opened(tmp_path)
    for told in (
        str(tmp_path / "set/train"),
        "Did you mean 'training'?",
        "train/CLASS/IMAGE.jpg",
        "lutbench data list",
    ):
        assert told in str(error.value)


def test_an_empty_folder_and_an_empty_class_are_errors(tmp_path: Path) -> None:
    (tmp_path / "set/train").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no images"):
        opened(tmp_path)
    tree(tmp_path / "set/train", ("cat",))
    for name in ("dog", "newt"):
        (tmp_path / "set/train" / name).mkdir()
    with pytest.raises(UserError, match="no image in class folders dog, newt"):
        opened(tmp_path)


def test_images_beside_class_folders_are_an_error(tmp_path: Path) -> None:
    picture(COLOURS["cat"]).save(tree(tmp_path / "set/train") / "stray.png")
    with pytest.raises(UserError, match="1 images beside the folders cat, dog, newt"):
        opened(tmp_path)


def test_train_and_val_must_have_the_same_classes(tmp_path: Path) -> None:
    tree(tmp_path / "set/train", ("cat", "dog"))
    tree(tmp_path / "set/val", ("cat", "newt"))
    train, val = opened(tmp_path), opened(tmp_path, "val")
    check_pair(train, train)
    with pytest.raises(UserError, match="only in train: dog; only in val: newt"):
        check_pair(train, val)


def test_a_set_without_validation_split_says_so(tmp_path: Path) -> None:
    tree(tmp_path / "set/train")
    with pytest.raises(UserError, match="no validation split"):
        opened(tmp_path, "val", val="")


def test_the_fingerprint_tells_contents_apart_and_not_places(tmp_path: Path) -> None:
    folder = tree(tmp_path / "a/set/train")
    shutil.copytree(folder, tmp_path / "b/set/train")
    first = opened(tmp_path / "a").fingerprint
    assert opened(tmp_path / "b").fingerprint == first
    seen = {first}
    copy = tmp_path / "b/set/train"
    (copy / "cat/0.png").rename(copy / "cat/9.png")
    seen.add(opened(tmp_path / "b").fingerprint)
    (copy / "cat/9.png").rename(copy / "dog/9.png")
    seen.add(opened(tmp_path / "b").fingerprint)
    (copy / "dog/9.png").write_bytes((copy / "dog/9.png").read_bytes() + b" ")
    seen.add(opened(tmp_path / "b").fingerprint)
    (copy / "dog").rename(copy / "dogs")
    seen.add(opened(tmp_path / "b").fingerprint)
    (copy / "dogs/9.png").unlink()
    seen.add(opened(tmp_path / "b").fingerprint)
    assert len(seen) == 6


# Decoding


def test_every_mode_becomes_rgb() -> None:
    grey = Image.fromarray(np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4))
    deep = Image.fromarray((np.arange(16, dtype=np.uint16) * 4096 + 77).reshape(4, 4))
    for image, kind in ((grey, "png"), (deep, "png"), (deep, "tiff"), (deep, "ppm")):
        found = decode(encoded(image, kind), kind)
        assert found.mode == "RGB"
        assert np.asarray(found)[..., 0].tolist() == np.asarray(grey).tolist(), (image.mode, kind)
    red = Image.new("RGB", (4, 4), (250, 10, 20))
    for image in (red, red.quantize(4), red.convert("RGBA")):
        assert decode(encoded(image, "png"), "x").getpixel((1, 1)) == (250, 10, 20)
    cmyk = decode(encoded(red.convert("CMYK"), "jpeg"), "x")
    assert np.abs(np.asarray(cmyk).astype(int) - (250, 10, 20)).max() < 6
    assert decode(encoded(Image.new("1", (4, 4), 1), "png"), "x").getpixel((0, 0)) == (255, 255, 255)


def test_transparency_is_laid_on_white() -> None:
    half = Image.new("RGBA", (4, 4), (200, 0, 0, 51))
    clear = Image.new("LA", (4, 4), (0, 0))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.info["transparency"] = 0
    assert decode(encoded(half, "png"), "x").getpixel((0, 0)) == (244, 204, 204)
    for image in (clear, palette):
        assert decode(encoded(image, "png"), "x").getpixel((0, 0)) == (255, 255, 255)


BROKEN = {
    "zero-byte.jpg": (b"", "empty"),
    "text.png": (b"<html>404</html>", "not an image"),
    "truncated.jpg": (encoded(picture(COLOURS["cat"], side=64), "jpeg")[:900], "truncated"),
    "truncated.png": (encoded(picture(COLOURS["cat"], side=64), "png")[:900], "cannot be decoded"),
    "header.png": (encoded(picture(COLOURS["cat"]), "png")[:20], "cannot be decoded"),
    "float.tiff": (encoded(Image.new("F", (4, 4), 0.5), "tiff"), "convert it to 8 bits"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_decoded_is_named(tmp_path: Path, name: str) -> None:
    content, told = BROKEN[name]
    tree(tmp_path / "set/train", ("cat",), count=1)
    (tmp_path / "set/train/cat" / name).write_bytes(content)
    images = opened(tmp_path)
    with pytest.raises(UndecodableImage, match=told) as error:
        images.image(1)
    assert str(tmp_path / "set/train/cat" / name) in str(error.value)


def test_a_file_that_is_gone_is_not_taken_for_an_undecodable_one(tmp_path: Path) -> None:
    folder = tree(tmp_path / "set/train")
    images = opened(tmp_path, undecodable="skip")
    (folder / "cat/0.png").unlink()
    with pytest.raises(UserError, match="cannot be read") as error:
        load_or_next(images, 0)
    assert not isinstance(error.value, UndecodableImage)


def test_an_undecodable_image_stops_or_gives_its_place_to_the_next(tmp_path: Path) -> None:
    folder = tree(tmp_path / "set/train", ("cat", "dog"))
    for name in ("dog/1.png", "dog/2.png"):
        (folder / name).write_bytes(b"")
    with pytest.raises(UndecodableImage, match=r"dog/1\.png"):
        load_or_next(opened(tmp_path), 4)
    images = opened(tmp_path, undecodable="skip")
    image, used, skipped = load_or_next(images, 4)
    assert (used, skipped) == (0, 2)
    assert np.array_equal(image, images.image(0))
    assert load_or_next(images, 3)[1:] == (3, 0)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="not one of the 6 images"):
        load_or_next(images, 4)


# Hugging Face


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def rows(count: int = 6, **columns: object) -> datasets.Dataset:
    pictures = [{"bytes": encoded(picture(COLOURS["dog"], k), "png"), "path": None} for k in range(count)]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    made = datasets.Dataset.from_dict(
        {"image": pictures, "label": [k % 2 for k in range(count)]}, datasets.Features(kinds)
    )
    for name, values in columns.items():
        made = made.add_column(name, values)
    return made


def saved(root: Path, kind: str) -> dict[str, object]:
    """A set of six rows below ``root`` in one of the formats, and the recipe's fields that open it."""
    path = root / kind
    if kind == "save_to_disk":
        datasets.DatasetDict(train=rows(), val=rows(2)).save_to_disk(path)
    elif kind == "one split":
        rows().save_to_disk(path)
        return {"path": kind, "train": ""}
    elif kind == "parquet":
        path.mkdir()
        rows().to_parquet(path / "train-00000-of-00001.parquet")
        rows(2).to_parquet(path / "validation-00000-of-00001.parquet")
        return {"path": kind, "val": "validation"}
    elif kind == "file.parquet":
        rows().to_parquet(path)
    else:
        for k in range(6):
            folder = path / "train" / ("cat", "dog")[k % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{k}.png").write_bytes(encoded(picture(COLOURS["dog"], k), "png"))
    return {"path": kind}


@pytest.mark.parametrize("kind", ["save_to_disk", "one split", "parquet", "file.parquet", "imagefolder"])
def test_hugging_face_sets_of_every_local_format_are_opened_alike(tmp_path: Path, kind: str) -> None:
    images = opened(tmp_path, source="huggingface", **saved(tmp_path, kind))
    assert (len(images), images.classes) == (6, ("cat", "dog"))
    assert images.labels is not None
    order = [0, 2, 4, 1, 3, 5] if kind == "imagefolder" else list(range(6))
    assert images.labels.tolist() == [k % 2 for k in order]
    for index, k in enumerate(order):
        assert np.array_equal(images.image(index), picture(COLOURS["dog"], k))
    assert images.image_name(3) == "train/00000003"
    copy = pickle.loads(pickle.dumps(images))
    assert np.array_equal(copy.image(2), images.image(2))


def test_the_fingerprint_of_hugging_face_rows_does_not_depend_on_their_format(tmp_path: Path) -> None:
    kinds = ("save_to_disk", "parquet", "file.parquet")
    found = {kind: opened(tmp_path, source="huggingface", **saved(tmp_path, kind)).fingerprint for kind in kinds}
    assert len(set(found.values())) == 1
    other = rows().map(lambda row, k: {"label": int(k == 0)}, with_indices=True)
    other.save_to_disk(tmp_path / "labels")
    same_length = [{"bytes": encoded(picture(COLOURS["dog"], k), "bmp"), "path": None} for k in (0, 1)]
    for name, order in (("forwards", (0, 1)), ("backwards", (1, 0))):
        pair = datasets.Dataset.from_dict({"image": [same_length[k] for k in order]}).cast_column(
            "image", datasets.Image()
        )
        pair.save_to_disk(tmp_path / name)
    paths = [opened(tmp_path, source="huggingface", path="labels", train="").fingerprint] + [
        opened(tmp_path, source="huggingface", path=name, train="", label_column="").fingerprint
        for name in ("forwards", "backwards")
    ]
    assert len({*found.values(), *paths}) == 4


def test_a_hugging_face_set_without_labels_is_opened_without(tmp_path: Path) -> None:
    fields = saved(tmp_path, "save_to_disk")
    images = opened(tmp_path, source="huggingface", label_column="", **fields)
    assert (images.labels, images.classes) == (None, ())


def test_labels_that_are_words_or_numbers_become_classes(tmp_path: Path) -> None:
    rows(word=["b", "a", "b", "c", "a", "b"], number=[7, 3, 7, 10, 3, 7]).save_to_disk(tmp_path / "set")
    for column, classes in (("word", ("a", "b", "c")), ("number", ("3", "7", "10"))):
        images = opened(tmp_path, source="huggingface", train="", label_column=column)
        assert images.classes == classes
        assert images.labels is not None
        assert images.labels.tolist() == [1, 0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"image_column": "img"}, "no such column. Did you mean 'image'?"),
        ({"label_column": "lable"}, "no such column. Did you mean 'label'?"),
        ({"label_column": "hidden"}, "6 of 6 rows have no label"),
        ({"label_column": "weight"}, "should hold one class per row"),
        ({"image_column": "weight"}, "should hold images"),
        ({"train": "training"}, "split 'training' could not be opened"),
        ({"path": "nobody/nothing"}, "nothing is there"),
        ({"path": ""}, "path is empty"),
    ],
)
def test_what_a_hugging_face_set_lacks_is_said(tmp_path: Path, fields: dict[str, object], told: str) -> None:
    made = rows(weight=[0.5] * 6).add_column("hidden", [None] * 6)  # type: ignore[arg-type]
    datasets.DatasetDict(train=made).save_to_disk(tmp_path / "set")
    with pytest.raises(UserError) as error:
        opened(tmp_path, source="huggingface", **fields)
    assert told in str(error.value)


def test_labels_of_minus_one_are_missing_labels(tmp_path: Path) -> None:
    made = rows().map(lambda row, k: {"label": -1 if k == 2 else 0}, with_indices=True)
    made.save_to_disk(tmp_path / "set")
    with pytest.raises(UserError, match="1 of 6 rows have no label"):
        opened(tmp_path, source="huggingface", train="")


def test_an_undecodable_row_is_named_and_skipped_on_request(tmp_path: Path) -> None:
    contents = [encoded(picture(COLOURS["dog"], k), "png") for k in range(3)]
    contents[1] = contents[1][:60]
    made = datasets.Dataset.from_dict({"image": [{"bytes": c, "path": "odd.png"} for c in contents]})
    made.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    images = opened(tmp_path, source="huggingface", train="", label_column="", undecodable="skip")
    with pytest.raises(UndecodableImage, match=r"train/00000001 \(odd\.png\)"):
        images.image(1)
    assert load_or_next(images, 1)[1:] == (2, 1)


# The catalogue


def text_of(shown: RenderableType) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(shown)
    return console.export_text()


def flowers(root: Path, train: int = 60, val: int = 20) -> Path:
    """Flowers-17's layout, with one small image per file."""
    content = encoded(picture(COLOURS["newt"], side=4), "png")
    for split, count in (("train", train), ("val", val)):
        for number in range(1, 18):
            folder = root / "flowers17" / split / f"c{number}"
            folder.mkdir(parents=True)
            for k in range(count):
                (folder / f"image_{k:04d}.jpg").write_bytes(content)
    return root / "flowers17"


def test_the_list_names_every_set_its_size_and_whether_it_is_there(tmp_path: Path) -> None:
    tree(tmp_path / "imagenet-1k/train")
    states = {status.known.name: status.state for status in list_sets(tmp_path)}
    assert states["photographs"] == "built on first use"
    assert states["imagenet-1k"] == "val is missing"
    assert states["caltech101"] == "missing"
    tree(tmp_path / "imagenet-1k/val")
    assert {s.known.name: s.state for s in list_sets(tmp_path)}["imagenet-1k"] == "here"
    shown = text_of(render_list(list_sets(tmp_path), tmp_path))
    for told in (
        "1,281,167",
        "50,000",
        "https://data.caltech.edu",
        str(tmp_path / "flowers17"),
        "CC BY 4.0",
        "uoft-cs/cifar100",
    ):
        assert told in shown
    assert "image-net.org" not in shown, "what is here needs no instructions"


def test_a_whole_set_passes_its_check(tmp_path: Path) -> None:
    flowers(tmp_path)
    report = check_set("flowers17", tmp_path)
    assert report.exit_status == 0
    assert any("train: 1,020 images, 17 classes" in line for line in report.lines)
    assert "whole" in text_of(render_check(report))


def camvid(root: Path, highest: int = 10) -> Path:
    """CamVid's layout, with small frames, and masks with every value from 0 to ``highest``, and 255."""
    mask = np.full((4, 6), 255, np.uint8)
    mask.flat[: highest + 1] = np.arange(highest + 1)
    frame, labels = encoded(picture(COLOURS["newt"]).resize((6, 4)), "jpeg"), encoded(Image.fromarray(mask), "png")
    for split, count in (("training", 367), ("validation", 101)):
        for kind, content, suffix in (("images", frame, "jpg"), ("annotations", labels, "png")):
            folder = root / "camvid" / kind / split
            folder.mkdir(parents=True)
            for k in range(count):
                (folder / f"{k:04d}.{suffix}").write_bytes(content + split.encode())
    return root / "camvid"


def test_a_whole_set_with_masks_passes_its_check(tmp_path: Path) -> None:
    states = {status.known.name: status.state for status in list_sets(tmp_path)}
    assert (states["camvid"], states["ade20k"], states["mosaics"]) == ("missing", "missing", "built on first use")
    folder = camvid(tmp_path)
    report = check_set("camvid", tmp_path)
    assert (report.exit_status, report.problems, report.notes) == (0, [], [])
    assert any("val: 101 images, 11 classes" in line for line in report.lines)
    assert any("train: 256 masks looked at fit" in line for line in report.lines)
    assert {status.known.name: status.state for status in list_sets(tmp_path)}["camvid"] == "here"
    (folder / "annotations/validation").rename(folder / "annotations/elsewhere")
    states = {status.known.name: status.state for status in list_sets(tmp_path)}
    assert states["camvid"] == "annotations/validation is missing"


def test_a_check_of_a_set_with_masks_names_what_is_wrong(tmp_path: Path) -> None:
    folder = camvid(tmp_path, highest=9)
    report = check_set("camvid", tmp_path, full=True)
    assert report.problems == []
    assert report.notes == ["train: no mask has a pixel of bicyclist.", "val: no mask has a pixel of bicyclist."]
    (folder / "annotations/training/0100.png").write_bytes(encoded(Image.new("L", (6, 4), 11), "png"))
    (folder / "images/training/0366.jpg").write_bytes(b"broken")
    (folder / "annotations/validation/0007.png").unlink()
    report = check_set("camvid", tmp_path, full=True)
    assert report.exit_status == 1
    found = " ".join(report.problems)
    assert "0100.png: expected values 0 to 10 and 255, found 11 in 24 pixels" in found
    assert "1 images cannot be decoded: 0366.jpg" in found
    assert "1 images without a mask (0007.jpg)" in found
    (folder / "images/validation/0007.jpg").unlink()
    assert "val, images: expected 101, found 100 (-1)" in " ".join(check_set("camvid", tmp_path).problems)


@pytest.mark.parametrize("suite", ["camvid", "small"])
def test_the_suites_mean_by_camvid_what_is_checked(suite: str) -> None:
    recipes = [run.recipe.data for run in load_suite(suite).runs if isinstance(run.recipe, SegmentationRecipe)]
    assert recipes
    assert all(recipe == CATALOGUE["camvid"].recipe for recipe in recipes)


def test_an_incomplete_ade20k_is_counted(tmp_path: Path) -> None:
    camvid(tmp_path).rename(tmp_path / "ADEChallengeData2016")
    problems = check_set("ade20k", tmp_path).problems
    assert "expected the 20,210 images" in problems[0]
    assert "expected the 2,000 images" in problems[1]


def test_a_check_names_what_is_missing_and_what_is_broken(tmp_path: Path) -> None:
    folder = flowers(tmp_path, val=19)
    (folder / "train/c3/image_0007.jpg").unlink()
    (folder / "train/c5/image_0011.jpg").write_bytes(b"broken")
    report = check_set("flowers17", tmp_path, full=True)
    found = " ".join(report.problems)
    assert report.exit_status == 1
    assert "train, images: expected 1,020, found 1,019 (-1)" in found
    assert "val, images: expected 340, found 323 (-17)" in found
    assert "c5/image_0011.jpg" in found
    shutil.rmtree(folder / "val")
    assert "no such folder" in " ".join(check_set("flowers17", tmp_path).problems)


def test_a_check_of_a_sample_decodes_evenly_spaced_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "SAMPLE", 5)
    folder = flowers(tmp_path)
    (folder / "train/c9/image_0059.jpg").write_bytes(b"broken")  # the last of the last class in order of names
    report = check_set("flowers17", tmp_path)
    assert "1 images cannot be decoded: c9/image_0059.jpg" in " ".join(report.problems)
    assert any("4 of 5 images looked at" in line for line in report.lines)


def test_preparing_says_how_to_get_what_cannot_be_built(tmp_path: Path) -> None:
    prepared = prepare_set("imagenet-1k", tmp_path)
    assert not prepared.there
    assert str(tmp_path / "imagenet-1k") in prepared.text
    assert "ILSVRC2012_img_train.tar" in prepared.text
    flowers(tmp_path)
    assert prepare_set("flowers17", tmp_path).there


def test_an_unknown_set_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'imagenet-1k'"):
        known_set("imagenet1k")


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_known_set_can_be_described(tmp_path: Path, name: str) -> None:
    known = CATALOGUE[name]
    assert known.classes > 1
    assert set(known.images) in ({"train", "val"}, {"all"})
    assert known.get
    assert known.terms
