"""The wheel has all that a run needs: installed where the repository is not, it smokes every task of suite ``tiny``."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from lutbench.kinds import STAGES
from lutbench.recipes.loading import load_suite
from lutbench.smoke.shortened import Smoke, smoked
from lutbench.sources import digest_of_all

ROOT = Path(__file__).parents[1]
NO_PACKAGES = {"benchmarks", "data", "docs", "results", "runs", "tests"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as ``uv build`` makes it, from the source distribution, by the backend that it calls."""
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling, of the extra `dev`")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), "-t"]
    subprocess.run([*build, "sdist"], cwd=ROOT, check=True, capture_output=True)
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11 has none before 3.11.4
        archive.extractall(folder)
    subprocess.run([*build, "wheel"], cwd=folder / source.name.removesuffix(".tar.gz"), check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - NO_PACKAGES
    assert {name.split("/")[0] for name in names} == packages >= {"lutbench", "suites", *STAGES}
    kept = (path for package in packages for path in (ROOT / package).rglob("*") if "__pycache__" not in path.parts)
    assert names == {path.relative_to(ROOT).as_posix() for path in kept if path.is_file()}
    assert {"suites/tiny.toml", "lutbench/data/sets.toml", "lutbench/report/published.toml"} <= names


@pytest.mark.slow
def test_an_installed_wheel_smokes_every_task_of_tiny_outside_the_clone(
    wheel: Path, tiny_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mmseg", reason="tiny segments with MMSegmentation, of the extra `segmentation`")
    environment, work = tmp_path / "environment", tmp_path / "work"
    work.mkdir()
    install(wheel, environment)
    modules = ("lutbench", "suites", *STAGES)
    show = f"import {', '.join(modules)}; print({', '.join(f'{name}.__file__' for name in modules)}, sep='\\n')"
    files = call(work, environment / "bin/python", "-c", show).split()
    assert all(Path(file).is_relative_to(environment) for file in files)

    lutbench = environment / "bin/lutbench"
    answer = call(work, lutbench, "run", "tiny", "--smoke", "toy", "--data-root", str(tiny_data))
    runs = [run.name for run in smoked(load_suite("tiny"), Smoke("toy", work, tiny_data)).runs]
    assert {name.split("/")[0] for name in runs} == set(STAGES)
    assert [name for name in runs if f"{name}: " not in answer] == []
    assert "Fine-tuning" in answer, "the tables of what was run"
    results = work / "results/smoke/toy/records/tiny"
    assert {path.relative_to(results).with_suffix("").as_posix() for path in results.rglob("*.json")} == set(runs)
    codes = [json.loads(path.read_text())["code"] for path in results.rglob("*.json")]
    assert {(code["commit"], code["digest"]) for code in codes} == {(None, digest_of_all())}, (
        "of the same files as here"
    )
    assert "pretrain/lut/seed0" in call(work, lutbench, "status", "tiny", "--data-root", str(tiny_data))
    published = call(work, lutbench, "tables", "tiny", "--results", str(ROOT / "results/reference"), "--check")
    assert "The tables of tiny match its records." in published


def install(wheel: Path, environment: Path) -> None:
    """Make an environment with the wheel, and beside it the packages of this one, so that nothing is downloaded.

    A folder named in a ``.pth`` file brings its packages and not its own ``.pth`` files: not the repository, which is installed
    there as editable. But setuptools' is brought: from 3.12 on Python has no distutils, which MMEngine imports.
    """
    venv.create(environment, with_pip=True)
    python = environment / "bin/python"
    call(environment, python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel))
    (site,) = environment.glob("lib/python*/site-packages")
    others = Path(sysconfig.get_path("purelib"))
    (site / "0.pth").write_text(f"{others}\n")  # they are read in this order
    for shim in others.glob("distutils-precedence.pth"):
        shutil.copy(shim, site)


def call(folder: Path, program: Path, *arguments: str) -> str:
    """What a program prints that is called in ``folder``, without variables that would show it the repository."""
    hidden = {"PYTHONPATH", "LUTBENCH_DATA", "LUTBENCH_RUNS", "LUTBENCH_RESULTS"}
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    answer = subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout
    return answer.stdout
