"""Images are decoded once for all encoders that see the same of them; a crop that is kept has the bits of one that is decoded."""

import errno
import json
import multiprocessing
import os
import pickle
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_runs import TOY, performed, toy_run

from lutbench.data.folder import FolderImages
from lutbench.evaluate import inference
from lutbench.evaluate.crop_store import Crops, kept_crops
from lutbench.evaluate.features import features_of
from lutbench.evaluate.transform import eval_transform
from lutbench.recipes.loading import load_suite
from lutbench.run import Run
from lutbench.stages import run_suite
from lutbench.train.batches import Samples
from lutbench.workspace import Workspace

KNN: dict[str, Any] = {"kind": "knn", "neighbours": 5, "threads": 1}
TRAIN, VAL = 30, 21
"""Images of each split."""


class Reads:
    """Which image files were read, by whatever process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, name: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{name}\n")

    @property
    def names(self) -> list[str]:
        return self.path.read_text().split() if self.path.exists() else []


@pytest.fixture
def reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Reads:
    noted, content = Reads(folder / "reads.txt"), FolderImages.content

    def reading(images: FolderImages, index: int) -> bytes:
        noted.note(f"{images.split}/{images.image_name(index)}")
        return content(images, index)

    monkeypatch.setattr(FolderImages, "content", reading)
    return noted


def of_seed(folder: Path, seed: int, name: str = "", room: int | None = None, **settings: Any) -> Run:
    """A run on an untrained encoder."""
    run = toy_run(folder, name, changes=[f"seeds=[{seed}]"], **KNN | settings)
    if room is not None:
        run.workspace = Workspace(run.workspace.data, run.workspace.runs, run.workspace.results, feature_bytes=room)
    return run


def crop_files(run: Run) -> list[Path]:
    return sorted(run.workspace.features.glob("*.crops"))


def by_itself(folder: Path, seed: int, **settings: Any) -> Tensor:
    """The features of val where nothing is kept."""
    return features_of(of_seed(folder, seed, "alone", room=0, **settings), "val").values


@pytest.mark.parametrize(
    "settings",
    [{}, {"workers": 1}, {"resized_by": "torchvision"}, {"pool": "class", "blocks": [1, -1], "eval_batch": 4}],
    ids=["plain", "a loader process", "by torchvision", "blocks"],
)
def test_images_are_decoded_once_for_several_encoders_which_see_the_same_bits(
    folder: Path, reads: Reads, settings: dict[str, Any]
) -> None:
    expected = [by_itself(folder, seed, **settings) for seed in range(3)]
    before = len(reads.names)
    found = [features_of(of_seed(folder, seed, **settings), "val") for seed in range(3)]
    assert all(torch.equal(of.values, alone) for of, alone in zip(found, expected, strict=True))
    assert not torch.equal(found[0].values, found[1].values)
    assert not any(of.kept for of in found), "each encoder encoded"
    assert len(reads.names) - before == VAL
    assert set(Counter(reads.names[before:]).values()) == {1}


def test_an_image_that_cannot_be_decoded_is_left_out_by_every_encoder(folder: Path) -> None:
    (folder / "toy" / "val" / "blue" / "3.png").write_bytes(b"")
    for seed in range(2):
        found = features_of(of_seed(folder, seed), "val")
        assert torch.equal(found.values, by_itself(folder, seed))
        assert found.index.tolist() == [index for index in range(VAL) if index != 10]


SUITE = f"""{TOY}
[method.first]
scratch = true
encoder = "toy"
[method.second]
scratch = true
encoder = "other"
[encoder.other]
model = "vit_tiny_patch16_224"
image_size = 16
patch_size = 4
width = 16
depth = 2
heads = 4
[defaults.attentive]
epochs = 1
warmup_epochs = 0
batch = 10
fresh_crops = false
heads = 2
trackers = []
[downstream.knn]
kind = "knn"
data = "toy"
workers = 0
neighbours = 5
[downstream.attentive]
kind = "attentive"
data = "toy"
workers = 0
[downstream.retrieval]
kind = "retrieval"
data = "toy"
workers = 0
pool = "class"
[analysis.inside]
data = "toy"
workers = 0
measures = ["depth"]
methods = ["first", "second"]
neighbours = 5
eval_crop = 0.875
"""


def test_all_tasks_of_a_command_decode_a_set_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "suite.toml").write_text(SUITE)
    suite = load_suite(str(folder / "suite.toml"))
    decoded, pixels = Counter[tuple[Any, int]](), inference._Decoded._decoded

    def counted(of: Any, index: int) -> Tensor:
        decoded[of.images.split, index] += 1
        return pixels(of, index)

    monkeypatch.setattr(inference._Decoded, "_decoded", counted)
    run_suite(suite, [], [], Workspace(folder, folder / "runs", folder / "results"))
    assert len(suite.runs) == 8
    assert sum(decoded.values()) == TRAIN + VAL
    assert set(decoded.values()) == {1}


def test_what_an_interrupted_run_decoded_is_not_decoded_again(
    folder: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_itself(folder, 0)
    before, content = len(reads.names), FolderImages.content

    def interrupted(images: FolderImages, index: int) -> bytes:
        if index == 8:
            raise KeyboardInterrupt
        return content(images, index)

    run = of_seed(folder, 1)
    with monkeypatch.context() as patched:
        patched.setattr(FolderImages, "content", interrupted)
        with pytest.raises(KeyboardInterrupt):
            features_of(run, "val")
    assert len(reads.names) - before == 8
    assert torch.equal(features_of(of_seed(folder, 0), "val").values, expected)
    assert len(reads.names) - before == VAL


def test_two_commands_that_encode_at_once_decode_every_image_once(
    folder: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [by_itself(folder, seed) for seed in range(2)]
    before, content = len(reads.names), FolderImages.content
    context = multiprocessing.get_context("fork")
    together, found = context.Barrier(2), context.Queue()

    def slowly(images: FolderImages, index: int) -> bytes:
        time.sleep(0.005)  # so that both come to an image before one has decoded it
        return content(images, index)

    monkeypatch.setattr(FolderImages, "content", slowly)

    def encode(seed: int) -> None:
        torch.set_num_threads(1)
        run = of_seed(folder, seed)
        together.wait()
        found.put((seed, features_of(run, "val").values.tolist()))

    commands = [context.Process(target=encode, args=(seed,)) for seed in range(2)]
    for command in commands:
        command.start()
    values = dict(found.get(timeout=100) for _ in commands)
    for command in commands:
        command.join()
    assert [values[seed] for seed in range(2)] == [of.tolist() for of in expected]
    assert len(reads.names) - before == VAL


def test_a_damaged_row_is_decoded_again_and_mended(folder: Path, reads: Reads) -> None:
    expected, run = by_itself(folder, 1), of_seed(folder, 0)
    features_of(run, "val")
    (file,) = crop_files(run)
    whole = file.read_bytes()
    row = len(whole) // VAL
    assert row == 4 + 3 * 16 * 16
    damages = {
        "a flipped pixel": (whole[: 3 * row + 50] + bytes([whole[3 * row + 50] ^ 1]) + whole[3 * row + 51 :], 1),
        "a flipped checksum": (bytes([whole[0] ^ 128]) + whole[1:], 1),
        "two rows of nothing": (whole[: 5 * row] + bytes(2 * row) + whole[7 * row :], 2),
        "half a file": (whole[: len(whole) // 2], VAL - VAL // 2),
        "an empty file": (b"", VAL),
        "too long a file": (whole + bytes(row), 0),
    }
    for damage, (content, decoded) in damages.items():
        file.write_bytes(content)
        before = len(reads.names)
        found = features_of(of_seed(folder, 1), "val")
        for path in run.workspace.features.glob("*.safetensors"):
            path.unlink()  # so that the next one encodes
        assert torch.equal(found.values, expected), damage
        assert len(reads.names) - before == decoded, damage
        assert file.read_bytes() == whole, damage


def test_other_pixels_are_another_file_and_the_same_pixels_are_not(folder: Path, reads: Reads) -> None:
    run = of_seed(folder, 0)
    features_of(run, "val")
    same: list[dict[str, Any]] = [{"pool": "class"}, {"eval_batch": 4}, {"precision": "bf16"}, {"blocks": [1]}]
    for settings in same:
        features_of(of_seed(folder, 0, **settings), "val")
    assert (len(crop_files(run)), len(reads.names)) == (1, VAL)
    other: list[dict[str, Any]] = [{"eval_crop": 1.0}, {"image_size": 24}, {"resized_by": "torchvision"}]
    for number, settings in enumerate(other, 2):
        features_of(of_seed(folder, 0, **settings), "val")
        assert (len(crop_files(run)), len(reads.names)) == (number, number * VAL), settings


def test_crops_are_kept_where_half_of_the_room_is_theirs_and_features_leave_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = VAL * (4 + 3 * 16 * 16)
    for room, kept, told in ((0, 0, 0), (2 * size - 1, 0, 1), (2 * size, 1, 0)):
        run = of_seed(folder, 0, f"room {room}", room=room)
        features_of(run, "val")
        assert len(crop_files(run)) == kept
        assert (
            capsys.readouterr().out.count("With --features 1 or more, their crops (0.0 MB) are cached and shared")
            == told
        )
    taken = run.workspace.features / "others.safetensors"
    taken.write_bytes(bytes(size + 1))
    os.utime(taken, (1, 1))
    features_of(of_seed(folder, 1, f"room {room}", room=room), "val")
    assert taken.exists(), "features do not go for crops"
    assert crop_files(run) == [], "crops go for features, though they were used later"


def test_crops_that_were_used_longest_ago_go_for_others(folder: Path) -> None:
    room = 2 * VAL * (4 + 3 * 16 * 16) + 6000
    for settings in ({}, {"eval_crop": 1.0}):
        features_of(of_seed(folder, 0, room=room, **settings), "val")
    run = of_seed(folder, 0, room=room)
    first = crop_files(run)
    assert len(first) == 2
    with kept_crops(run, run.dataset("val")):
        pass  # used now
    other = of_seed(folder, 0, room=room, eval_crop=0.9)
    with kept_crops(other, other.dataset("val")):
        left = crop_files(run)
    with kept_crops(run, run.dataset("val")) as crops:
        assert crops is not None
        assert crops.path in left
    assert len(left) == 2
    assert len(set(left) & set(first)) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_or_broken_disk_stops_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    expected = by_itself(folder, 0)

    def fails(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", fails)
        patched.setattr(os, "preadv", fails)
        assert torch.equal(features_of(of_seed(folder, 0), "val").values, expected)
    run = of_seed(folder, 0, "blocked")
    run.workspace.features.write_text("in the way")
    assert torch.equal(features_of(run, "val").values, expected)


def test_a_process_that_is_sent_the_file_opens_it_by_itself(folder: Path) -> None:
    run = of_seed(folder, 0)
    images: Any = run.dataset("val")
    see = eval_transform(16, 0.875)
    with kept_crops(run, images) as crops:
        assert crops is not None
        made = crops.crop(3, lambda: see(images.image(3)))
        sent: Crops = pickle.loads(pickle.dumps(crops))
    crops.close()
    found = sent.crop(3, lambda: pytest.fail("it is kept"))
    sent.close()
    assert torch.equal(found, made)
    assert torch.equal(made, see(images.image(3)))


def test_a_probe_has_the_same_record_whether_its_crops_were_there_or_not(folder: Path, reads: Reads) -> None:
    first = performed(of_seed(folder, 0, "one"))
    features_of(of_seed(folder, 1, "two"), "val")
    features_of(of_seed(folder, 1, "two"), "train")
    before = len(reads.names)
    assert performed(of_seed(folder, 0, "two")) == first
    assert len(reads.names) == before, "nothing was decoded"


# Random crops


FRESH = (
    SUITE[: SUITE.index("[defaults.attentive]")]
    + """
