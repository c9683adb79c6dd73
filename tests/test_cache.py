"""Images from the cache are those of the files, bit by bit; what is interrupted, damaged or too large is dealt with."""

import multiprocessing
import pickle
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_files import COLOURS, picture
from torch.utils.data import DataLoader

from lutbench.data import cache, cache_build
from lutbench.data.cache import open_cache
from lutbench.data.cache_build import make_cache, repair_cache
from lutbench.data.cache_place import HOW, cache_folder, expected_bytes
from lutbench.data.images import ImageDataset, UndecodableImage, load_or_next, open_dataset
from lutbench.data.prepare import prepare_set
from lutbench.data.tensors import resize_short_side
from lutbench.errors import Halt, UserError
from lutbench.files import read_json
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.train.randomness import reseed
from pretrain.views import PretrainTransform

SIDE = 16
COUNT = 23


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_build, "SHARD", 5)


@pytest.fixture
def images(tmp_path: Path) -> ImageDataset:
    """Of different shapes, larger and smaller than the cache's."""
    for number in range(COUNT):
        name = list(COLOURS)[number % 3]
        folder = tmp_path / "set" / "train" / name
        folder.mkdir(parents=True, exist_ok=True)
        shape = (20 + number, 40) if number % 2 else (12, 10 + number)
        picture(COLOURS[name], number, 48).resize(shape).save(folder / f"{number:02d}.png")
    return opened(tmp_path)


def opened(root: Path, **changes: object) -> ImageDataset:
    return open_dataset(read_recipe(DataRecipe, {"path": "set", **changes}, "data"), "train", root)


def test_a_cached_image_is_the_resized_file_bit_by_bit(images: ImageDataset, tmp_path: Path) -> None:
    cached = make_cache(images, SIDE, tmp_path)
    assert len(cached) == COUNT
    assert cached.labels is images.labels
    for index in range(COUNT):
        assert np.array_equal(cached.image(index), resize_short_side(images.image(index), SIDE))
        assert min(cached.image(index).size) == SIDE


@pytest.mark.parametrize("on", ["loader", "device"])
def test_views_from_the_cache_are_those_from_the_files(images: ImageDataset, tmp_path: Path, on: str) -> None:
    encoder = {"model": "vit_tiny_patch16_224", "image_size": SIDE, "patch_size": 4}
    read, settings = [], {"data": {}, "encoder": encoder, "photometrics_on": on}
    for cache_too, source in ((False, images), (True, make_cache(images, SIDE, tmp_path))):
        recipe = read_recipe(PretrainRecipe, settings | {"cache": cache_too}, "pretrain.lut")
        read.append((source, recipe.form, PretrainTransform(recipe)))
    assert [form for _, form, _ in read] == ["Pillow", "pixels"]
    for index in range(COUNT):
        samples = []
        for source, form, transform in read:
            reseed(0, index)
            samples.append(transform(load_or_next(source, index, form=form)[0]))
        assert samples[0].keys() == samples[1].keys()
        assert all(torch.equal(samples[0][name], samples[1][name]) for name in samples[0])


def test_loader_processes_read_the_same_pixels(images: ImageDataset, tmp_path: Path) -> None:
    cached = make_cache(images, SIDE, tmp_path)

    expected = [np.asarray(cached.image(index)) for index in range(COUNT)]
    for context in ("fork", "spawn"):
        loader = DataLoader(_Pixels(cached), None, num_workers=2, multiprocessing_context=context)  # type: ignore[var-annotated]
        assert all(np.array_equal(a, b) for a, b in zip(loader, expected, strict=True))


