"""Everything worth knowing about this suite on a machine with one GPU, in one call of eight minutes.

    python benchmarks/gpu/measure.py --out gpu --budget 480          # from the repository's root
    TOY=1 python benchmarks/gpu/measure.py --out toy                 # a dry run with toy sizes, on a CPU, in seconds

A part that fails says so in a line, and the next goes on; one that takes too long is ended. ``--page docs/benchmarks.md`` puts the
table into that page. See README.md beside this file.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from parts import PARTS, Bench
from table import summary, write_page

OVERHEAD = 12
"""Seconds that starting a part takes, beside what it measures."""


def main(
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl, log.txt and table.md.")] = Path("gpu-results"),
    budget: Annotated[int, typer.Option(min=1, help="Seconds that all parts together may take.")] = 480,
    toy: Annotated[bool, typer.Option("--toy", envvar="TOY", help="Toy sizes, all parts in one process.")] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"Parts, of {', '.join(PARTS)}; all if not given.")] = None,
    page: Annotated[Path | None, typer.Option(help="A page whose table of a GPU is replaced by this one.")] = None,
    part: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure, and print a summary."""
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
    command = " ".join(["python", "benchmarks/gpu/measure.py", *sys.argv[1:]])
    text = summary(results)
    (out / "table.md").write_text(text)
    print(text)
    if page is not None:
        write_page(page, results, command)


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
