"""A record comes back as it was written, tells when it was touched, and names nobody's machine."""

import errno
import hashlib
import io
import json
import math
import multiprocessing
import os
import platform
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downstream.segmentation.confusions import Confusions
from lutbench.arrays import MAX_BYTES
from lutbench.changes import changes
from lutbench.errors import UserError
from lutbench.evaluate.outcomes import Measurement, Outcomes, PerImage
from lutbench.files import content_sha256
from lutbench.kinds import KINDS
from lutbench.recipes.base import DataRecipe, EncoderRecipe
from lutbench.recipes.downstream import EncoderSource
from lutbench.recipes.probes import KnnRecipe
from lutbench.recipes.suite import PlannedRun
from lutbench.record import Record, identity_of, read_record, read_records, record_path
from lutbench.record_writing import copy_record, make_record, write_record

MOUNT = "/mnt/of-somebody"

DOCUMENT = {
    "stage": "knn",
    "revision": 1,
    "seed": 0,
    "recipe": {"neighbours": 20},
    "data": {"train": "ab", "val": "cd"},
}


def planned(seed: int = 0) -> PlannedRun:
    recipe = KnnRecipe(
        data=DataRecipe(path=f"{MOUNT}/images"),
        encoder=EncoderSource(architecture=EncoderRecipe(), kind="checkpoint", path="~somebody/weights/mae.pth"),
        eval_crop=1.0,
    )
    return PlannedRun("toy", KINDS["knn"], "task", "mine", seed, recipe)


def outcomes_of(*ranks: int) -> Outcomes:
    """A set of so many images of class 1 among ten; the prediction is right where the rank is 0."""
    rank = np.array(ranks)
    names = (f"one/{number}.png" for number in range(len(ranks)))
    return Outcomes.of(np.ones(len(ranks), int), np.where(rank == 0, 1, 3), rank, names)


def confusions(multi_scale: Confusions | None = None) -> Confusions:
    """Two images and three classes, of which `dog` is nowhere."""
    counts = [np.array([[0, 0, 60], [0, 2, 20]]), np.array([[0, 0, 5], [2, 0, 10], [2, 2, 5]])]
    return Confusions.of(counts, ["sky", "dog", "sea"], ["one.jpg", "two.jpg"], multi_scale)


def record_of(outcomes: PerImage, seed: int = 0, stage: str = "knn") -> Record:
    return make_record(
        planned(seed),
        DOCUMENT | {"seed": seed, "stage": stage},
        outcomes.measurements(),
        wall_seconds=1.5,
        checkpoint="c" * 64,
        extra={"skipped": 2},
    )


def written(folder: Path, *ranks: int, seed: int = 0) -> Path:
    outcomes = outcomes_of(*ranks)
    return write_record(record_of(outcomes, seed), outcomes, folder)


def edit(path: Path, change: Callable[[dict[str, Any]], object], sealed: bool = True) -> None:
    """Change a record as somebody does who knows how it is sealed, or as one who does not."""
    values = json.loads(path.read_text())
    seal = values.pop("seal")
    change(values)
    path.write_text(json.dumps(values | {"seal": content_sha256(values) if sealed else seal}))


# --- Writing and reading


def test_a_record_and_its_outcomes_come_back_as_they_were(tmp_path: Path) -> None:
    outcomes = outcomes_of(0, 0, 7, 2)
    record = record_of(outcomes)
    path = write_record(record, outcomes, tmp_path)
    assert path == record_path(tmp_path, "toy", "downstream/task/mine/seed0")
    back = read_records(tmp_path, "toy")["downstream/task/mine/seed0"]
    assert back.model_dump() | {"outcomes_file": None} == record.model_dump()
    read = back.outcomes
    assert isinstance(read, Outcomes)
    assert read.images == outcomes.images
    for name in ("label", "prediction", "rank"):
        np.testing.assert_array_equal(getattr(read, name), getattr(outcomes, name))