[downstream.linear]
kind = "linear"
data = "toy"
workers = 0
epochs = 3
warmup_epochs = 1
batch = 10
trackers = []
[downstream.attentive]
kind = "attentive"
data = "toy"
workers = 0
epochs = 2
warmup_epochs = 0
batch = 10
heads = 2
trackers = []
"""
)


@pytest.fixture
def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Which random crops were made of a decoded image."""
    noted, seen = Reads(folder / "made.txt"), Samples._seen

    def seeing(samples: Samples, epoch: int, index: int, image: Any, *rows: Any) -> dict[str, Any]:
        noted.note(f"{epoch}/{index}")
        return seen(samples, epoch, index, image, *rows)

    monkeypatch.setattr(Samples, "_seen", seeing)
    return noted


def run_fresh(folder: Path, home: str, room: int, *changes: str) -> dict[str, Any]:
    """Run four probes with fresh crops, of two encoders; what their records measured, by run."""
    (folder / "suite.toml").write_text(FRESH)
    suite = load_suite(str(folder / "suite.toml"), changes)
    place = Workspace(folder, folder / home / "runs", folder / home / "results", feature_bytes=room)
    run_suite(suite, [], [], place)
    found = {}
    for path in sorted(place.results.rglob("seed0.json")):
        record = json.loads(path.read_text())
        values = {one["metric"]: one["value"] for one in record["measurements"]}
        found[str(path.relative_to(place.results))] = values, record["checkpoint"], record["outcomes"]["sha256"]
    assert len(found) == 4
    return found


