"""What would spoil a run on a dataset is said before it: images left out, blank or cut off, nothing to learn, other classes."""

import shutil
import struct
import unicodedata
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import COLOURS, picture, tree
from PIL import Image
from toy_runs import TOY, performed, toy_run, write_images

from downstream.stage import check_classification
from lutbench.data.cache_place import cache_fingerprint
from lutbench.data.classes import class_notes
from lutbench.data.decoding import lacks_end
from lutbench.data.images import UndecodableImage, aligned, check_pair, open_dataset
from lutbench.data.preflight import SAMPLE, check_images, passed_over
from lutbench.errors import UserError
from lutbench.evaluate.inference import labels_of, over_images
from lutbench.evaluate.transform import eval_transform
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.probes import LinearRecipe
from lutbench.run import Run
from pretrain import train as pretraining


def opened(root: Path, split: Any = "train", **changes: object) -> Any:
    return open_dataset(DataRecipe.model_validate({"path": "set", **changes}), split, root)


def noise(number: int, high: int = 256, kind: Any = np.uint8, shape: tuple[int, ...] = (12, 12)) -> Any:
    return np.random.default_rng(number).integers(0, high, shape).astype(kind)


def fill(root: Path, images: Callable[[int], Image.Image], count: int = 4, suffix: str = ".png") -> Path:
    folder = root / "set/train"
    folder.mkdir(parents=True)
    for number in range(count):
        images(number).save(folder / f"{number:03d}{suffix}")
    return folder


# Files that a listing passes over


def test_images_of_the_endings_that_pillow_reads_are_taken(tmp_path: Path) -> None:
    folder = fill(tmp_path, lambda k: Image.fromarray(noise(k, shape=(12, 12, 3))))
    before = opened(tmp_path).fingerprint
    (folder / "notes.txt").write_text("no image")
    assert opened(tmp_path).fingerprint == before
    for suffix, kind in ((".jfif", "JPEG"), (".JPE", "JPEG"), (".gif", "GIF")):
        Image.fromarray(noise(9, shape=(12, 12, 3))).save(folder / f"more{suffix}", format=kind)
    images = opened(tmp_path)
    assert [images.image_name(k) for k in range(4, 7)] == ["more.JPE", "more.gif", "more.jfif"]
    assert check_images(images) == []


def test_images_that_are_not_read_are_counted_and_named(tmp_path: Path) -> None:
    folder = fill(tmp_path, lambda k: Image.fromarray(noise(k)))
    (folder / "labels.csv").write_text("a,b\n")
    (folder / "._000.png").write_bytes(b"\0\5\26\7")
    assert list(passed_over(opened(tmp_path))) == []
    for k in range(5):
        (folder / f"{k}.heic").write_bytes(b"\0\0\0\x18ftypheic")
        Image.fromarray(noise(k)).save(folder / f"scan-{k}", format="PNG")
    (said,) = passed_over(opened(tmp_path))
    assert "4 images; 10 other image files" in said
    assert "5 that end in .heic, which the installed Pillow does not read (0.heic)" in said
    assert "5 that have no suffix, but are images by their content (scan-0)" in said


def test_a_class_without_an_image_says_what_it_has_instead(tmp_path: Path) -> None:
    folder = tree(tmp_path / "set/train", ("cat", "dog"))
    for file in (folder / "dog").iterdir():
        file.rename(file.with_suffix(".npy"))
    with pytest.raises(UserError, match=r"no images in class folder dog .*\(of its files, 3 end in \.npy\)"):
        opened(tmp_path)


def test_what_macos_adds_to_an_archive_is_no_class(tmp_path: Path) -> None:
    folder = tree(tmp_path / "set/train", ("cat", "dog"))
    before = opened(tmp_path).fingerprint
    for litter in ("__MACOSX/cat", "cat/__MACOSX"):
        (folder / litter).mkdir(parents=True)
        (folder / litter / "._0.png").write_bytes(b"\0\5\26\7")
        (folder / litter / "0.png").write_bytes(b"\0\5\26\7")
    images = opened(tmp_path)
    assert (images.classes, images.fingerprint) == (("cat", "dog"), before)