def test_a_record_without_outcomes_comes_back_too(tmp_path: Path) -> None:
    run = replace(planned(), kind=KINDS["pretrain"], task="mine", method="")
    loss = Measurement(metric="total loss", value=0.5, unit="")
    record = make_record(run, DOCUMENT | {"stage": "pretrain"}, [loss], wall_seconds=1.5)
    write_record(record, None, tmp_path)
    back = read_records(tmp_path, "toy")
    assert {name: one.model_dump() for name, one in back.items()} == {record.run: record.model_dump()}
    with pytest.raises(UserError, match="no per-image outcomes"):
        _ = back[record.run].outcomes


def test_the_numbers_are_counts_of_the_outcomes() -> None:
    top1, top5 = outcomes_of(0, 0, 0, 4, 5, 9, 0, 0).measurements()
    assert (top1.metric, top1.value, top1.n, top1.unit) == ("top-1", 62.5, 8, "%")
    assert (top5.metric, top5.value, top5.n) == ("top-5", 75.0, 8)
    assert top1.low is not None
    assert top1.high is not None
    assert top1.low < 62.5 < top1.high


def test_outcomes_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="rank must be 0 exactly where"):
        Outcomes.of([1, 1], [1, 3], [0, 0], ["a", "b"])
    with pytest.raises(ValueError, match="rank must be 0 exactly where"):
        Outcomes.of([1, 1], [1, 3], [1, 2], ["a", "b"])
    with pytest.raises(ValueError, match="one value for every image"):
        Outcomes.of([1, 1], [1, 3], [0, 2], ["a", "b", "c"])
    with pytest.raises(ValueError, match="whole numbers"):
        Outcomes.of([1, 1], [1, 3], [0.0, 2.0], ["a", "b"])


def test_labels_above_int16_survive(tmp_path: Path) -> None:
    outcomes = Outcomes.of([40_000, 2], [40_000, 3], [0, 50_000], ["a", "b"])
    record = record_of(outcomes)
    write_record(record, outcomes, tmp_path)
    read = read_records(tmp_path, "toy")[record.run].outcomes
    assert isinstance(read, Outcomes)
    assert read.label.tolist() == [40_000, 2]
    assert read.rank.tolist() == [0, 50_000]


def test_the_order_and_the_names_of_the_images_tell_sets_apart() -> None:
    same = [Outcomes.of([1, 1], [1, 1], [0, 0], names).images for names in (["a", "b"], ["b", "a"], ["ab", ""])]
    assert len(set(same)) == 3


# --- Segmentation


def test_a_segmentation_and_its_confusions_come_back_as_they_were(tmp_path: Path) -> None:
    several = replace(confusions(), count=np.array([70, 10, 5, 1, 14]))
    for made in (confusions(), confusions(several)):
        record = record_of(made, stage="segmentation")
        write_record(record, made, tmp_path)
        back = read_records(tmp_path, "toy")[record.run]
        assert back.model_dump() | {"outcomes_file": None} == record.model_dump()
        read = back.outcomes
        assert isinstance(read, Confusions)
        assert (read.n, read.classes, read.images) == (2, ("sky", "dog", "sea"), made.images)
        for there, here in ((read, made), (read.multi_scale, made.multi_scale)):
            for name in ("image", "label", "prediction", "count"):
                np.testing.assert_array_equal(getattr(there, name, None), getattr(here, name, None))


