"""Trackers get the losses of a training, offline, and none of them changes or stops it. Those whose package is absent are skipped."""

import json
import os
import struct
import time
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from snapshot_runs import SUITE, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_runs import opened, the_run, write_images

from lutbench.errors import UserError
from lutbench.record import read_records
from lutbench.refusals import check_run, refusal
from lutbench.run import Run
from lutbench.stages import run_suite
from lutbench.train import trackers
from lutbench.train.trackers import PACKAGES, Trackers

LUT = "pretrain.lut"
LOGGED = ("total", "mim", "context", "lr", "spread", "mean cosine", "effective rank")
"""What every tracker is given of a pre-training, beside speeds and pictures."""


@pytest.fixture(scope="session")
def trackio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: Trackio asks for it once, when it is imported."""
    return tmp_path_factory.mktemp("trackio")


@pytest.fixture
def folder(tmp_path: Path, trackio_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images and a suite; and no tracker's service or folder of the user's is touched."""
    write_images(tmp_path)
    (tmp_path / "toy.toml").write_text(SUITE)
    for name in [name for name in os.environ if name.startswith(("WANDB", "MLFLOW", "COMET", "TRACKIO"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "HOME": tmp_path / "home", "WANDB_MODE": "offline", "TRACKIO_DIR": trackio_folder, "NETRC": tmp_path / "none",
        "MLFLOW_TRACKING_URI": (tmp_path / "mlflow").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true",
        "COMET_START_ONLINE": "0", "COMET_CONFIG": tmp_path / "none",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    return tmp_path


def tracked(folder: Path, home: str, *names: str, every: int = 5) -> Run[Any]:
    return the_run(folder, home, f"{LUT}.trackers={json.dumps(names)}", f"{LUT}.log_every={every}")


def needs(name: str) -> None:
    if find_spec(PACKAGES[name][0]) is None:
        pytest.skip(f"{PACKAGES[name][1]} is not installed here: nox -s trackers has it")


def tensorboard(run: Run[Any]) -> dict[str, dict[int, float]]:
    found = EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    return {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def wandb(run: Run[Any]) -> dict[str, dict[int, float]]:
    """What the offline files have: LevelDB's logs of messages, of which those of the history are rows."""
    values: dict[str, dict[int, float]] = {}
    for path in run.folder.glob("wandb/offline-run-*/*.wandb"):
        for history in (record.history for record in records_of_wandb(path)):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}
            for name, value in row.items():
                if isinstance(value, int | float):
                    values.setdefault(name, {})[history.step.num or row["_step"]] = value
    return values


def records_of_wandb(path: Path, patience: float = 60.0) -> list[Any]:
    """The records of a file, when it is whole: the process that writes it may do so a moment after the run has finished."""
    from wandb.proto import wandb_internal_pb2

    end = time.monotonic() + patience
    while True:
        records = [wandb_internal_pb2.Record.FromString(content) for content in messages(path.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < end, f"{path} has no end: {len(records)} records"
        time.sleep(0.1)


def messages(log: bytes, header: int = 7, block: int = 32768) -> Iterator[bytes]:
    """The whole messages of a log: in blocks, of which what is too short for a header is left over, parts with checksum, length and kind."""
    place, parts = header, b""
    while place + header <= len(log):
        if block - place % block < header:
            place += block - place % block
            continue
        length, kind = struct.unpack("<HB", log[place + 4 : place + header])
        if place + header + length > len(log):
            return
        parts += log[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def mlflow(run: Run[Any]) -> dict[str, dict[int, float]]:
    """What the file store has: a file per metric, of lines of time, value and step."""
    [metrics] = run.workspace.data.glob("mlflow/*/*/metrics")
    found: dict[str, dict[int, float]] = {}
    for path in metrics.iterdir():
        rows = [line.split() for line in path.read_text().splitlines()]
        found[path.name] = {int(row[2]): float(row[1]) for row in rows}
    return found


def trackio(run: Run[Any]) -> dict[str, dict[int, float]]:
    """What the database has: a row of JSON per step, of this run."""
    import sqlite3

    [path] = Path(os.environ["TRACKIO_DIR"]).glob("lutbench*.db")
    name = f"toy/{run.name}/{(run.folder / trackers.NAME).read_text()[:12]}"
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT step, metrics FROM metrics WHERE run_name = ?", [name]).fetchall()
    found: dict[str, dict[int, float]] = {}
    for step, metrics in rows:
        for name, value in json.loads(metrics).items():
            found.setdefault(name, {})[step] = value
    return found


def comet(run: Run[Any]) -> dict[str, dict[int, float]]:
    """What the offline archive has: a message of JSON per line."""
    found: dict[str, dict[int, float]] = {}
    for path in run.folder.glob("comet/*.zip"):
        with zipfile.ZipFile(path) as archive:
            lines = archive.read("messages.json").decode().splitlines()
        for payload in (json.loads(line)["payload"] for line in lines):
            if isinstance(metric := payload.get("metric"), dict):
                found.setdefault(metric["metricName"], {})[metric["step"]] = metric["metricValue"]
    return found


READERS = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow, "trackio": trackio, "comet": comet}


@pytest.mark.parametrize("name", READERS)
def test_a_tracker_has_the_losses_and_the_training_has_the_same_bits(folder: Path, name: str) -> None:
    needs(name)
    without, run = tracked(folder, "without"), tracked(folder, "with", name)
    assert run.identity == without.identity
    assert trained(run) == trained(without)
    seen = READERS[name](run)
    assert set(LOGGED) <= seen.keys()
    assert sorted(seen["total"]) == [5, 8, 10, 15, 16, 20], "every reading, and every save"
    losses = {m["metric"]: m["value"] for m in trained(tracked(folder, "again"))["measurements"]}
    for loss in ("total", "mim", "context"):
        assert seen[loss][20] == pytest.approx(losses[f"{loss} loss"], rel=1e-6)
    assert not (without.folder / "tensorboard").exists()


@pytest.mark.parametrize("name", [name for name in READERS if name != "tensorboard"])
def test_a_run_that_goes_on_is_the_same_one_in_its_tracker(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(name)
    run, ids = tracked(folder, "here", name), []
    start = trackers.STARTS[name]
    monkeypatch.setitem(trackers.STARTS, name, lambda run, title, one: (ids.append(one), start(run, title, one))[1])  # type: ignore[arg-type]
    run.start()
    for step in (0, 8):
        opened = Trackers(run, step)
        opened.log(step + 5, {"total": 1.0 + step})
        opened.close()
    assert ids[0] == ids[1]
    assert READERS[name](run)["total"] == {5: 1.0, 13: 9.0}


def test_the_reconstructions_of_every_save_are_in_tensorboard(folder: Path) -> None:
    run = tracked(folder, "here", "tensorboard")
    trained(run)
    found = EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Images("reconstructions")] == [8, 16, 20]


def test_tensorboard_is_what_there_is_without_a_word(folder: Path) -> None:
    assert the_run(folder).recipe.trackers == ["tensorboard"]


def test_a_tracker_that_fails_stops_no_training_and_is_told_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained(tracked(folder, "without"))
    run, calls = tracked(folder, "with", "tensorboard"), []

    def fail(*_: Any) -> None:
        calls.append(1)
        raise OSError("the service does not answer")

    monkeypatch.setattr(trackers._TensorBoard, "log", fail)
    assert trained(run) == expected
    told = capsys.readouterr().out
    assert told.count("tracker tensorboard failed; training continues without it: the service does not answer") == 1
    assert len(calls) == 1, "it is left alone from there on"


def test_a_tracker_that_cannot_be_started_stops_no_training(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no key")

    monkeypatch.setitem(trackers.STARTS, "wandb", fail)  # type: ignore[arg-type]
    run = tracked(folder, "with", "wandb", "tensorboard")
    trained(run)
    assert "tracker wandb failed; training continues without it: no key" in capsys.readouterr().out
    assert 20 in tensorboard(run)["total"]


def test_a_package_that_is_missing_is_told_before_any_compute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name in ("wandb", "comet_ml") else name)
    run = tracked(folder, "here", "tensorboard", "wandb", "comet")
    with pytest.raises(
        UserError,
        match=r"pretrain.lut.trackers: wandb, comet cannot be used: .* pip install -c constraints.txt wandb comet-ml ",
    ):
        check_run(run, [])
    assert "pip install" in refusal(run, []), "status and plan tell it too"
    assert not (folder / "here").exists()
    suite, workspace = opened(folder, "here", f'{LUT}.trackers=["wandb"]')
    with pytest.raises(UserError, match="pip install"):
        run_suite(suite, [], ["pretrain/lut"], workspace)
    check_run(tracked(folder, "here", "tensorboard"), [])


def test_an_unknown_tracker_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="trackers"):
        tracked(folder, "here", "neptune")


def test_what_trackers_take_is_none_of_the_trainings_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    plain = trackers._TensorBoard.log

    def slow(*arguments: Any) -> None:
        time.sleep(0.5)
        plain(*arguments)

    monkeypatch.setattr(trackers._TensorBoard, "log", slow)
    run = tracked(folder, "here", "tensorboard")
    began = time.monotonic()
    trained(run)
    record = read_records(run.workspace.results, "toy")["pretrain/lut/seed0"]
    assert time.monotonic() - began > record.wall_seconds + 9 * 0.5, "it logs six times, and pictures three times"
    assert record.images_per_second is not None
    assert record.images_per_second == pytest.approx(180 / record.wall_seconds, rel=1e-6)


def test_no_torch_state_moves_when_a_run_is_named_for_trackers(folder: Path) -> None:
    run = tracked(folder, "here")
    run.start()
    before = torch.get_rng_state()
    first, again = trackers._Identity.of(run), trackers._Identity.of(run)
    assert torch.equal(before, torch.get_rng_state())
    assert (first.is_new, again.is_new) == (True, False)
    assert first.id == again.id
