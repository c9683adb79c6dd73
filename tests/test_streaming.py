"""Streamed sets: a step's images depend on seed and step alone, and only what is looked at is read."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from image_files import encoded, picture
from numpy.typing import NDArray
from torch import Tensor
from toy_runs import HEAD, NARROW, encoder

from lutbench.data import streaming
from lutbench.data.images import ImageDataset, UndecodableImage, open_dataset
from lutbench.data.streaming import StreamedImages
from lutbench.data.tensors import to_tensor
from lutbench.errors import UserError
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.loading import load_suite
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.probes import KnnRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.run import open_run
from lutbench.stages import run_suite
from lutbench.train.batches import Schedule, stream
from lutbench.workspace import Workspace

COUNTS = (9, 4, 8)
"""Rows of the three files, in row groups of three."""
IMAGES = sum(COUNTS)


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BUFFER", 5)
    streaming._order.cache_clear()


def write_set(folder: Path, broken: int | None = None) -> Path:
    """As the Hub lays out a set: an image is gray by its number, so that it tells which it is."""
    (folder / "data").mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    number = 0
    for part, count in enumerate(COUNTS):
        contents = [encoded(picture((10 * k, 10 * k, 10 * k), k), "png") for k in range(number, number + count)]
        contents = [b"broken" if number + k == broken else content for k, content in enumerate(contents)]
        rows = [{"bytes": content, "path": None} for content in contents]
        table = datasets.Dataset.from_dict({"image": rows, "label": [k % 2 for k in range(count)]}, features=features)
        table.to_parquet(folder / f"data/train-{part:05d}-of-00003.parquet", batch_size=3)
        number += count
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_set(tmp_path / "set")
    return tmp_path


def opened(root: Path, **changes: object) -> ImageDataset:
    recipe = {"source": "huggingface", "path": "set", "streaming": True, **changes}
    return open_dataset(read_recipe(DataRecipe, recipe, "data"), "train", root)


def looks(images: ImageDataset, start: int = 0, workers: int = 0, **changes: Any) -> list[dict[str, Tensor]]:
    """The passes of a run of 3 epochs, with a draw under every image's key."""
    schedule = Schedule(**{"images": len(images), "epochs": 3, "batch": 8, "micro_batch": 4, "seed": 1} | changes)
    return list(stream(images, _draw, schedule, start, workers))


def order_of(images: StreamedImages) -> NDArray[np.int64]:
    """The images in the order in which epoch 0 of seed 1 sees them."""
    return streaming._order(tuple(file.rows for file in images.files), 1, 0)[1]


def _draw(image: Any) -> dict[str, Tensor]:
    return {"pixels": to_tensor(image), "noise": torch.rand(3)}


def same(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(first, second, strict=True)
    )


def test_an_image_is_that_of_its_row(root: Path) -> None:
    images = opened(root)
    assert len(images) == IMAGES
    assert images.labels is None
    for index in (0, 8, 9, 12, 20):
        assert np.array_equal(images.image(index), picture((10 * index,) * 3, index))  # type: ignore[arg-type]