def test_a_class_that_is_in_one_image_alone_has_no_interval_and_its_record_comes_back(tmp_path: Path) -> None:
    counts = [np.array([[0, 0, 60]]), np.array([[0, 0, 5], [1, 1, 9]])]
    made = Confusions.of(counts, ["sky", "dog"], ["one.jpg", "two.jpg"])
    record = record_of(made, stage="segmentation")
    path = write_record(record, made, tmp_path)
    back = read_records(tmp_path, "toy")[record.run].measured("IoU dog")
    assert back is not None
    assert (back.n, back.low, back.high, back.interval) == (1, None, None, "")
    edit(path, lambda r: r["measurements"][-1].update(low=50.0))
    with pytest.raises(UserError, match=r"has IoU dog .* interval 50\.0 to None"):
        read_records(tmp_path, "toy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["measurements"][0].update(value=99.0), r"has mIoU 99\.0 % over 2 images.* give mIoU 41\.35"),
        (lambda r: r["measurements"][0].update(low=40.0), r"has mIoU 41\.3.*interval 40\.0 to"),
        (lambda r: r["measurements"][3].update(value=99.0), r"has mIoU, multi-scale 99\.0"),
        (lambda r: r["measurements"][4].update(metric="IoU dog"), r"has IoU dog .* give IoU sky"),
        (lambda r: r["measurements"].pop(), "the record has nothing, but its outcomes give IoU sea"),
        (lambda r: r["measurements"].append(r["measurements"][0]), "has mIoU .* give nothing"),
        (lambda r: r.update(outcomes=None), "lists no per-image outcomes, but every segmentation run has them"),
    ],
)
def test_an_edited_record_of_a_segmentation_is_refused(
    tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    made = confusions(confusions())
    path = write_record(record_of(made, stage="segmentation"), made, tmp_path)
    edit(path, change)
    with pytest.raises(UserError, match=message) as refused:
        read_records(tmp_path, "toy")
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize(("made", "stage"), [(confusions(), "knn"), (outcomes_of(0, 7), "segmentation")])
def test_outcomes_of_another_kind_of_task_are_refused(tmp_path: Path, made: PerImage, stage: str) -> None:
    write_record(record_of(made, stage=stage), made, tmp_path)
    with pytest.raises(UserError, match=rf"\.npz: expected the \w+ of a run of kind {stage}, found arrays"):
        read_records(tmp_path, "toy")


# --- Touched


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r["measurements"][0].update(value=99.0),
            r"has top-1 99\.0 % over 4 images.* give top-1 50\.0 % over 4",
        ),
        (lambda r: r["measurements"][1].update(value=99.0), r"has top-5 99\.0 % over 4"),
        (lambda r: r["measurements"][0].update(n=4000), r"has top-1 50\.0 % over 4000 images"),
        (lambda r: r["measurements"][0].update(low=49.0), r"interval 49\.0 to"),
        (lambda r: r["measurements"][1].update(high=75.1), r"to 75\.1 "),
        (lambda r: r["measurements"][0].update(interval="exact"), r"\(exact\), but .* \(Wilson\)"),
        (lambda r: r["measurements"][0].update(low=None, high=None), "interval None to None"),
        (lambda r: r["measurements"].pop(0), r"has top-5 .* give top-1"),
        (lambda r: r["measurements"].pop(1), "the record has nothing, but its outcomes give top-5"),
        (lambda r: r["measurements"].reverse(), r"has top-5 .* give top-1"),
        (lambda r: r["measurements"].append(r["measurements"][0] | {"value": 99.0}), r"top-1 99\.0 .* give nothing"),
        (lambda r: r.update(outcomes=None), "lists no per-image outcomes, but every knn run has them"),
        (lambda r: r["outcomes"].update(file="../task/other.npz"), r"outcomes\.file"),
        (lambda r: r["outcomes"].update(images="a" * 64), r"outcomes\.images"),
        (
            lambda r: r["outcomes"].update(file="seed1-000000000000.npz"),
            "lists the file seed1-0.*, which does not belong to a record",
        ),
        (
            lambda r: r.update(suite="../../escape"),
            "damaged, changed or written by another version: suite: .*a name has at most",
        ),
        (lambda r: r.update(task="../../../../escape"), "version: task: .*a name has at most"),
        (lambda r: r.update(method="../escape"), "version: method.*a name has at most"),
        (lambda r: r.update(run="../../../../escape"), "its run name is .*escape, but"),
        (lambda r: r.update(seed=10**15), "version: seed: "),
        (
            lambda r: r["measurements"][0].update(value=float("nan")),
            r"measurements\.0\.value: the number nan, which is not finite",
        ),
        (lambda r: r["measurements"][0].update(metric="\x1b[31mtop-1"), r"metric: the control character '\\x1b'"),
        (lambda r: r["hardware"].update(cpu="\x1b]0;x"), r"hardware\.cpu: the control character"),
        (lambda r: r["extra"].update(deep=nested(200)), "nested more than 32 deep"),
        (lambda r: r["extra"].update(large=2**70), r"extra\.large: an integer of more than 64 bits"),
        (lambda r: r["document"].update(recipe=7), r"version: document\.recipe"),
        (lambda r: r["document"].pop("revision"), r"version: document\.revision"),
        (lambda r: r["document"].update(encoder=[1]), r"version: document\.encoder"),
        (lambda r: r.update(seed=1), r"are those of downstream/task/mine/seed1"),
        (
            lambda r: r.update(seed=1, run="downstream/task/mine/seed1"),
            r"its stage is downstream and its seed 1, .* of kind knn with seed 0",
        ),
        (
            lambda r: r.update(stage="pretrain", run="pretrain/task/mine/seed0"),
            r"its stage is pretrain .* that of a run of kind knn",
        ),
        (lambda r: r.update(task="other"), r"are those of downstream/other/mine/seed0"),
        (lambda r: r.update(method="other"), r"are those of downstream/task/other/seed0"),
        (lambda r: r.update(stage="pretrain"), r"are those of pretrain/task/mine/seed0"),
        (lambda r: r.update(run="downstream/task/other/seed0"), r"its run name is downstream/task/other/seed0"),
        (lambda r: r["measurements"].clear(), "measurements"),
        (lambda r: r.update(identity="f" * 64), "its hash does not match the identity"),
        (lambda r: r["document"]["recipe"].update(neighbours=21), "its hash does not match the identity"),
        (lambda r: r["document"]["data"].update(val="ce"), "its hash does not match the identity"),
        (
            lambda r: r["document"].update(stage="other") or r.update(identity=identity_of(r["document"])),
            "unknown kind of run 'other'; this version knows pretrain, finetune",
        ),
        (
            lambda r: r["measurements"][0].update(value=math.nan),
            r"measurements\.0\.value: the number nan, which is not finite",
        ),
        (lambda r: r.update(extra={"loss": math.inf}), r"extra\.loss: the number inf, which is not finite"),
        (lambda r: r.update(format=2), "damaged, changed or written by another version: format"),
        (lambda r: r.update(wall_seconds=-1.0), "damaged, changed or written by another version: wall_seconds"),
        (
            lambda r: r.update(images_per_second=-0.5),
            "damaged, changed or written by another version: images_per_second",
        ),
        (lambda r: r["extra"].update(label="a\u200bb"), r"extra\.label: the control character"),
        (lambda r: r.update(remark="better"), "damaged, changed or written by another version: remark"),
        (lambda r: r.pop("checkpoint") and r.pop("seed"), "damaged, changed or written by another version: seed"),
    ],
)
def test_an_edited_record_is_refused_by_name(tmp_path: Path, change: Callable[[Any], object], message: str) -> None:
    path = written(tmp_path, 0, 0, 7, 2)
    edit(path, change)
    with pytest.raises(UserError, match=message) as refused:
        read_records(tmp_path, "toy")
    assert str(refused.value).startswith(f"{path}: ")
    assert "Restore it" in str(refused.value)
    assert "repeat run seed0" not in str(refused.value)  # which is no run's name


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["measurements"][0].update(value=0.25),
        lambda r: r.update(wall_seconds=0.1),
        lambda r: r["recipe"].update(neighbours=3),
        lambda r: r["code"].update(version="9.9"),
        lambda r: r["extra"].update(skipped=0),
        lambda r: r.update(checkpoint="d" * 64),
        lambda r: r["attachments"].append({"file": "seed0-a.npy", "sha256": "a" * 64, "name": "a", "kind": "array"}),
    ],
)
@pytest.mark.parametrize("stage", ["pretrain", "downstream"])
def test_a_record_is_sealed_as_a_whole_whatever_proves_its_numbers(
    tmp_path: Path, stage: str, change: Callable[[Any], object]
) -> None:
    path = written(tmp_path, 0, 7) if stage == "downstream" else pretrained(tmp_path)
    assert len(read_records(tmp_path, "toy")) == 1
    edit(path, change, sealed=False)
    with pytest.raises(
        UserError, match="damaged or changed since it was written: its hash does not match its seal"
    ) as refused:
        read_records(tmp_path, "toy")
    assert str(refused.value).startswith(f"{path}: ")
    assert "Restore it" in str(refused.value)