def epoch_files(folder: Path, home: str) -> int:
    """How many files of crops there are but that of val."""
    return len(list((folder / home).rglob("*.crops"))) - 1


@pytest.mark.parametrize("changes", [(), ("downstream.linear.workers=1",)], ids=["plain", "a loader process"])
def test_probes_of_several_encoders_decode_the_crops_of_an_epoch_once(
    folder: Path, made: Reads, changes: tuple[str, ...]
) -> None:
    alone = run_fresh(folder, "alone", 0, *changes)
    assert len(made.names) == 2 * (3 + 2) * TRAIN
    before = len(made.names)
    assert run_fresh(folder, "together", 10**9, *changes) == alone
    assert len(made.names) - before == 3 * TRAIN, "three epochs, for all four probes"
    assert epoch_files(folder, "together") == 3
    firsts = {values[1] for name, values in alone.items() if "/first/" in name}
    assert not firsts & {values[1] for name, values in alone.items() if "/second/" in name}


def test_with_room_for_fewer_epochs_the_first_are_kept_and_the_last_pass(folder: Path, made: Reads) -> None:
    size = TRAIN * (4 + 3 * 16 * 16)
    alone = run_fresh(folder, "alone", 0, "downstream.linear.epochs=6")
    before = len(made.names)
    assert run_fresh(folder, "together", 8 * size, "downstream.linear.epochs=6") == alone
    assert epoch_files(folder, "together") == 4
    assert len(made.names) - before == (6 + 2) * TRAIN, (
        "two epochs are kept and two of the first probe had not passed when the next came to them"
    )