# Images of more than 8 bits, of one colour, damaged


def test_images_of_12_bits_stop_a_run_that_would_see_them_black(tmp_path: Path) -> None:
    fill(tmp_path, lambda k: Image.fromarray(noise(k, 4096, np.uint16)))
    with pytest.raises(UserError, match=r"maximum value of 4,0\d\d .* is 12 bits.* Set bits = 12 .* or bits = 16"):
        check_images(opened(tmp_path))
    images = opened(tmp_path, bits=12)
    assert check_images(images) == []
    assert np.array_equal(np.asarray(images.image(0))[..., 0], noise(0, 4096, np.uint16) >> 4)
    assert check_images(opened(tmp_path, bits=16)) == []  # as dark as was asked for
    (said,) = check_images(opened(tmp_path, bits=11))
    assert "values above bits = 11 become white" in said
    assert np.asarray(opened(tmp_path, bits=11).image(0)).max() == 255


def test_colours_of_16_bits_that_pillow_would_read_as_black_stop_a_run(tmp_path: Path) -> None:
    def write(high: int) -> None:
        for k in range(3):
            rows = noise(k, high, ">u2", (12, 12 * 3))
            scanlines = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
            chunks = ((b"IHDR", struct.pack(">2I5B", 12, 12, 16, 2, 0, 0, 0)), (b"IDAT", scanlines), (b"IEND", b""))
            parts = [struct.pack(">I", len(b)) + a + b + struct.pack(">I", zlib.crc32(a + b)) for a, b in chunks]
            (folder / f"{k}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))

    folder = tmp_path / "set/train"
    folder.mkdir(parents=True)
    write(65536)
    assert check_images(opened(tmp_path)) == []
    write(4096)
    with pytest.raises(UserError, match=r"3 of 3 .*16-bit colours .* convert them to 8 bits"):
        check_images(opened(tmp_path))


def test_the_bits_that_are_used_are_part_of_what_tells_contents_apart(tmp_path: Path) -> None:
    fill(tmp_path, lambda k: Image.fromarray(noise(k, 65536, np.uint16)))
    plain, given = opened(tmp_path), opened(tmp_path, bits=12)
    assert check_images(plain) == []
    assert np.array_equal(np.asarray(plain.image(1))[..., 0], noise(1, 65536, np.uint16) >> 8)
    assert cache_fingerprint(plain, 8) != cache_fingerprint(given, 8)
    recipes = [DataRecipe.model_validate({"path": "set", **changes}) for changes in ({}, {"bits": 12})]
    assert [recipe.affecting_results().get("bits", "absent") for recipe in recipes] == ["absent", 12]


def test_images_of_one_colour_are_named_and_stop_a_run_if_nearly_all_are(tmp_path: Path) -> None:
    folder = fill(tmp_path, lambda k: Image.fromarray(noise(k, 256 if k else 3)), count=20)
    (said,) = check_images(opened(tmp_path))
    assert "1 of 20 sampled images" in said
    assert "000.png" in said
    for number in range(19):
        Image.new("RGBA", (12, 12), (number, 0, 0, 0)).save(folder / f"{number:03d}.png")
    with pytest.raises(
        UserError, match=r"19 of 20 .* nearly uniform in colour: 000\.png.* transparent .* Nothing can be learned"
    ):
        check_images(opened(tmp_path))


def test_damaged_images_in_the_sample_stop_a_run_or_are_counted(tmp_path: Path) -> None:
    folder = fill(tmp_path, lambda k: Image.fromarray(noise(k)), count=200)
    (folder / "000.png").write_bytes((folder / "000.png").read_bytes()[:60])
    (folder / "199.png").write_bytes(b"")
    with pytest.raises(
        UndecodableImage, match=rf"2 of {SAMPLE} sampled images .*000\.png cannot be decoded.*Others: 199\.png"
    ):
        check_images(opened(tmp_path))
    (said,) = check_images(opened(tmp_path, undecodable="skip"))
    assert "2 of 64" in said
    assert "are skipped: 000.png, 199.png" in said


def test_a_stage_looks_at_its_images_and_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path)
    (tmp_path / "toy/train/amber/photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    run = toy_run(tmp_path, kind="knn", neighbours=3)
    check_classification(run)
    check_classification(run)
    assert capsys.readouterr().out.count("1 that end in .heic") == 1
    broken = tmp_path / "toy/val/blue/0.png"
    broken.write_bytes(broken.read_bytes()[:100])
    stopped = toy_run(tmp_path, "there", ["data.toy.undecodable='stop'"], kind="knn", neighbours=3)
    with pytest.raises(UndecodableImage, match=r"blue/0\.png"):
        check_classification(stopped)


def test_images_that_were_passed_over_are_counted_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path)
    (tmp_path / "toy/train/amber/0.png").write_bytes(b"")
    done = performed(toy_run(tmp_path, kind="knn", neighbours=3))
    assert done["extra"]["skipped"] == 1
    assert "images skipped because they cannot be decoded: 1." in capsys.readouterr().out