def pretrained(folder: Path) -> Path:
    run = replace(planned(), kind=KINDS["pretrain"], task="mine", method="")
    loss = Measurement(metric="total loss", value=0.5, unit="")
    return write_record(make_record(run, DOCUMENT | {"stage": "pretrain"}, [loss], wall_seconds=1.5), None, folder)


def test_a_record_of_before_there_were_seals_is_read_and_its_numbers_are_compared_with_its_outcomes(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, 0, 7)
    values = json.loads(path.read_text())
    del values["seal"]
    path.write_text(json.dumps(values))
    assert read_records(tmp_path, "toy")["downstream/task/mine/seed0"].measurements[0].value == 50.0
    values["measurements"][0]["value"] = 99.0
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"has top-1 99\.0"):
        read_records(tmp_path, "toy")


def test_a_record_that_says_what_only_sealed_ones_do_has_not_lost_its_seal_by_age(tmp_path: Path) -> None:
    run = replace(planned(), kind=KINDS["pretrain"], task="mine", method="")
    losses = [Measurement(metric="total loss", value=0.5, unit="")]
    sources = {"pretrain/train.py": "a" * 16}
    record = make_record(run, DOCUMENT | {"stage": "pretrain"}, losses, wall_seconds=1.5, sources=sources)
    path = write_record(record, None, tmp_path)
    values = json.loads(path.read_text())
    del values["seal"]
    values["measurements"][0]["value"] = 0.001
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="it has no seal") as refused:
        read_records(tmp_path, "toy")
    assert f"repeat run {record.run}." in str(refused.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"no zip", "expected the outcomes of a run of kind knn, found not a complete .npz file"),
        (b"\0" * (MAX_BYTES + 1), r"damaged or changed: 268,435,457 bytes is too large"),
    ],
    ids=["no zip", "too large"],
)
def test_outcomes_with_an_adapted_hash_are_refused_by_name(tmp_path: Path, content: bytes, told: str) -> None:
    path = written(tmp_path, 0, 7)
    (outcomes,) = path.parent.glob("*.npz")
    outcomes.write_bytes(content)
    edit(path, lambda r: r["outcomes"].update(sha256=hashlib.sha256(content).hexdigest()))
    with pytest.raises(UserError, match=told) as refused:
        read_records(tmp_path, "toy")
    assert str(refused.value).startswith(f"{outcomes}: ")
    assert "Restore it" in str(refused.value)


