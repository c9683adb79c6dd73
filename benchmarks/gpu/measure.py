"""Everything worth knowing about this suite on a machine with one GPU, in one call of eight minutes.

    python benchmarks/gpu/measure.py --out gpu --budget 480 --keep   # from the repository's root
    TOY=1 python benchmarks/gpu/measure.py --out toy                 # a dry run with toy sizes, on a CPU, in seconds

A part that fails says so in a line, and the next goes on; one that takes too long is ended. With ``--keep`` the speeds are put where
``lutbench plan`` and ``docs/benchmarks.md`` have them. See README.md beside this file.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other benchmarks
sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import Bench
from correct import correct
from feeding import data
from inference import inference
from machine import attention, env, peak
from speed import finetuning, speed, trace
from table import card_of, keep, summary
from whole_runs import loop

PARTS: dict[str, tuple[Callable[[Bench], None], int]] = {
    "env": (env, 10),
    "peak": (peak, 30),
    "correct": (correct, 110),
    "speed": (speed, 150),
    "trace": (trace, 40),
    "data": (data, 50),
    "loop": (loop, 90),
    "fine-tuning": (finetuning, 40),
    "inference": (inference, 30),
    "attention": (attention, 25),
}
"""Every part, in the order in which they run, and the seconds that it may take at most."""

OVERHEAD = 12
"""Seconds that starting a part takes, beside what it measures."""


def main(
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl and log.txt.")] = Path("gpu-results"),
    budget: Annotated[int, typer.Option(min=1, help="Seconds that all parts together may take.")] = 480,
    toy: Annotated[bool, typer.Option("--toy", envvar="TOY", help="Toy sizes, all parts in one process.")] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"Parts, of {', '.join(PARTS)}; all if not given.")] = None,
    keeps: Annotated[
        bool, typer.Option("--keep", help="Put the speeds where plan and docs/benchmarks.md have them.")
    ] = False,
    part: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure, and print a summary."""
    if toy and keeps:
        raise typer.BadParameter("toy sizes say nothing about speed: leave one of the two out.", param_hint="--keep")
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(out, toy)
    if part:
        run_part(bench, part)
        return
    results, began = out / "results.jsonl", time.monotonic()
    results.unlink(missing_ok=True)
    for name in only or PARTS:
        left = budget - (time.monotonic() - began)
        if toy:
            run_part(bench, name)
        elif left < OVERHEAD:
            bench.emit(name, name=name, error=f"left out: {left:.0f} of {budget} seconds are left")
        else:
            run_apart(bench, name, min(left, PARTS[name][1] + OVERHEAD))
    print(summary(results))
    if keeps:
        card = card_of(results, " ".join(["python", "benchmarks/gpu/measure.py", *sys.argv[1:]]))
        if card is None:
            raise typer.BadParameter("no GPU was measured, nothing is kept.", param_hint="--keep")
        keep(card)


def run_part(bench: Bench, name: str) -> None:
    """Run one part in this process."""
    with bench.section(name, "the whole part"):
        PARTS[name][0](bench)


def run_apart(bench: Bench, name: str, limit: float) -> None:
    """Run one part in a process of its own, for at most ``limit`` seconds."""
    command = [sys.executable, __file__, "--out", str(bench.out), "--part", name]
    print(f"{name}: at most {limit:.0f} s", flush=True)
    with (bench.out / "log.txt").open("a") as log:
        try:
            subprocess.run(command, stdout=log, stderr=log, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            bench.emit(name, name=name, error=f"ended after {limit:.0f} seconds; what it had found by then is kept")


if __name__ == "__main__":
    typer.run(main)