def test_val_is_looked_at_though_its_files_have_the_names_and_sizes_of_trains(tmp_path: Path) -> None:
    write_images(tmp_path)
    shutil.rmtree(tmp_path / "toy/val")
    for file in (tmp_path / "toy/train").rglob("*.png"):
        Image.open(file).save(file.with_suffix(".bmp"))
        file.unlink()
    shutil.copytree(tmp_path / "toy/train", tmp_path / "toy/val")
    run = toy_run(tmp_path, kind="knn", neighbours=3)
    assert any("the same images" in note for note in class_notes(run.dataset("train"), run.dataset("val")))
    for file in (tmp_path / "toy/val").rglob("*.bmp"):
        Image.new("RGB", (20, 20)).save(file)
    run = toy_run(tmp_path, kind="knn", neighbours=3)
    train, val = run.dataset("train"), run.dataset("val")
    assert train.fingerprint == val.fingerprint
    assert not any("the same images" in note for note in class_notes(train, val))
    for _ in range(2):  # each of two runs on it
        with pytest.raises(UserError, match=r"30 of 30 sampled images of split 'val' .* nearly uniform in colour"):
            check_classification(run)


def compressed(kind: str, **how: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(noise(1, shape=(64, 64, 3))).save(buffer, kind, **how)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "JPEG2000"])
def test_a_file_that_ends_in_zeros_is_named_as_cut_off(tmp_path: Path, kind: str) -> None:
    whole = compressed(kind)
    cut = whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    assert (lacks_end(whole, kind), lacks_end(cut, kind)) == (False, True)
    if kind in ("JPEG", "GIF", "PNG"):
        assert not lacks_end(whole + bytes(4096), kind)  # as some cameras write
    for colour in ("black", "white"):
        buffer = BytesIO()
        Image.new("RGB", (600, 600), colour).save(buffer, kind)
        assert not lacks_end(buffer.getvalue(), kind)


def test_zeros_at_the_end_of_an_uncompressed_file_are_black_pixels() -> None:
    image = Image.fromarray(noise(1, shape=(64, 64, 3)))
    image.paste((0, 0, 0), (0, 0, 64, 32))
    buffer = BytesIO()
    image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(buffer, "PPM")
    assert buffer.getvalue().endswith(bytes(6000))
    assert not lacks_end(buffer.getvalue(), "PPM")


