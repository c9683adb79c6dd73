"""A new stage is a folder and a line in three files, and works everywhere: run, status, plan, tables, nox, wheel, types.

The stage here is thrown away: it encodes a dataset, counts the images of each class, and keeps the counts as an array and a
picture. It is :data:`STAGE`, a file in a folder of its own, and :data:`LINES`; nothing else is added to the copy of the code.
"""

import contextlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image
from toy_runs import TOY, defaults, write_images

ROOT = Path(__file__).parents[1]
COPIED = (
    "lutbench",
    "pretrain",
    "downstream",
    "robustness",
    "analysis",
    "suites",
    "noxfile.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)

STAGE = '''"""Count the images of each class of a dataset."""

import io
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from PIL import Image

from lutbench.evaluate.outcomes import Measurement
from lutbench.recipes.downstream import ClassificationRecipe

if TYPE_CHECKING:
    from lutbench.run import Run


class CountRecipe(ClassificationRecipe):
    """The dataset whose images are encoded and counted."""

    revision: ClassVar[int] = 1
    kind: Literal["count"] = "count"
    pool: Literal["class", "mean"] = "mean"


def check(run: "Run[CountRecipe]") -> None:
    """Raise an error if the images cannot be read."""
    run.dataset("train")


def perform(run: "Run[CountRecipe]") -> None:
    """Encode and count the images; write a record with the counts as an array and as a picture with one pixel per class."""
    from lutbench.evaluate.inference import encode_images  # imported here, so that tables can read the recipe without torch
    from lutbench.models.pretrained import encoder_of

    images = run.dataset("train")
    encoded = encode_images(encoder_of(run, None), images, run.recipe, run.preprocessing, run.name)
    counts = np.bincount(images.labels[encoded.index])
    png = io.BytesIO()
    Image.fromarray(counts[None].astype(np.uint8)).save(png, "PNG")
    total = Measurement(metric="images", value=float(counts.sum()), unit="")
    run.save_results([total], seconds=1.0, arrays={"per-class": counts}, pictures={"per-class": png.getvalue()})
'''

LINES = {
    "lutbench/kinds.py": (
        'Kind("robustness"',
        '        Kind("count", "counting", "counting.count:CountRecipe", "counting.count", "encoder"),',
    ),
    "lutbench/recipes/suite.py": (
        "    robustness: dict",
        "    counting: dict[str, TaskTable] = Field(default_factory=dict)",
    ),
    "noxfile.py": ('    "robustness": ', '    "counting": "Count the images of each class.",'),
}
"""By the file, what stands in the line before, and the line that a new stage adds."""

SUITE = f"""{TOY}
{defaults("pretrain", batch=8)}
[pretrain.lut]
[method.lut]
label = "LUT"
pretrain = "lut"
[method.scratch]
label = "From scratch"
scratch = true
encoder = "toy"
[counting.classes]
title = "Counted images"
kind = "count"
data = "toy"
"""

RUNS = ("counting/classes/lut/seed0", "counting/classes/scratch/seed0")

COMMANDS = {
    "help": ("run", "--help"),
    "too early": ("run", "counted.toml", "--stage", "counting", "--only", "lut"),
    "plan": ("plan", "counted.toml"),
    "run": ("run", "counted.toml"),
    "again": ("run", "counted.toml", "--stage", "counting"),
    "status": ("status", "counted.toml"),
    "tables": ("tables", "counted.toml"),
    "check": ("tables", "counted.toml", "--check"),
    "restore": ("run", "counted.toml", "--results", "elsewhere"),
    "planned": ("plan", "counted.toml"),
}

IN_ONE_PROCESS = f"""
import contextlib, io, json, sys, traceback
from lutbench.cli import main
answers = {{}}
for name, arguments in {COMMANDS!r}.items():
    sys.argv = ["lutbench", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
        except Exception:
            status = "crashed"
            traceback.print_exc()
    answers[name] = [status, out.getvalue(), err.getvalue()]
print(json.dumps(answers))
"""
"""The command line for one line after the other, in a process that imports torch once."""

READ = """
import sys
from pathlib import Path
import numpy as np
from lutbench.errors import UserError
from lutbench.record import read_record
record = read_record(Path(sys.argv[1]))
np.save("array.npy", record.array("per-class"))
Path("picture.png").write_bytes(record.picture("per-class"))
for path in Path(sys.argv[1]).parent.glob("seed0-*"):
    path.write_bytes(path.read_bytes()[:-1] + b"!")
for read in (record.array, record.picture):
    try:
        read("per-class")
    except UserError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with one stage more."""
    root = tmp_path_factory.mktemp("code")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    (root / "counting").mkdir()
    (root / "counting/__init__.py").touch()
    (root / "counting/count.py").write_text(STAGE)
    for name, (before, line) in LINES.items():
        lines = (root / name).read_text().splitlines()
        (number,) = (number for number, text in enumerate(lines, 1) if before in text)
        lines.insert(number, line)
        (root / name).write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def work(extended: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder in which the suite was run with that stage, and what every command answered: status, output, errors."""
    folder = tmp_path_factory.mktemp("work")
    write_images(folder / "data")
    (folder / "counted.toml").write_text(SUITE)
    answers: dict[str, Any] = json.loads(python(extended, folder, "-c", IN_ONE_PROCESS))
    return folder, answers


def python(code: Path, folder: Path, *arguments: str) -> str:
    """What Python prints when it is called in ``folder`` with the packages in ``code``."""
    environment = {**os.environ, "PYTHONPATH": str(code), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def test_its_runs_leave_records(work: tuple[Path, dict[str, Any]]) -> None:
    folder, answers = work
    status, out, err = answers["run"]
    assert (status, err) == (0, "")
    for name in RUNS:
        assert f"{name}: images 30.000" in out
        record = json.loads((folder / f"results/records/counted/{name}.json").read_text())
        assert [(m["metric"], m["value"]) for m in record["measurements"]] == [("images", 30.0)]
        assert record["stage"] == "counting"
        assert record["outcomes"] is None
        assert [(a["name"], a["kind"]) for a in record["attachments"]] == [
            ("per-class", "array"),
            ("per-class", "picture"),
        ]
    pretrained = json.loads((folder / "results/records/counted/pretrain/lut/seed0.json").read_text())
    assert json.loads((folder / f"results/records/counted/{RUNS[0]}.json").read_text())["document"]["encoder"] == {
        "run": pretrained["identity"], "sha256": pretrained["checkpoint"]
    }  # fmt: skip


def test_array_and_picture_are_read_through_the_record_and_refused_when_damaged(
    extended: Path, work: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = work
    shutil.copytree(folder / f"results/records/counted/{RUNS[0]}".removesuffix("/seed0"), tmp_path / "lut")
    refused = python(extended, tmp_path, "-c", READ, "lut/seed0.json").splitlines()
    assert np.load(tmp_path / "array.npy").tolist() == [10, 10, 10]
    with Image.open(tmp_path / "picture.png") as picture:
        assert np.asarray(picture).tolist() == [[10, 10, 10]]
    assert len(refused) == 2
    assert all("damaged or changed" in line for line in refused)


def test_a_second_run_finds_it_finished_and_restores_its_record(work: tuple[Path, dict[str, Any]]) -> None:
    folder, answers = work
    status, out, err = answers["again"]
    assert (status, err) == (0, "")
    assert [line.split("; ")[0] for line in out.splitlines()] == [f"{name}: finished already" for name in RUNS]
    kept, restored = (
        {path.name: path.read_bytes() for path in (folder / results / f"records/counted/{RUNS[1]}").parent.iterdir()}
        for results in ("results", "elsewhere")
    )
    assert kept == restored
    assert len(kept) == 3


def test_without_its_encoder_it_says_what_to_run_first(work: tuple[Path, dict[str, Any]]) -> None:
    status, _, err = work[1]["too early"]
    assert status == 1
    assert f"{RUNS[0]} starts from the encoder of pretrain/lut/seed0, which is missing" in err


def test_help_and_status_know_it(work: tuple[Path, dict[str, Any]]) -> None:
    _, answers = work
    assert "counting" in answers["help"][1]
    status, out, err = answers["status"]
    assert (status, err) == (0, "")
    for name in RUNS:
        (line,) = (line for line in out.splitlines() if line.startswith(name))
        assert line.split()[1:4] == ["finished", "images", "30.000"]


def test_the_plan_has_a_row_of_it_until_it_has_finished(work: tuple[Path, dict[str, Any]]) -> None:
    _, answers = work
    for name, done in (("plan", False), ("planned", True)):
        status, out, err = answers[name]
        assert (status, err) == (0, ""), err
        lines = [line.split() for line in out.splitlines()]
        (start,) = (number for number, line in enumerate(lines) if line[:1] == ["counting"])
        assert lines[start][1] == ("0" if done else "2")
        assert lines[start + 1] == ["classes"]
        for row, method in zip(lines[start + 2 : start + 4], ("lut", "scratch"), strict=True):
            assert row[0] == method
            assert ("done" in row) == done


def test_the_tables_have_a_row_of_each_method(work: tuple[Path, dict[str, Any]]) -> None:
    folder, answers = work
    status, out, err = answers["tables"]
    assert (status, err) == (0, "")
    assert "Counted images" in out
    main = (folder / "results/tables/counted/main.md").read_text()
    rows = [line for line in main.splitlines() if line.startswith("|") and "Counted images" in line]
    for method in ("LUT", "From scratch"):
        assert any(f"| {method} " in row and "| 30 " in row for row in rows), main
    assert all(f"`{name}`" in main for name in RUNS)
    assert answers["check"][0] == 0


def test_nox_has_a_session_of_it(extended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nox, session = MagicMock(), MagicMock(posargs=["counted.toml"])
    monkeypatch.setitem(sys.modules, "nox", nox)
    runpy.run_path(str(extended / "noxfile.py"))
    assert nox.options.sessions == ["pretrain", "downstream", "robustness", "counting", "analysis", "results"]
    (function,) = (call.args[0] for call in nox.session.call_args_list if call.kwargs.get("name") == "counting")
    assert function.__doc__ == "Count the images of each class."
    monkeypatch.setitem(function.__globals__, "_install", lambda session: None)
    function(session)
    assert session.run.call_args.args[1:] == ("run", "counted.toml", "--stage", "counting")


def test_the_wheel_takes_it(extended: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling, of the extra `dev`")
    python(
        Path(os.environ.get("PYTHONPATH", "")), extended, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert "counting/count.py" in zipfile.ZipFile(wheel).namelist()


def test_types_are_checked_in_it(extended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = pytest.importorskip("mypy.main", reason="types are checked with mypy, of the extra `dev`")
    monkeypatch.chdir(extended)
    with contextlib.redirect_stderr(io.StringIO()):
        sources, _ = main.process_options([])
    found = {source.module for source in sources}
    assert {"counting.count", "lutbench.kinds", "pretrain.train"} <= found
    assert "noxfile" not in found