def test_an_epoch_without_room_is_decoded_and_the_user_told(
    folder: Path, made: Reads, capsys: pytest.CaptureFixture[str]
) -> None:
    size = TRAIN * (4 + 3 * 16 * 16)
    run_fresh(folder, "here", 2 * size - 1)
    assert len(made.names) == 2 * (3 + 2) * TRAIN
    told = " ".join(capsys.readouterr().out.split())
    assert "With --features 1 or more, the crops of an epoch (0.0 MB) are cached and shared by encoders whose" in told


def test_an_image_that_cannot_be_decoded_is_replaced_whether_its_crop_would_be_kept_or_not(folder: Path) -> None:
    (folder / "toy" / "train" / "blue" / "3.png").write_bytes(b"")
    assert run_fresh(folder, "together", 10**9) == run_fresh(folder, "alone", 0)


def test_crops_of_another_seed_or_scale_are_other_files(folder: Path) -> None:
    for change in ("seeds=[0]", "seeds=[1]", "downstream.linear.crop_scale=[0.5, 1]"):
        (folder / "suite.toml").write_text(FRESH)
        suite = load_suite(str(folder / "suite.toml"), [change])
        place = Workspace(folder, folder / "here/runs", folder / "here/results")
        run_suite(suite, [], ["downstream/linear/first"], place)
    assert epoch_files(folder, "here") == 9
