"""Commands that only read import nothing that computes: they answer at once."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from chained import CHAINED, run_chain
from toy_runs import TOY, defaults, write_images

from lutbench.models.preprocessing import IMAGENETS_MEAN, IMAGENETS_STD
from lutbench.recipes.loading import load_suite
from lutbench.stages import run_suite
from lutbench.workspace import Workspace
from robustness.corruption_names import NAMES
from robustness.labels import imagenet_1k

HEAVY = ("accelerate", "datasets", "mmengine", "scipy.stats", "skimage", "sklearn", "timm", "torch", "torchvision")
DRAWS = "matplotlib"

MODULES = """
import atexit, json, sys
from lutbench.cli import main

sys.argv = ["lutbench", *sys.argv[1:]]
heavy = %r
atexit.register(lambda: print(json.dumps([name for name in heavy if name in sys.modules]), file=sys.stderr))
main()
"""


def heavy_modules(arguments: Sequence[str], folder: Path) -> list[str]:
    """Which of :data:`HEAVY` a command imports that is given in ``folder``."""
    return [name for name in imported(arguments, folder) if name != DRAWS]


def imported(arguments: Sequence[str], folder: Path) -> list[str]:
    """Which of :data:`HEAVY` and :data:`DRAWS` a command imports that is given in ``folder``."""
    program = [sys.executable, "-c", MODULES % ((*HEAVY, DRAWS),), *arguments]
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, env={**os.environ, **path})
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stderr.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a suite of every stage was run, and in which tables are written."""
    folder = tmp_path_factory.mktemp("chain")
    run_chain(folder)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["data", "list", "--data-root", "."],
        ["data", "list", "imagenet-1k", "--data-root", "."],
        ["status", "toy.toml", "--data-root", "."],
        ["plan", "toy.toml", "--data-root", "."],
        ["plan", "toy.toml", "--summary", "--data-root", "."],
        ["tables", "toy.toml"],
        ["tables", "toy.toml", "--check"],
        ["show", "toy/pretrain/lut/seed0"],
    ],
    ids=" ".join,
)
def test_a_command_that_only_reads_what_has_finished_imports_nothing_that_computes(
    chain: Path, arguments: list[str]
) -> None:
    assert heavy_modules(arguments, chain) == []


def test_status_of_a_run_that_read_a_cache_imports_nothing_that_computes(tmp_path: Path) -> None:
    """The cache's fingerprint is a part of the run's identity, and its reader imports PyTorch."""
    write_images(tmp_path)
    text = f'{TOY}{defaults("pretrain", cache=True)}\n[pretrain.lut]\n[method.lut]\npretrain = "lut"\n'
    (tmp_path / "toy.toml").write_text(text)
    run_suite(
        load_suite(str(tmp_path / "toy.toml")), [], [], Workspace(tmp_path, tmp_path / "runs", tmp_path / "results")
    )
    for command in ("status", "plan"):
        assert heavy_modules([command, "toy.toml", "--data-root", "."], tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [["plan", "paper"], ["tables", "paper"]],
    ids=" ".join,
)
def test_a_command_that_only_reads_imports_nothing_that_computes_where_nothing_has_finished(
    tmp_path: Path, arguments: list[str]
) -> None:
    assert heavy_modules(arguments, tmp_path) == []


def test_a_figure_is_drawn_again_only_if_its_file_is_not_what_was_drawn(chain: Path) -> None:
    tables = ["tables", "toy.toml"]
    heavy_modules(tables, chain)
    figures = {path: path.read_bytes() for path in (chain / "results/figures/toy").iterdir()}
    assert figures
    assert DRAWS not in imported(tables, chain)
    first = next(iter(figures))
    first.write_bytes(figures[first][:-1])
    assert DRAWS in imported(tables, chain)
    assert {path: path.read_bytes() for path in figures} == figures


def test_runs_to_come_are_tried_for_real_where_it_is_asked_for(tmp_path: Path) -> None:
    """What would stop a run is found by building its model, which needs torch."""
    write_images(tmp_path)
    (tmp_path / "toy.toml").write_text(CHAINED)
    status = ["status", "toy.toml", "--data-root", "."]
    assert heavy_modules(status, tmp_path) == []
    assert "torch" in heavy_modules([*status, "--check"], tmp_path)


def test_the_colours_of_imagenet_are_timms() -> None:
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    assert (IMAGENETS_MEAN, IMAGENETS_STD) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def test_the_classes_of_imagenet_are_timms() -> None:
    from timm.data import ImageNetInfo

    assert list(imagenet_1k().names) == ImageNetInfo().label_names()


def test_the_names_of_corruptions_are_those_of_the_functions_in_their_order() -> None:
    from robustness.corruptions import _FUNCTIONS

    assert tuple(_FUNCTIONS) == NAMES
