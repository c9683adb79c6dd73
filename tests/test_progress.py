"""What takes long says how far it is and how long it will still take."""

from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from lutbench.progress import Bar, tracked
from lutbench.train.batches import Schedule
from lutbench.train.logger import TrainingLogger


def test_a_run_says_how_far_it_is_between_two_readings_of_its_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step of a large batch may take half a minute on a CPU, and losses are read every twenty."""
    monkeypatch.setattr("lutbench.progress.LINE_EVERY", 0.0)
    schedule = Schedule(images=40, epochs=1, batch=10, micro_batch=10, seed=0)
    run: Any = SimpleNamespace(name="toy", folder=tmp_path, recipe=SimpleNamespace(log_every=2, trackers=[]))
    with TrainingLogger(run, schedule, 0, {}, save_every=100) as logger:
        for step, _ in enumerate(logger.waiting([{"skipped": torch.zeros(10)}] * 3)):
            logger.note(step, {"total": torch.tensor(1.5)}, torch.arange(10))
            logger.end_step(step, 0.1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["1/4", "2/4", "3/4"]
    assert [line.split("  ")[2] for line in lines[1:]] == ["total 1.500"] * 2
    assert all(line.endswith("s left") for line in lines)


def test_what_is_quick_shows_no_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(iter("abc"), 3, "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("lutbench.progress.PATIENCE", -1.0)
    monkeypatch.setattr("lutbench.progress.LINE_EVERY", 0.0)
    assert list(tracked(iter("abc"), 3, "letters")) == ["a", "b", "c"]
    assert "letters  2/3" in capsys.readouterr().out


def test_a_title_with_brackets_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(force_terminal=True, file=StringIO(), width=100)
    monkeypatch.setattr("lutbench.progress.console", screen)
    with Bar("listing /data/[/old]/train", 3) as bar:
        bar.update(3, "[red] 5 images/s")
    assert isinstance(screen.file, StringIO)
    assert "listing /data/[/old]/train" in screen.file.getvalue()
    assert "[red] 5 images/s" in screen.file.getvalue()


def test_on_a_narrow_terminal_a_long_title_has_a_line_of_its_own_and_every_number_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Console(force_terminal=True, file=StringIO(), width=80, color_system=None)
    monkeypatch.setattr("lutbench.progress.console", screen)
    title, text = "downstream/photographs-finetune/dino-student/seed0", "loss 1.417  171 images/s  3% waiting"
    with Bar(title, 713) as bar:
        bar.update(713, text)
    assert isinstance(screen.file, StringIO)
    shown = screen.file.getvalue()
    assert title in shown.splitlines()[0]
    assert f"713/713 {text} 0:00:0" in shown
    assert "…" not in shown
