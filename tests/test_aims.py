"""The table of all aims is written, and says of each whether it is met, or that it was not measured."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lutbench.plan.measured import Card

ROOT = Path(__file__).parents[1]


@pytest.fixture
def aims(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import aims

    return aims


def a_card(share: float, **of_large: Any) -> Card:
    """A card that keeps up this share of what matrix products reach in the steps of a ViT-B and a ViT-L, half of it in a ViT-B's run."""
    base = {"kind": "pretrain", "batch": 1024, "images_per_second": share * 1e3, "flop_per_image": 1e11}
    run = {"images_per_second": share * 500, "waiting_for_data": 0.5}
    speeds = [
        {**base, "model": f"vit_{size}_patch16_224", **more}
        for size, more in (
            ("base", {}),
            ("base", {**run, "variant": "a whole run from files"}),
            ("base", {"variant": "a whole run from cache"}),
            ("large", {"first_step_s": 45.0}),
            ("large", {"variant": "checkpointed", **of_large}),
        )
    ]
    values = {
        "card": "a card",
        "memory_gib": 80,
        "machine": "",
        "cuda": "",
        "versions": {},
        "code": "",
        "date": "",
        "command": "",
    }
    return Card.model_validate(values | {"matrix_flops": 1e14, "speeds": speeds})


def test_cards_meet_the_aims_or_do_not_or_were_not_measured(aims: ModuleType) -> None:
    measured = aims.gpu_aims([a_card(0.4), a_card(0.52, memory_gib=76)])
    small, base, large, small_run, base_run, large_run, first, memory = [(aim.measured, aim.met) for aim in measured]
    assert small == ("no GPU was measured", None)
    assert base == ("52% (a card)", True), "the better of two"
    assert large == ("52% (a card)", False)
    assert small_run == large_run == ("no GPU was measured", None)
    assert base_run == ("26% (a card)", False), "that of a run from files, whose steps alone would do"
    assert first == ("45 s (a card)", True)
    assert memory == ("82 GB (a card)", False)
    assert {aim.met for aim in aims.gpu_aims([])} == {None}


def test_a_command_is_timed_and_one_that_fails_is_no_measurement(aims: ModuleType) -> None:
    done = aims.lutbench("--version")
    assert done.output.startswith("lutbench ")
    assert 0 < done.seconds < 60
    with pytest.raises(RuntimeError, match=r"lutbench show nothing failed: lutbench: .*nothing"):
        aims.lutbench("show", "nothing")


def test_the_command_has_a_row_for_every_aim_and_says_how_it_was_called() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/aims.py", "--only", "gpu"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = done.stdout.splitlines()
    for what in ("step", "run from files"):
        assert sum(row.startswith(f"| LUT {what} of ViT-") for row in rows) == 3
    assert "    python benchmarks/aims.py --only gpu\n" in done.stdout