def test_no_record_is_written_or_looked_for_outside_the_results(tmp_path: Path) -> None:
    for suite, run in (
        ("..", "a"),
        ("toy", "../../../a"),
        ("/tmp", "a"),
        ("toy", "/a"),
        ("toy", "a\\..\\b"),
        ("", "a"),
    ):
        with pytest.raises(UserError, match="not a valid path below"):
            record_path(tmp_path, suite, run)
    record = read_record(written(tmp_path / "one", 0, 7))
    with pytest.raises(UserError, match="not a valid path below"):
        copy_record(record.model_copy(update={"run": "../../../../escape"}), tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_a_truncated_record_is_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, 0, 7)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="expected JSON") as refused:
        read_records(tmp_path, "toy")
    assert str(path) in str(refused.value)


def test_changed_outcomes_are_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, 0, 0, 7, 2)
    other = written(tmp_path / "other", 0, 0, 0, 0)
    (mine,), (theirs,) = path.parent.glob("*.npz"), other.parent.glob("*.npz")
    mine.write_bytes(theirs.read_bytes())
    with pytest.raises(UserError, match="damaged or changed: expected sha256") as refused:
        read_records(tmp_path, "toy")
    assert str(refused.value).startswith(f"{mine}: ")


def test_missing_outcomes_are_named(tmp_path: Path) -> None:
    (outcomes,) = written(tmp_path, 0, 7).parent.glob("*.npz")
    outcomes.unlink()
    with pytest.raises(UserError, match=r"outcomes of downstream/task/mine/seed0 are missing") as refused:
        read_records(tmp_path, "toy")
    assert str(refused.value).startswith(f"{outcomes}: ")


