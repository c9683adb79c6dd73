"""Progress output: a progress bar on a terminal, a line every few seconds elsewhere."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
"""The console of every message; brackets are printed as brackets, colons as colons."""


def print_table(table: Table) -> None:
    """Print a table as wide as it is, so that nothing is cut or broken, whatever the terminal."""
    width = Measurement.get(console, console.options.update(width=10_000), table).maximum
    Console(width=max(width, console.width), highlight=False, markup=False, emoji=False).print(table)


LINE_EVERY = 10.0
"""Seconds between lines where there is no terminal."""

PATIENCE = 2.0
"""Seconds before the bar of something that may be quick is shown."""

NUMBERS = 100
"""Width of a bar without its title, in columns; on a narrower terminal, the title gets its own line."""

T = TypeVar("T")

Report = Callable[[str, int, int, str], None]
"""Called with a title, the steps done, their total and a text; all are empty at the end."""

_reports: list[Report] = []
"""The function that bars report to instead of printing, in a process without a terminal; one at most."""


def report_to(report: Report) -> None:
    """Have every bar of this process report to ``report``, and show none."""
    _reports[:] = [report]


class Bar:
    """Progress through ``total`` steps, with the time left. ``shown`` is False on all processes but the first."""

    def __init__(self, title: str, total: int, done: int = 0, shown: bool = True) -> None:
        self.title = title
        self.total = total
        self.first = done
        self.started = self.printed = time.monotonic()
        self.reports = _reports if shown else []
        self.shown = shown and not console.is_terminal and not _reports
        self.heading = title if len(title) + NUMBERS > console.width else ""
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=8 if self.heading else 24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal) or bool(_reports),
        )
        self.task = self.bar.add_task("" if self.heading else title, total=total, completed=done, text="")

    def __enter__(self) -> Self:
        if self.heading and not self.bar.disable:
            console.print(self.heading, markup=False, emoji=False, highlight=False)
        self.bar.start()
        for report in self.reports:
            report(self.title, self.first, self.total, "")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        for report in self.reports:
            report("", 0, 0, "")

    def update(self, done: int, text: str = "") -> None:
        """Show that ``done`` steps of the total are done; ``text`` is shown beside it, such as the loss."""
        self.bar.update(self.task, completed=done, text=text)
        for report in self.reports:
            report(self.title, done, self.total, text)
        now = time.monotonic()
        finished = done >= self.total
        if self.shown and (now - self.printed >= LINE_EVERY or (finished and now - self.started > 2)):
            self.printed = now
            left = (now - self.started) / max(1, done - self.first) * (self.total - done)
            when = f"{now - self.started:.0f} s" if finished else f"{left:.0f} s left"
            console.print("  ".join(part for part in (self.title, f"{done}/{self.total}", text, when) if part))


def is_first_process() -> bool:
    """Return whether this is the only process of the command, or the first process of ``torchrun``, which prints for all."""
    return os.environ.get("RANK", "0") == "0"


def tracked(items: Iterable[T], total: int, title: str, shown: bool | None = None) -> Iterator[T]:
    """Yield ``items``, with a bar titled ``title`` once they take longer than two seconds; on the first process if not ``shown``."""
    shown = is_first_process() if shown is None else shown
    started = time.monotonic()
    done = 0
    source = iter(items)
    for item in source:
        yield item
        done += 1
        if time.monotonic() - started > PATIENCE:
            break
    else:
        return
    with Bar(title, total, done, shown) as bar:
        for item in source:
            yield item
            done += 1
            bar.update(done)