def test_images_that_decode_without_their_end_are_named_and_stop_a_run_if_nearly_all_are(tmp_path: Path) -> None:
    folder = fill(tmp_path, lambda k: Image.fromarray(noise(k, shape=(64, 64, 3))), count=20, suffix=".webp")
    cut = compressed("WEBP", quality=95)
    cut = cut[: len(cut) // 2] + bytes(len(cut) - len(cut) // 2)
    (folder / "003.webp").write_bytes(cut)
    assert opened(tmp_path).image(3).size == (64, 64)
    (said,) = check_images(opened(tmp_path))
    assert "1 of 20 sampled images" in said
    assert "are truncated files. They can be decoded" in said
    assert "003.webp" in said
    for file in folder.iterdir():
        file.write_bytes(cut)
    with pytest.raises(
        UserError, match=r"20 of 20 sampled images .* are truncated.* Copy, unpack or download them again"
    ):
        check_images(opened(tmp_path))


def test_a_white_pixel_does_not_make_a_picture(tmp_path: Path) -> None:
    def black(number: int) -> Image.Image:
        image = Image.new("RGB", (224, 224))
        image.putpixel((number, 3), (255, 255, 255))
        return image

    folder = fill(tmp_path, black)
    with pytest.raises(UserError, match=r"4 of 4 .* nearly uniform in colour"):
        check_images(opened(tmp_path))
    for number in range(4):  # few lines on paper are one
        image = Image.new("RGB", (224, 224), "white")
        image.paste((0, 0, 0), (10, 10, 30, 20))
        image.save(folder / f"{number:03d}.png")
    assert check_images(opened(tmp_path)) == []


# Nothing to learn, other classes


@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_that_cannot_be_decoded_leave_nothing_to_tell_apart(
    tmp_path: Path, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path)
    for file in (tmp_path / "toy" / split / "blue").iterdir():
        file.write_bytes(b"")
    check_classification(toy_run(tmp_path, kind="knn", neighbours=3))
    assert f"split '{split}': none of the sampled images can be decoded in 1 of 3 classes: blue" in " ".join(
        capsys.readouterr().out.split()
    )
    for file in (tmp_path / "toy" / split / "green").iterdir():
        file.write_bytes(b"")
    run = toy_run(tmp_path, kind="knn", neighbours=3)
    with pytest.raises(UserError, match=r"in 2 of 3 classes: blue, green\. At most one class is left"):
        check_classification(run)
    images = run.dataset(split)
    with pytest.raises(UserError, match="could be decoded, all of class 'amber'"):
        evaluate_by_index(images, run)


def evaluate_by_index(images: Any, run: Run[Any]) -> None:
    over_images(lambda pixels, index: index, images, eval_transform(16, 1.0), run.recipe, "")


def test_folders_in_all_class_folders_are_said_to_be_classes_perhaps(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for wrapping in ("images", "extra"):
            tree(tmp_path / "set" / split / wrapping, ("cat", "dog"))
    said = list(class_notes(opened(tmp_path), opened(tmp_path, "val")))
    assert "every class folder of split 'train' holds subfolders of the same names, cat to dog" in said[0]
    assert 'such as train = "train/extra"' in said[0]
    assert len(said) == 2 + 1  # of each split, and that the images are the same
    tree(tmp_path / "set/train/more", ("eel", "fox"))
    assert not any("every class folder of split 'train'" in one for one in class_notes(*both(tmp_path)))


def both(root: Path) -> tuple[Any, Any]:
    return opened(root), opened(root, "val")


def labelled(root: Path, train: tuple[str, ...], val: tuple[str, ...]) -> tuple[Any, Any]:
    for split, names in (("train", train), ("val", val)):
        tree(root / "set" / split, names)
    return opened(root), opened(root, "val")


def test_one_class_is_nothing_to_learn_and_a_wrapping_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"have the same class, 'cat', but classification needs"):
        check_pair(*labelled(tmp_path / "a", ("cat",), ("cat",)))
    for split in ("train", "val"):
        tree(tmp_path / "b/set" / split / "images", ("cat", "dog"))
    with pytest.raises(UserError) as error:
        check_pair(opened(tmp_path / "b"), opened(tmp_path / "b", "val"))
    assert 'train/images holds the subfolders cat, dog: if these are the classes, set train = "train/images".' in str(
        error.value
    )
    changed = {"train": "train/images", "val": "val/images"}
    check_pair(opened(tmp_path / "b", **changed), opened(tmp_path / "b", "val", **changed))


def test_one_class_is_enough_for_pre_training(tmp_path: Path) -> None:
    write_images(tmp_path)
    for name in ("blue", "green"):
        shutil.rmtree(tmp_path / "toy/train" / name)
    suite = f"""{TOY}
[pretrain.task]
data = "toy"
encoder = "toy"
"""
    run: Run[Any] = toy_run(tmp_path, suite_text=suite, batch=4, epochs=1, warmup_epochs=0)
    pretraining.check(run)  # which refuses what cannot be trained on
    assert len(run.dataset("train").classes) == 1


def test_val_may_lack_classes_and_its_labels_are_those_of_train(tmp_path: Path) -> None:
    train, val = labelled(tmp_path, ("cat", "dog", "newt"), ("dog", "newt"))
    changed = aligned(train, val)
    assert changed.classes == train.classes
    assert [changed.classes[label] for label in labels_of(changed).tolist()] == [
        val.classes[label] for label in val.labels
    ]
    assert changed.fingerprint == val.fingerprint
    assert aligned(train, train) is train
    assert list(class_notes(train, changed)) == [
        "set: val has no images of 1 of train's 3 classes, so these are not evaluated: cat."
    ]
    with pytest.raises(UserError, match=r"only in train: cat; only in val: fox"):
        check_pair(train, opened_with(tmp_path, "fox"))


def opened_with(root: Path, name: str) -> Any:
    """The split val with one class more."""
    shutil.copytree(root / "set/train/dog", root / "set/val" / name)
    return opened(root, "val")


@pytest.mark.parametrize(
    ("form", "told"), [("Dog", "'Dog' is 'dog'"), ("dog ", "'dog ' is 'dog'"), ("ｄog", "'ｄog' is 'dog'")]
)
def test_names_that_differ_only_in_case_space_or_form_are_told(tmp_path: Path, form: str, told: str) -> None:
    with pytest.raises(UserError, match=f"Apart from case or spaces, {told}"):
        check_pair(*labelled(tmp_path, ("cat", "dog"), ("cat", form)))
    both, _ = labelled(tmp_path / "both", ("cat", "dog", form), ("cat",))
    assert any("differ only in case or spaces" in note for note in class_notes(both, both))


def test_one_name_in_two_forms_of_unicode_is_one_class(tmp_path: Path) -> None:
    names = ("apple", "café", "crème brûlée", "zebra")
    forms = [tuple(unicodedata.normalize(form, name) for name in names) for form in ("NFC", "NFD")]
    train, val = labelled(tmp_path, *forms)
    if train.classes == val.classes:
        pytest.skip("this file system has one form of names")
    changed = aligned(train, val)
    assert changed.classes == forms[0]
    of_val = [unicodedata.normalize("NFC", val.classes[label]) for label in val.labels]
    assert [changed.classes[label] for label in labels_of(changed).tolist()] == of_val
    assert list(class_notes(train, changed)) == []
    (tmp_path / "set/train" / forms[1][1]).mkdir()
    picture(COLOURS["cat"]).save(tmp_path / "set/train" / forms[1][1] / "0.png")
    with pytest.raises(UserError, match="two classes with the same name"):
        check_pair(opened(tmp_path), val)


def test_a_run_measures_val_in_the_numbering_of_train(tmp_path: Path) -> None:
    write_images(tmp_path)
    shutil.rmtree(tmp_path / "toy/val/amber")
    run = toy_run(tmp_path, kind="knn", neighbours=3)
    assert set(run.dataset("val").labels) == {1, 2}
    performed(run)
    outcomes = np.load(next(run.workspace.results.rglob("*.npz")))
    assert set(outcomes["label"]) == {1, 2}


def test_a_probe_of_single_images_is_refused() -> None:
    encoder = {"architecture": {}, "kind": "scratch"}
    with pytest.raises(ValueError, match=r"batch = 1: the probe's BatchNorm needs at least 2"):
        LinearRecipe.model_validate({"data": {"path": "set"}, "encoder": encoder, "batch": 1, "warmup_epochs": 0})


# What the suite made itself


def test_images_that_the_suite_built_are_not_looked_at_and_a_users_in_a_folder_of_that_name_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path)
    Image.new("RGB", (20, 20), "white").save(tmp_path / "toy/val/amber/0.png")
    (tmp_path / "toy").rename(tmp_path / "photographs")
    run = toy_run(tmp_path, kind="knn", changes=["data.toy.path=photographs"])
    check_classification(run)
    assert "nearly uniform in colour" in "".join(capsys.readouterr())
    (tmp_path / "photographs/manifest.json").write_text("{}")
    check_classification(toy_run(tmp_path, kind="knn", changes=["data.toy.path=photographs"]))
    assert "".join(capsys.readouterr()) == ""