def test_a_record_in_the_place_of_another_is_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, 0, 7)
    moved = path.with_name("seed1.json")
    path.rename(moved)
    with pytest.raises(UserError, match="in the wrong folder") as refused:
        read_records(tmp_path, "toy")
    assert str(refused.value).startswith(f"{moved}: ")
    assert f"Move it to {path}." in str(refused.value)


def test_a_record_of_another_suite_is_refused(tmp_path: Path) -> None:
    written(tmp_path, 0, 7)
    (tmp_path / "records" / "toy").rename(tmp_path / "records" / "paper")
    with pytest.raises(UserError, match="of suite toy, in the wrong folder"):
        read_records(tmp_path, "paper")


# --- What is in the files


def test_no_path_and_no_name_of_this_machine_or_user_is_in_a_record(tmp_path: Path) -> None:
    path = written(tmp_path, 0, 7)
    text = path.read_text()
    assert json.loads(text)["recipe"]["data"]["path"] == "images"
    assert json.loads(text)["recipe"]["encoder"]["path"] == "mae.pth"
    for private in (MOUNT, "weights/", str(tmp_path), str(Path.cwd()), str(Path.home()) + "/", "somebody"):
        assert private not in text
    assert not [
        value
        for value in _texts(json.loads(text))
        if value.startswith(("/", "~")) or value == (platform.node() or None)
    ]


