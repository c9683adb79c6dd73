"""The wheel, installed where the repository is not, runs suite ``tiny`` to the end."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from lutbench.kinds import STAGES
from lutbench.recipes.loading import load_suite

ROOT = Path(__file__).parents[1]
NOT_PACKED = {"tests", "benchmarks", "docs", "results", "data", "runs", "dist"}
LUT = '["lut"]'

SHORT = (
    "defaults.pretrain.epochs=1", "defaults.pretrain.warmup_epochs=0",
    "defaults.finetune.epochs=1", "defaults.finetune.warmup_epochs=0",
    "defaults.linear.epochs=1", "defaults.linear.warmup_epochs=0",
    "defaults.segmentation.iterations=2", "defaults.segmentation.warmup=1",
    *(f"downstream.{task}.methods={LUT}" for task in ("photographs-finetune", "photographs-linear", "photographs-knn", "tiles-finetune", "mosaics")),
    f"robustness.photographs.methods={LUT}",
)  # fmt: skip
"""Every task and every shifted set, with one method and as few steps as there can be."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the backend that ``uv build`` calls, without its isolated environment, which it would download."""
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling, of the extra `dev`")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_the_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    packed = {Path(name) for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - NOT_PACKED
    assert {path.parts[0] for path in packed} == packages >= {"lutbench", "suites", *STAGES}
    kept = {
        path.relative_to(ROOT)
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == kept


@pytest.mark.slow
def test_it_runs_tiny_to_the_end_where_the_repository_is_not(wheel: Path, tiny_data: Path, tmp_path: Path) -> None:
    python = installed(wheel, tmp_path / "environment")
    work = tmp_path / "work"
    work.mkdir()
    modules = ("lutbench", "suites", *STAGES)
    found = call(
        work,
        python,
        "-c",
        f"import {', '.join(modules)}; print({', '.join(f'{m}.__file__' for m in modules)}, sep='\\n')",
    )
    for line in found.splitlines():
        assert Path(line).is_relative_to(tmp_path / "environment")

    settings = [part for setting in SHORT for part in ("--set", setting)]
    lutbench = python.with_name("lutbench")
    answer = call(work, lutbench, "run", "tiny", "--data-root", str(tiny_data), *settings)
    runs = [run.name for run in load_suite("tiny", SHORT).runs]
    assert {name.split("/")[0] for name in runs} == set(STAGES)
    assert [name for name in runs if f"{name}: " not in answer] == []
    records = {
        path.relative_to(work / "results/records/tiny").with_suffix("").as_posix() for path in work.rglob("seed0.json")
    }
    assert records == set(runs)
    assert "Fine-tuning" in call(work, lutbench, "tables", "tiny", *settings)


def installed(wheel: Path, environment: Path) -> Path:
    """The Python of a new environment with the wheel, and beside it the packages of this one, so that nothing is downloaded.

    A path that stands in a ``.pth`` file brings packages and no further ``.pth`` file: not the repository, where it is
    installed as editable.
    """
    venv.create(environment, with_pip=True)
    python = environment / "bin/python"
    call(environment, python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel))
    packages = Path(call(environment, python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def call(folder: Path, program: Path, *arguments: str) -> str:
    """What a program prints, called in ``folder``, without the variables that would show it the repository."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LUTBENCH_DATA")}
    answer = subprocess.run(
        [program, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert answer.returncode == 0, answer.stdout
    return answer.stdout
