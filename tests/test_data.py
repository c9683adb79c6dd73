"""Image sets of every source are opened alike, and what is wrong with one is said before anything is computed."""

import os
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from image_files import COLOURS, encoded, picture, tree
from PIL import Image, features
from torchvision.datasets.folder import IMG_EXTENSIONS

from lutbench.data.decoding import decode
from lutbench.data.images import ImageDataset, UndecodableImage, check_pair, load_or_next, open_dataset
from lutbench.errors import UserError
from lutbench.recipes.base import DataRecipe
from lutbench.workspace import Workspace


def opened(root: Path, split: str = "train", **changes: object) -> ImageDataset:
    recipe = DataRecipe.model_validate({"path": "set", **changes})
    return open_dataset(recipe, split, root)  # type: ignore[arg-type]


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
    assert images.content(1) == (tmp_path / "set/train/cat/1.png").read_bytes()
    assert images.sizes.tolist() == [len(images.content(index)) for index in range(7)]


def test_the_files_that_torchvision_takes_for_images_are_images(tmp_path: Path) -> None:
    (tmp_path / "set/train").mkdir(parents=True)
    for suffix in (*IMG_EXTENSIONS, ".txt", ".npy"):
        (tmp_path / f"set/train/0{suffix}").touch()
    images = opened(tmp_path)
    assert sorted(images.image_name(index)[1:] for index in range(len(images))) == sorted(IMG_EXTENSIONS)


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
    with pytest.raises(UserError, match="cat/round is a link to a folder that contains it"):
        opened(tmp_path)


@pytest.mark.parametrize("where", ["train/cat/a.png", "train/a.png", "train/cat/a", "train/a"])
@pytest.mark.parametrize("target", ["a.png", "nowhere.png"])
def test_links_that_lead_nowhere_are_named(tmp_path: Path, where: str, target: str) -> None:
    tree(tmp_path / "set/train", ("cat",))
    link = tmp_path / "set" / where
    link.symlink_to(link if target == "a.png" else link.with_name(target))
    with pytest.raises(UserError) as error:
        opened(tmp_path)
    assert f"{link} cannot be read: " in str(error.value)


@pytest.mark.parametrize("name", ["cat/pipe.png", "cat/pipe", "pipe.png"])
def test_a_pipe_is_no_image(tmp_path: Path, name: str) -> None:
    folder = tree(tmp_path / "set" / "train")
    before = opened(tmp_path)
    os.mkfifo(folder / name)
    (folder / "dog" / "link.png").symlink_to(folder / name)
    after = opened(tmp_path)
    assert (after.fingerprint, after.passed_over.counts) == (before.fingerprint, {})


@pytest.mark.parametrize("target", ["/", "..", "../.."])
def test_a_link_to_a_folder_far_above_is_not_walked(tmp_path: Path, target: str) -> None:
    folder = tree(tmp_path / "set/train", ("cat",)) / "cat"
    (folder / "up").symlink_to(target)
    with pytest.raises(UserError, match=f"{folder}/up is a link to a folder that contains it"):
        opened(tmp_path)


def test_of_a_circle_of_links_through_elsewhere_a_link_is_named(tmp_path: Path) -> None:
    """Whose reader removes what is named."""
    folder = tree(tmp_path / "set/train", ("cat",)) / "cat"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "set")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{folder}/more/back is a link to a folder that contains it"):
        opened(tmp_path)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_whatever_byte_of_an_image_is_damaged_it_is_read_or_named() -> None:
    """AVIF's decoder raises errors of a kind that no other does."""
    content = encoded(picture(COLOURS["cat"], side=24), "avif")
    refused = 0
    for place in range(0, len(content), 3):
        try:
            decode(content[:place] + b"\0" + content[place + 1 :], "a.jpg")
        except UndecodableImage as error:
            refused += "a.jpg cannot be decoded" in str(error)
    assert refused > 10


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
    with pytest.raises(UserError, match="no images in class folders dog, newt"):
        opened(tmp_path)


def test_images_beside_class_folders_are_an_error(tmp_path: Path) -> None:
    picture(COLOURS["cat"]).save(tree(tmp_path / "set/train") / "stray.png")
    with pytest.raises(UserError, match="1 images and the folders cat, dog, newt"):
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
    with pytest.raises(UserError, match="needs a validation split, but val is empty"):
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
    with pytest.raises(UserError, match="none of the 6 images"):
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


def test_a_look_that_downloads_nothing_keeps_no_run_of_the_same_command_from_downloading(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, tmp_path / "runs", tmp_path / "results")
    recipe = DataRecipe.model_validate({"path": "parquet", "source": "huggingface", "val": "validation"})
    with pytest.raises(UserError, match="It will be downloaded from the Hugging Face Hub when a run first uses it"):
        workspace.offline().open(recipe, "train")
    saved(tmp_path, "parquet")
    assert len(workspace.open(recipe, "train")) == 6


@pytest.mark.parametrize("kind", ["save_to_disk", "one split", "parquet", "file.parquet", "imagefolder"])
def test_hugging_face_sets_of_every_local_format_are_opened_alike(tmp_path: Path, kind: str) -> None:
    images = opened(tmp_path, source="huggingface", **saved(tmp_path, kind))
    assert (len(images), images.classes) == (6, ("cat", "dog"))
    assert images.labels is not None
    order = [0, 2, 4, 1, 3, 5] if kind == "imagefolder" else list(range(6))
    assert images.labels.tolist() == [k % 2 for k in order]
    for index, k in enumerate(order):
        assert np.array_equal(images.image(index), picture(COLOURS["dog"], k))
        assert images.content(index) == encoded(picture(COLOURS["dog"], k), "png")
        assert images.sizes[index] == len(images.content(index))
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
        ({"label_column": "weight"}, "expected one class per row"),
        ({"image_column": "weight"}, "expected images, their bytes"),
        ({"train": "training"}, 'Did you mean train = "train"?'),
        ({"path": "nobody/nothing"}, "which does not exist"),
        ({"path": ""}, "path is empty"),
    ],
)
def test_what_a_hugging_face_set_lacks_is_said(tmp_path: Path, fields: dict[str, object], told: str) -> None:
    made = rows(weight=[0.5] * 6).add_column("hidden", [None] * 6)  # type: ignore[arg-type]
    datasets.DatasetDict(train=made).save_to_disk(tmp_path / "set")
    with pytest.raises(UserError) as error:
        opened(tmp_path, source="huggingface", **fields)
    assert told in str(error.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_set_that_is_a_program_is_refused_with_the_way_out(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text("raise SystemExit('it was run')\n")
    with pytest.raises(
        UserError, match=r'scripts are no longer supported.*revision = "refs/convert/parquet"'
    ) as refused:
        opened(tmp_path, source="huggingface", streaming=streaming)
    assert "\n" not in str(refused.value)


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
