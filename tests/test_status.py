"""What ``status`` shows on a terminal, which may be narrow, and in a file."""

from pathlib import Path

import pytest
from rich.console import Console
from toy_runs import SUITE, write_images

from lutbench.recipes.loading import load_suite
from lutbench.stages import show_status
from lutbench.workspace import Workspace

NAME = "downstream/task/scratch/seed0"


def shown(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **size: bool | int) -> str:
    """What is printed about a suite of one run that was not started, whose folder has a long name."""
    write_images(folder, train=1, val=1)
    (folder / "toy.toml").write_text(f'{SUITE}kind = "finetune"')
    console = Console(soft_wrap=True, highlight=False, markup=False, **size)  # type: ignore[arg-type]
    monkeypatch.setattr("lutbench.stages.console", console)
    workspace = Workspace(data=folder, runs=folder / ("r" * 60), results=folder / "results")
    show_status(load_suite(str(folder / "toy.toml")), workspace)
    return capsys.readouterr().out


@pytest.mark.parametrize("size", [{"force_terminal": False, "width": 80}, {"force_terminal": True, "width": 500}])
def test_a_file_and_a_wide_terminal_have_a_run_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: dict[str, int]
) -> None:
    title, line = shown(tmp_path, monkeypatch, capsys, **size).splitlines()
    assert title == "Suite toy"
    name, state, folder = line.split()
    assert (name, state) == (NAME, "missing")
    assert folder.startswith(f"{tmp_path}/rrr")


def test_a_narrow_terminal_has_the_folder_below_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, line, below = shown(tmp_path, monkeypatch, capsys, force_terminal=True, width=80).splitlines()
    assert line == f"{NAME}  missing"
    assert below.startswith(f"    {tmp_path}/rrr")