def test_every_epoch_looks_at_every_image_once_in_an_order_of_its_own(root: Path) -> None:
    images = opened(root)
    passes = looks(images)
    schedule = Schedule(IMAGES, 3, 8, 4, 1)
    by_position = torch.empty(schedule.steps * 8, dtype=torch.int64)
    for number, part in enumerate(passes):
        step, accumulated = divmod(number, 2)
        by_position[[8 * step + row for row in schedule.rows(accumulated)]] = part["index"]
    epochs = [by_position[IMAGES * epoch : IMAGES * (epoch + 1)].tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(IMAGES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != sorted(epochs[0])


def test_pixels_are_those_of_the_index(root: Path) -> None:
    images = opened(root)
    for part in looks(images):
        for index, pixels in zip(part["index"].tolist(), part["pixels"], strict=True):
            assert torch.equal(pixels, to_tensor(images.image(index)))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_loader_workers_changes_nothing(root: Path, workers: int) -> None:
    images = opened(root)
    assert same(looks(images, workers=workers), looks(images))


def test_two_processes_look_at_what_one_does(root: Path) -> None:
    images = opened(root)
    one = looks(images)
    two = [looks(images, rank=rank, processes=2) for rank in range(2)]
    for whole, *parts in zip(one, *two, strict=True):
        rows = dict(zip(whole["index"].tolist(), whole["noise"], strict=True))
        shared = {i: noise for part in parts for i, noise in zip(part["index"].tolist(), part["noise"], strict=True)}
        assert rows.keys() == shared.keys()
        assert all(torch.equal(rows[index], shared[index]) for index in rows)


@pytest.mark.parametrize("start", [1, 3, 6])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_as_the_uninterrupted_one(root: Path, start: int, workers: int) -> None:
    images = opened(root)
    assert same(looks(images, start, workers), looks(images)[2 * start :])


def test_going_on_late_in_an_epoch_reads_only_what_is_still_to_come(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = opened(root)
    assert isinstance(images, StreamedImages)
    read = []
    reading = StreamedImages._read

    def counted(self: StreamedImages, *arguments: Any) -> list[bytes]:
        read.append(arguments)
        return reading(self, *arguments)

    monkeypatch.setattr(StreamedImages, "_read", counted)
    assert len(list(images.contents(1, 0, np.arange(IMAGES)))) == IMAGES
    whole, read[:] = len(read), []
    places = np.arange(IMAGES - 2, IMAGES)
    found = [index for index, _ in images.contents(1, 0, places)]
    assert found == order_of(images)[places].tolist()
    assert len(read) <= 2 < whole


def test_opening_reads_no_image(root: Path) -> None:
    """Of files that hold nothing but zeros before their footer."""
    before = opened(root).fingerprint
    for path in (root / "set/data").iterdir():
        content = path.read_bytes()
        footer = int.from_bytes(content[-8:-4], "little") + 8
        path.write_bytes(content[:4] + bytes(len(content) - 4 - footer) + content[-footer:])
    images = opened(root)
    assert (len(images), images.fingerprint) == (IMAGES, before)
    with pytest.raises(UserError, match="cannot be read"):
        images.content(0)


def test_an_order_is_the_same_in_whatever_pieces_it_is_drawn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = opened(root)
    assert isinstance(images, StreamedImages)
    whole = order_of(images)
    for size in (1, 3, 16, 17):
        monkeypatch.setattr(streaming, "PLACES_AT_ONCE", size)
        streaming._order.cache_clear()
        assert np.array_equal(order_of(images), whole)


def test_a_row_group_is_read_in_pieces(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = opened(root)
    whole = [images.content(index) for index in range(IMAGES)]
    for size in (1, 2):
        monkeypatch.setattr(streaming, "ROWS_AT_ONCE", size)
        assert [images.content(index) for index in range(IMAGES)] == whole
        assert same(looks(images), looks(opened(root)))


def test_a_file_with_other_columns_is_noticed_when_the_set_is_opened(root: Path) -> None:
    path = root / "set/data/train-00001-of-00003.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.rename_columns(["img", "label"]), path)
    with pytest.raises(UserError, match=r"00001-of-00003\.parquet has no such column.* Columns: img, label"):
        opened(root)
    with pytest.raises(UserError, match="expected image bytes, found int64"):
        opened(root, image_column="label")
    for file in (root / "set/data").iterdir():
        pq.write_table(rows.slice(0, 0), file)
    with pytest.raises(UserError, match="has no rows"):
        opened(root)


def test_a_file_that_was_replaced_since_is_noticed_when_it_is_read(root: Path) -> None:
    images = opened(root)
    path = root / "set/data/train-00001-of-00003.parquet"
    pq.write_table(pq.read_table(path).slice(0, 2), path)
    with pytest.raises(UserError, match="changed since the run started"):
        images.content(COUNTS[0])


def test_a_network_that_is_gone_is_explained(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose errors are the Hub client's own, and no OSError."""

    class ConnectError(Exception):
        pass

    def gone(*arguments: Any) -> None:
        raise ConnectError("name resolution failed")

    images = opened(root)
    monkeypatch.setattr(streaming, "_opened", gone)
    with pytest.raises(UserError, match=r"ConnectError: name resolution failed\. Check the network connection"):
        images.content(0)
    monkeypatch.setattr("fsspec.open", gone)
    with pytest.raises(UserError, match=r"ConnectError: name resolution failed\. Check the network connection"):
        opened(root)


def test_a_stream_of_everything_below_the_data_root_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="path is empty"):
        opened(root, path="")


def test_an_image_that_cannot_be_decoded_stops_or_gives_its_place_to_the_next(tmp_path: Path) -> None:
    write_set(tmp_path / "set", broken=7)
    with pytest.raises(UndecodableImage, match="train/00000007"):
        looks(opened(tmp_path))
    passes = looks(opened(tmp_path, undecodable="skip"))
    skipped = torch.cat([part["skipped"] for part in passes])
    used = torch.cat([part["index"] for part in passes])
    assert 7 not in used.tolist()
    assert used[skipped == 1].tolist() == [8] * int((skipped == 1).sum())
    assert (skipped == 1).sum() >= 2


def test_another_file_is_another_fingerprint_and_another_place_is_not(root: Path, tmp_path: Path) -> None:
    before = opened(root).fingerprint
    write_set(tmp_path / "elsewhere/set")
    assert opened(tmp_path / "elsewhere").fingerprint == before
    (root / "set/data/train-00002-of-00003.parquet").unlink()
    assert opened(root).fingerprint != before


def test_what_cannot_be_streamed_is_said(root: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'train'"):
        opened(root, train="trian")
    with pytest.raises(UserError, match="Did you mean 'image'"):
        opened(root, image_column="imge")
    whole = root / "set/data/train-00001-of-00003.parquet"
    whole.write_bytes(whole.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"train-00001-of-00003\.parquet is not a complete Parquet file"):
        opened(root)
    with pytest.raises(UserError, match="streaming = true needs source = 'huggingface'"):
        read_recipe(DataRecipe, {"path": "set", "streaming": True}, "data")
    streamed = {"source": "huggingface", "path": "set", "streaming": True}
    with pytest.raises(UserError, match="cache = true"):
        read_recipe(PretrainRecipe, {"data": streamed, "cache": True}, "pretrain.lut")
    source = {"architecture": {}, "kind": "scratch"}
    with pytest.raises(UserError, match="for pre-training"):
        read_recipe(KnnRecipe, {"data": streamed, "encoder": source}, "downstream.knn")


SUITE = f"""{HEAD}[data.toy]
source = "huggingface"
path = "set"
streaming = true
{encoder()}
[pretrain.lut]
data = "toy"
encoder = "toy"
epochs = 2
warmup_epochs = 0
batch = 8
{NARROW}
workers = 0
"""


def test_a_run_from_a_stream_is_the_same_whatever_the_workers(root: Path) -> None:
    (root / "toy.toml").write_text(SUITE)
    weights = []
    for workers in (0, 2):
        suite = load_suite(str(root / "toy.toml"), [f"pretrain.lut.workers={workers}"])
        workspace = Workspace(root, root / f"runs{workers}", root / f"results{workers}")
        run_suite(suite, [], [], workspace)
        run = open_run(suite, suite.runs[0], workspace)
        assert (run.folder / "reconstructions.png").is_file()
        weights.append(json.loads((run.folder / "finished.json").read_text())["checkpoint"])
    assert weights[0] == weights[1]