class _Pixels:
    def __init__(self, images: ImageDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.array(self.images.image(index))


def test_what_was_interrupted_goes_on_and_ends_with_the_same_bits(
    images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_cache(images, SIDE, tmp_path)
    contents = {file.name: file.read_bytes() for file in whole.folder.glob("*.arrow")}
    shutil.rmtree(whole.folder)
    written = cache_build._write_shard

    def interrupted(path: Path, *rest: object) -> None:
        if path.name == "00003.arrow":
            raise KeyboardInterrupt
        written(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_build, "_write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_cache(images, SIDE, tmp_path)
    assert open_cache(images, SIDE, tmp_path) is None, "a part is not taken for the whole"
    kept = {file.name: file.stat().st_mtime_ns for file in whole.folder.glob("*.arrow")}
    assert sorted(kept) == ["00000.arrow", "00001.arrow", "00002.arrow"]
    monkeypatch.setattr(cache_build, "_write_shard", written)
    again = make_cache(images, SIDE, tmp_path)
    assert again.fingerprint == whole.fingerprint
    assert {file.name: file.read_bytes() for file in again.folder.glob("*.arrow")} == contents
    assert all((again.folder / name).stat().st_mtime_ns == time for name, time in kept.items()), "made twice"


def test_a_damaged_file_is_noticed_and_made_again(images: ImageDataset, tmp_path: Path) -> None:
    cached = make_cache(images, SIDE, tmp_path)
    path = cached.folder / "00001.arrow"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(UserError, match=r"00001\.arrow is damaged\. .*remove the folder"):
        open_cache(images, SIDE, tmp_path)
    path.write_bytes(good[:500] + bytes([good[500] ^ 1]) + good[501:])  # the same size
    assert repair_cache(images, SIDE, tmp_path) == 1
    assert make_cache(images, SIDE, tmp_path).folder == cached.folder
    assert path.read_bytes() == good
    assert repair_cache(images, SIDE, tmp_path) == 0


@pytest.mark.parametrize("third", [0, 1, 2])
def test_a_file_that_lost_a_third_at_its_full_size_is_noticed(images: ImageDataset, tmp_path: Path, third: int) -> None:
    path = make_cache(images, SIDE, tmp_path).folder / "00001.arrow"
    content = path.read_bytes()
    length = len(content) // 3
    path.write_bytes(content[: third * length] + bytes(length) + content[(third + 1) * length :])
    with pytest.raises(UserError, match=r"00001\.arrow is damaged"):
        open_cache(images, SIDE, tmp_path)


def test_images_that_are_black_in_their_files_are_no_damage(images: ImageDataset, tmp_path: Path) -> None:
    for file in sorted((tmp_path / "set/train").rglob("*.png"))[:7]:
        picture((0, 0, 0), 0, 20).point(lambda _: 0).save(file)
    black = opened(tmp_path)
    assert len(make_cache(black, SIDE, tmp_path)) == len(open_cache(black, SIDE, tmp_path) or []) == COUNT


def test_damage_is_found_also_where_a_repair_was_killed_or_cache_json_is_gone(
    images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = make_cache(images, SIDE, tmp_path)
    shards = [cached.folder / f"0000{number}.arrow" for number in (1, 3)]
    good = [shard.read_bytes() for shard in shards]

    def damage() -> None:
        for shard, content in zip(shards, good, strict=True):
            shard.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])

    unlink = Path.unlink
    for number in (1, 2, 3):  # killed at the first, second and third file that it removes
        damage()
        left = iter(range(number - 1))

        def killed(path: Path, missing_ok: bool = False, left: Iterator[int] = left) -> None:
            if path.name[0] != "." and next(left, None) is None:
                raise KeyboardInterrupt
            unlink(path, missing_ok)

        monkeypatch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            repair_cache(images, SIDE, tmp_path)
        monkeypatch.setattr(Path, "unlink", unlink)
        repair_cache(images, SIDE, tmp_path)
        make_cache(images, SIDE, tmp_path)
        assert [shard.read_bytes() for shard in shards] == good
    damage()
    (cached.folder / "cache.json").unlink()
    assert repair_cache(images, SIDE, tmp_path) is None
    make_cache(images, SIDE, tmp_path)
    assert [shard.read_bytes() for shard in shards] == good


@pytest.mark.parametrize("content", ["{}", "[]", "null", "{"])
@pytest.mark.parametrize("name", ["cache.json", "00002.json"])
def test_facts_that_are_not_as_written_are_written_again(
    images: ImageDataset, tmp_path: Path, content: str, name: str
) -> None:
    cached = make_cache(images, SIDE, tmp_path)
    (cached.folder / name).write_text(content)
    if name == "cache.json":
        with pytest.raises(UserError, match="is damaged"):
            make_cache(images, SIDE, tmp_path)
    repair_cache(images, SIDE, tmp_path)
    again = make_cache(images, SIDE, tmp_path)
    assert all(np.array_equal(again.image(index), cached.image(index)) for index in range(COUNT))
    assert repair_cache(images, SIDE, tmp_path) == 0


def test_a_file_with_other_rows_or_of_another_pillow_is_made_again(
    images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = make_cache(images, SIDE, tmp_path)
    pixels = [np.array(cached.image(index)) for index in range(COUNT)]
    for kind in ("arrow", "json"):
        shutil.copy(cached.folder / f"00004.{kind}", cached.folder / f"00001.{kind}")
    (cached.folder / "cache.json").unlink()
    again = make_cache(images, SIDE, tmp_path)
    assert len(again) == COUNT
    assert all(np.array_equal(again.image(index), pixels[index]) for index in range(COUNT))
    for module in (cache, cache_build):
        monkeypatch.setattr(module, "PILLOW", "0.1")
    capsys.readouterr()
    assert open_cache(images, SIDE, tmp_path)
    assert "now Pillow 0.1 is installed" in capsys.readouterr().out
    (cached.folder / "00001.arrow").unlink()
    (cached.folder / "cache.json").unlink()
    make_cache(images, SIDE, tmp_path)
    assert {shard["pillow"] for shard in read_json(cached.folder / "cache.json")["shards"]} == {"0.1"}


def test_a_cache_of_other_code_is_said_to_be_that(
    images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache(images, SIDE, tmp_path)
    capsys.readouterr()
    open_cache(images, SIDE, tmp_path)
    assert not capsys.readouterr().out
    monkeypatch.setattr(cache, "digest_of", lambda module: "another")
    open_cache(images, SIDE, tmp_path)
    assert "was made with other code" in capsys.readouterr().out


def test_another_resampling_is_another_fingerprint_and_another_size_of_files_is_not(
    images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_cache(images, SIDE, tmp_path)
    shutil.rmtree(first.folder)
    monkeypatch.setattr(cache_build, "SHARD", 7)
    assert make_cache(images, SIDE, tmp_path).fingerprint == first.fingerprint
    assert make_cache(opened(tmp_path, label="My set"), SIDE, tmp_path).folder == first.folder
    monkeypatch.setitem(HOW, "resampling", "nearest")
    assert make_cache(images, SIDE, tmp_path).fingerprint != first.fingerprint


def test_processes_that_ask_at_once_make_it_once(
    images: ImageDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    processes = [
        multiprocessing.get_context("fork").Process(target=make_cache, args=(images, SIDE, tmp_path)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert capfd.readouterr().out.count(f"cache of {COUNT} images") == 1
    assert repair_cache(images, SIDE, tmp_path) == 0


def test_a_whole_cache_is_read_where_nothing_may_be_written(images: ImageDataset, tmp_path: Path) -> None:
    folder = make_cache(images, SIDE, tmp_path).folder
    (folder / ".lock").unlink(missing_ok=True)
    names = sorted(folder.iterdir())
    make_cache(images, SIDE, tmp_path)
    assert sorted(folder.iterdir()) == names, "not even a lock"


def test_what_a_killed_process_was_writing_is_removed(images: ImageDataset, tmp_path: Path) -> None:
    folder = cache_folder(images, SIDE, tmp_path)
    folder.mkdir(parents=True)
    (folder / ".00001.arrow.partial-123").write_bytes(b"part")
    make_cache(images, SIDE, tmp_path)
    assert not list(folder.glob("*partial*"))


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """As on a disk that fills up: writing beyond so many bytes of a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_whole_files_only(images: ImageDataset, tmp_path: Path) -> None:
    whole = make_cache(images, SIDE, tmp_path)
    sizes = [shard["bytes"] for shard in read_json(whole.folder / "cache.json")["shards"]]
    shutil.rmtree(whole.folder)
    largest = sizes.index(max(sizes))
    assert largest > 0
    with (
        files_of_at_most(max(sizes) - 1),
        pytest.raises(Halt, match="The file is larger than this disk or your limit allows"),
    ):
        make_cache(images, SIDE, tmp_path)
    left = sorted(file.name for file in whole.folder.glob("*.arrow"))
    assert left == [f"{number:05d}.arrow" for number in range(largest)]
    assert not list(whole.folder.glob(".*partial*"))
    assert make_cache(images, SIDE, tmp_path).fingerprint == whole.fingerprint


def test_too_little_room_is_said_before_anything_is_made(
    images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = expected_bytes(images, SIDE)
    pixels = sum(np.asarray(resize_short_side(images.image(index), SIDE)).size for index in range(COUNT))
    assert needed == pytest.approx(pixels, rel=0.05)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed - 1))
    with pytest.raises(UserError, match="needs about"):
        make_cache(images, SIDE, tmp_path)
    assert f"{COUNT} images of split 'train', short side {SIDE}" in capsys.readouterr().out.replace("\n", " ")
    assert not list(cache_folder(images, SIDE, tmp_path).glob("*.arrow"))


def test_other_files_and_another_side_have_another_cache_and_fingerprint(images: ImageDataset, tmp_path: Path) -> None:
    first, other = make_cache(images, SIDE, tmp_path), make_cache(images, 2 * SIDE, tmp_path)
    picture(COLOURS["cat"], 99, 30).save(tmp_path / "set/train/cat/new.png")
    third = make_cache(opened(tmp_path), SIDE, tmp_path)
    assert len({c.folder for c in (first, other, third)}) == 3
    assert len({c.fingerprint for c in (first, other, third)} | {images.fingerprint}) == 4
    facts = read_json(first.folder / "cache.json")
    assert (facts["how"]["resampling"], facts["side"], facts["source"]) == ("bicubic", SIDE, images.fingerprint)


def test_an_image_that_cannot_be_decoded_stops_the_cache_or_is_passed_over(
    images: ImageDataset, tmp_path: Path
) -> None:
    (tmp_path / "set/train/cat/00.png").write_bytes(b"nothing")
    with pytest.raises(UndecodableImage, match=r"00\.png"):
        make_cache(opened(tmp_path), SIDE, tmp_path)
    skipping = make_cache(opened(tmp_path, undecodable="skip"), SIDE, tmp_path)
    with pytest.raises(UndecodableImage, match=r"cat/00\.png"):
        skipping.image(0)
    assert load_or_next(skipping, 0)[1:] == (1, 1)
    (tmp_path / "set/val").symlink_to("train")
    (tmp_path / "flowers17").symlink_to(tmp_path / "set")
    with pytest.raises(UserError, match=r"data prepare flowers17 --skip-undecodable"):
        prepare_set("flowers17", tmp_path, SIDE)
    assert prepare_set("flowers17", tmp_path, SIDE, skip_undecodable=True).ready
    with pytest.raises(UserError, match=r"1 images could not be decoded when the cache"):
        make_cache(opened(tmp_path), SIDE, tmp_path)


def test_crops_of_the_full_image_are_read_from_the_files_whatever_is_said_of_a_cache() -> None:
    for crop, side in (("simple", 224), ("random", None)):
        recipe = read_recipe(PretrainRecipe, {"data": {}, "cache": True, "crop": crop}, "pretrain.mae")
        assert recipe.cache_side == side


def test_a_cached_image_is_read_where_it_lies_and_nothing_is_copied(images: ImageDataset, tmp_path: Path) -> None:
    cached = make_cache(images, SIDE, tmp_path)
    for index in range(COUNT):
        pixels = cached.pixels(index)
        assert not pixels.flags.owndata
        assert not pixels.flags.writeable
        assert np.array_equal(pixels, np.asarray(resize_short_side(images.image(index), SIDE)))
    copy = pickle.loads(pickle.dumps(cached))
    assert len(pickle.dumps(cached)) < 20_000, "a process gets the names of the files, not the pixels"
    assert np.array_equal(copy.pixels(COUNT - 1), cached.pixels(COUNT - 1))


def test_preparing_makes_the_cache_and_again_compares_its_checksums(tmp_path: Path) -> None:
    for number in range(4):
        for split in ("train", "val"):
            folder = tmp_path / "flowers17" / split / f"c{number}"
            folder.mkdir(parents=True)
            picture((90, 10 * number, 30), number).save(folder / "0.png")
    told = prepare_set("flowers17", tmp_path, SIDE)
    assert told.ready
    assert f"cache with short side {SIDE} was made: 4 images" in told.text
    assert "its checksums are correct" in prepare_set("flowers17", tmp_path, SIDE).text
    shard = next(tmp_path.rglob("00000.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert "(1 damaged files made again)" in prepare_set("flowers17", tmp_path, SIDE).text
