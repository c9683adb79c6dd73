"""The suite in Python: tables of what was measured, what happened on every image, and models that see what the suite saw."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import lutbench
from lutbench.api import COLUMNS
from lutbench.errors import UserError
from lutbench.record import read_record, record_path

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copied(chain: Path, tmp_path: Path) -> Path:
    for name in ("results", "runs"):
        shutil.copytree(chain / name, tmp_path / name)
    return tmp_path


# The package


def test_importing_the_package_imports_nothing_heavy_and_takes_no_time() -> None:
    heavy = {"numpy", "pandas", "torch", "timm", "pydantic", "rich", "typer"}
    code = f"import sys, time, lutbench; print(*{heavy} & set(sys.modules), time.process_time())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(found.stdout) < 0.3, "seconds, and no name before them"


def test_the_package_says_what_it_has() -> None:
    assert lutbench.__all__ == ["__version__", "encoder", "outcomes", "records"]
    assert set(lutbench.__all__) <= set(dir(lutbench))
    assert all(getattr(lutbench, name).__module__ == "lutbench.api" for name in ("encoder", "outcomes", "records"))
    with pytest.raises(AttributeError, match="has no attribute 'recrods'"):
        lutbench.recrods  # noqa: B018
    assert (ROOT / "lutbench/py.typed").is_file(), "without it, type checkers of others pass over the types"


# Records


def test_records_are_a_row_per_measurement_as_the_files_say_it(chain: Path) -> None:
    frame = lutbench.records("toy", chain / "results")
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == COLUMNS
    files = [json.loads(path.read_text()) for path in sorted((chain / "results/records/toy").rglob("*.json"))]
    assert list(frame["metric"]) == [m["metric"] for one in files for m in one["measurements"]]
    assert list(frame["value"]) == [m["value"] for one in files for m in one["measurements"]]
    for name in ("identity", "checkpoint", "created", "wall_seconds"):
        expected = [one[name] for one in files for _ in one["measurements"]]
        found = frame[name].map(pd.Timestamp.isoformat) if name == "created" else frame[name]
        assert [None if pd.isna(value) else value for value in found] == expected
    (near,) = frame.query("task == 'near' and method == 'lut' and metric == 'top-1'").to_dict("records")
    about = {name: near[name] for name in ("kind", "run", "data", "split", "n", "unit", "interval", "seed", "draw")}
    assert about == {
        "kind": "knn", "run": "toy/downstream/near/lut/seed0", "data": "toy", "split": "val", "n": 21, "unit": "%",
        "interval": "Wilson", "seed": 0, "draw": 0,
    }  # fmt: skip
    assert near["low"] < near["value"] < near["high"]
    losses = frame.query("kind == 'pretrain'")
    assert losses["low"].isna().all()
    assert losses["n"].isna().all()
    assert set(losses["split"]) == {"train"}
    assert set(frame.query("kind == 'robustness'")["split"]) == {"test"}
    assert set(frame.query("kind == 'analysis'")["split"]) == {"val"}


def test_every_row_leads_to_its_outcomes_and_its_model(chain: Path) -> None:
    frame = lutbench.records("toy", chain / "results")
    for run in frame.query("kind not in ('pretrain', 'analysis')")["run"].unique():
        assert len(lutbench.outcomes(run, chain / "results"))
    for run in frame.query("kind in ('pretrain', 'finetune')")["run"].unique():
        assert lutbench.encoder(run, chain / "runs")


def test_a_suite_is_known_by_its_file_too(chain: Path) -> None:
    by_name, by_file = (lutbench.records(name, str(chain / "results")) for name in ("toy", "anywhere/toy.toml"))
    pd.testing.assert_frame_equal(by_name, by_file)


def test_records_that_are_not_there_or_damaged_are_told_with_what_to_do(chain: Path, copied: Path) -> None:
    with pytest.raises(UserError, match=r"no records of suite 'tory' .* Did you mean 'toy'\? .*lutbench run tory"):
        lutbench.records("tory", chain / "results")
    path = record_path(copied / "results", "toy", "downstream/near/lut/seed0")
    next(path.parent.glob("*.npz")).unlink()
    with pytest.raises(UserError, match="outcomes of downstream/near/lut/seed0 are missing"):
        lutbench.records("toy", copied / "results")


# Outcomes


def test_outcomes_are_a_row_per_image_by_name(chain: Path) -> None:
    record = read_record(record_path(chain / "results", "toy", "downstream/near/lut/seed0"))
    frame = lutbench.outcomes("toy/downstream/near/lut/seed0", chain / "results")
    names = [path.relative_to(chain / "toy/val").as_posix() for path in sorted((chain / "toy/val").rglob("*.png"))]
    assert list(frame["image"]) == names
    assert list(frame["label"]) == [0] * 3 + [1] * 11 + [2] * 7
    assert list(frame["image"][~frame["right"]]) == [f"blue/amber{number}.png" for number in range(4)]
    assert list(frame["prediction"]) == record.outcomes.prediction.tolist()
    assert list(frame["label_name"]) == [name.split("/")[0] for name in names]
    classes = ["amber", "blue", "green"]
    assert list(frame["prediction_name"]) == [classes[number] for number in frame["prediction"]]
    assert 100 * frame["right"].mean() == pytest.approx(record.measurements[0].value)
    for other in ("near/lut", record, record.folder / "seed0.json"):
        pd.testing.assert_frame_equal(lutbench.outcomes(other, chain / "results"), frame)


def test_outcomes_of_conditions_and_of_analyses_have_their_columns(chain: Path) -> None:
    shift = lutbench.outcomes("shift/hidden", chain / "results")
    assert len(shift) == 21 * 3
    by_condition = 100 * shift.groupby("condition", observed=True)["right"].mean()
    measured = lutbench.records("toy", chain / "results").query("kind == 'robustness'").set_index("metric")["value"]
    for condition, top_1 in by_condition.items():
        assert measured.filter(like=f"top-1, {condition}").iloc[0] == pytest.approx(top_1)
    looks = lutbench.outcomes("looks/lut", chain / "results")
    (distance,) = (
        lutbench.records("toy", chain / "results").query("task == 'looks' and method == 'lut'")["value"].head(1)
    )
    assert looks["attention distance"].mean() == pytest.approx(distance)


def test_a_name_of_no_run_or_of_several_is_told_with_those_there_are(chain: Path) -> None:
    with pytest.raises(UserError, match="'lut' matches 5 records: toy/analysis/looks/lut/seed0, "):
        lutbench.outcomes("lut", chain / "results")
    with pytest.raises(
        UserError, match=r"no record of a run 'toy/downstream/neer/lut/seed0'.*Did you mean 'toy/downstream/near"
    ):
        lutbench.outcomes("toy/downstream/neer/lut/seed0", chain / "results")
    with pytest.raises(UserError, match="has no per-image outcomes"):
        lutbench.outcomes("toy/pretrain/lut/seed0", chain / "results")
    with pytest.raises(UserError, match=r"There is no record .*gone\.json"):
        lutbench.outcomes(chain / "gone.json", chain / "results")


# Models


def test_a_classifier_with_its_transform_predicts_what_the_record_says(chain: Path) -> None:
    """On every image: the same weights, resizing, crop and normalisation."""
    classifier, transform = lutbench.encoder("toy/downstream/tuned/lut/seed0", chain / "runs")
    frame = lutbench.outcomes("tuned", chain / "results")
    pixels = torch.stack([transform(Image.open(chain / "toy/val" / name)) for name in frame["image"]])
    with torch.no_grad():
        scores = classifier(pixels)
    assert not classifier.training
    assert scores.argmax(1).tolist() == list(frame["prediction"])
    assert len(set(frame["prediction"])) > 1, "a constant would agree with anything"
    assert classifier.class_names == ["amber", "blue", "green"]


def test_an_encoder_with_its_transform_finds_the_neighbours_that_the_record_says(chain: Path) -> None:
    encoder, transform = lutbench.encoder("toy/pretrain/lut/seed0", chain / "runs")
    frame = lutbench.outcomes("near/lut", chain / "results")

    def features(split: str, names: list[str]) -> torch.Tensor:
        pixels = torch.stack([transform(Image.open(chain / "toy" / split / name)) for name in names])
        with torch.no_grad():
            return torch.nn.functional.normalize(encoder.forward_features(pixels)[:, 1:].mean(1))

    bank = [path.relative_to(chain / "toy/train").as_posix() for path in sorted((chain / "toy/train").rglob("*.png"))]
    near = features("val", list(frame["image"])) @ features("train", bank).T
    similar, index = near.topk(3)
    votes = torch.zeros(len(frame), 3).scatter_add_(1, index // 10, (similar / 0.07).exp())
    assert votes.argmax(1).tolist() == list(frame["prediction"])
    assert encoder(torch.zeros(2, 3, 16, 16)).shape == (2, 16)
    assert encoder.class_names == []


def test_a_transform_goes_to_loader_processes_and_takes_any_mode(chain: Path) -> None:
    transform = pickle.loads(pickle.dumps(lutbench.encoder("toy/pretrain/lut/seed0", chain / "runs")[1]))
    grey = transform(Image.new("L", (30, 20), 128))
    assert (grey.shape, grey.dtype) == ((3, 16, 16), torch.float32)
    expected = (np.array([128 / 255] * 3) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert grey[:, 8, 8].numpy() == pytest.approx(expected, abs=1e-5)


def test_what_is_no_model_of_timm_or_not_as_it_was_left_is_refused_with_what_to_do(chain: Path, copied: Path) -> None:
    with pytest.raises(UserError, match=r"has no timm model\. Give the pre-training it starts from"):
        lutbench.encoder("toy/downstream/near/lut/seed0", chain / "runs")
    with pytest.raises(
        UserError, match=r"no finished run 'toy/pretrain/lut/seed1'.* Did you mean 'toy/pretrain/lut/seed0'"
    ):
        lutbench.encoder("toy/pretrain/lut/seed1", chain / "runs")
    (weights,) = (copied / "runs/toy/pretrain/lut/seed0").glob("*/encoder.safetensors")
    described = weights.with_suffix(".json")
    text = described.read_text()
    described.write_text(text.replace("0.485", "0.5"))
    with pytest.raises(UserError, match=r"encoder\.json: .*changed"):
        lutbench.encoder("toy/pretrain/lut/seed0", copied / "runs")
    described.unlink()
    with pytest.raises(UserError, match=r"encoder\.json: missing"):
        lutbench.encoder("toy/pretrain/lut/seed0", copied / "runs")
    described.write_text(text)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="sha256"):
        lutbench.encoder(weights.parent)