def _texts(value: Any) -> list[str]:
    """All strings in a JSON value, keys included."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []


def test_a_record_says_what_it_was_made_with(tmp_path: Path) -> None:
    record = read_record(written(tmp_path, 0, 7))
    assert record.packages["torch"]
    assert record.packages["python"] == platform.python_version()
    assert record.hardware.cores >= 1
    assert record.hardware.processes == 1
    assert record.code.version
    assert record.recipe["neighbours"] == 20
    assert record.extra == {"skipped": 2}


def test_the_same_outcomes_make_the_same_bytes_at_any_time(tmp_path: Path) -> None:
    contents = []
    for folder in ("one", "two"):
        (path,) = written(tmp_path / folder, 0, 0, 7, 2).parent.glob("*.npz")
        contents.append((path.name, path.read_bytes()))
    assert contents[0] == contents[1]
    with zipfile.ZipFile(io.BytesIO(contents[0][1])) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


# --- Writing again


def test_writing_again_replaces_the_outcomes_of_this_seed_alone(tmp_path: Path) -> None:
    for seed in (1, 10):
        written(tmp_path, 0, 7, seed=seed)
    path = written(tmp_path, 0, 0, seed=1)
    records = read_records(tmp_path, "toy")
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(
        name for r in records.values() if r.outcomes_file for name in (f"seed{r.seed}.json", r.outcomes_file.file)
    )
    assert {r.seed: r.measurements[0].value for r in records.values()} == {1: 100.0, 10: 50.0}


@pytest.mark.parametrize("files_before_it_is_full", [0, 1])
def test_a_full_disk_leaves_the_record_before_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_before_it_is_full: int
) -> None:
    path = written(tmp_path, 0, 7)
    before = path.read_bytes()
    sync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > files_before_it_is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="The disk is full"):
            written(tmp_path, 0, 0)
    assert path.read_bytes() == before
    assert read_records(tmp_path, "toy")["downstream/task/mine/seed0"].measurements[0].value == 50.0
    assert not list(path.parent.glob(".*"))
    written(tmp_path, 0, 0)
    assert len(list(path.parent.iterdir())) == 2


# --- Identity and changes


def test_the_identity_hangs_on_every_value_and_on_no_order() -> None:
    assert identity_of({"a": 1, "b": {"c": 2, "d": 3}}) == identity_of({"b": {"d": 3, "c": 2}, "a": 1})
    others: list[dict[str, Any]] = [
        {"a": 1, "b": 2},
        {"a": 1, "b": 3},
        {"a": 1},
        {"a": 1, "b": "2"},
        {"a": 1, "b": [2]},
        {"a": {"b": 2}},
    ]
    assert len({identity_of(document) for document in others}) == len(others)


def test_changes_names_every_field_that_differs_and_no_other() -> None:
    old = {"seed": 0, "recipe": {"epochs": 10, "crop": "simple", "betas": [0.9, 0.95]}, "data": {"train": "ab"}}
    new = {"seed": 0, "recipe": {"epochs": 20, "crop": "simple", "flip": 0.5}, "data": {"train": "ab"}}
    assert changes(old, new) == [
        "recipe.epochs changed from 10 to 20",
        "recipe.betas changed from [0.9, 0.95] to not set",
        "recipe.flip changed from not set to 0.5",
    ]
    assert changes(old, old) == []


def test_changes_tells_a_field_that_is_none_from_one_that_is_not_there() -> None:
    assert changes({}, {"micro_batch": None}) == ["micro_batch changed from not set to None"]


def test_arrays_and_pictures_come_back_and_each_is_checked_by_its_hash(tmp_path: Path) -> None:
    outcomes = outcomes_of(0, 3, 0)
    spectrum, picture = np.linspace(0, 1, 12).reshape(3, 4), b"\x89PNG not looked into"
    path = write_record(
        record_of(outcomes), outcomes, tmp_path, arrays={"spectrum": spectrum}, pictures={"heads": picture}
    )
    back = read_records(tmp_path, "toy")[read_record(path).run]
    np.testing.assert_array_equal(back.array("spectrum"), spectrum)
    assert back.picture("heads") == picture
    assert back.outcomes.rank.tolist() == [0, 3, 0]
    with pytest.raises(UserError, match="has no array 'heads'"):
        back.array("heads")
    copied = read_record(copy_record(back, tmp_path / "elsewhere"))
    np.testing.assert_array_equal(copied.array("spectrum"), spectrum)
    (file,) = path.parent.glob("*.npy")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="damaged or changed"):
        back.array("spectrum")
    with pytest.raises(UserError, match="damaged or changed"):
        read_records(tmp_path, "toy")


def test_a_record_that_is_replaced_leaves_no_file_of_the_old_one(tmp_path: Path) -> None:
    first, second = outcomes_of(0, 3, 0), outcomes_of(0, 0, 0)
    write_record(record_of(first), first, tmp_path, arrays={"spectrum": np.ones(3)}, pictures={"heads": b"old"})
    path = write_record(record_of(second), second, tmp_path, arrays={"spectrum": np.zeros(3)})
    assert len(list(path.parent.iterdir())) == 3
    assert read_record(path).array("spectrum").tolist() == [0, 0, 0]


def test_outcomes_are_read_when_asked_for_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = outcomes_of(0, 3, 0)
    path = write_record(record_of(outcomes), outcomes, tmp_path)
    reads = []
    honest = Record.content
    monkeypatch.setattr(Record, "content", lambda self, kept: reads.append(kept.file) or honest(self, kept))
    back = read_record(path)
    assert reads == []
    assert back.outcomes is back.outcomes
    assert len(reads) == 1


def test_records_are_read_whole_while_a_run_replaces_them(tmp_path: Path) -> None:
    """Another process writes one of two outcomes in turn: every reading finds one of them with its file, never neither."""
    written(tmp_path, 0, 0)
    context = multiprocessing.get_context("fork")
    may_end = context.Event()

    def replace() -> None:
        turn = 0
        while not may_end.is_set():
            turn += 1
            written(tmp_path, 0, 7 * (turn % 2))

    other = context.Process(target=replace)
    other.start()
    try:
        values = {read_records(tmp_path, "toy")["downstream/task/mine/seed0"].measurements[0].value for _ in range(150)}
    finally:
        may_end.set()
        other.join()
    assert len(values) == 2, "both were seen, so they were replaced meanwhile"
