"""Progress of parallel runs: on a terminal a line for each current run, elsewhere a line now and then; and their messages."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from lutbench.jobs.worker import Line, Step
from lutbench.progress import Bar, console


class View:
    """One live view of all runs of a command, until the end of a ``with`` block."""

    def __init__(self, total: int) -> None:
        self._live = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=12),
            _Counted(MofNCompleteColumn()),
            _Counted(TimeRemainingColumn(), after=" left"),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._live.add_task("all runs", total=total, text="")
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, str] = {}
        """The current step of each run, by name."""
        self._bars: dict[str, Bar] = {}

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the live view and its thread inside the block."""
        self._live.stop()
        yield
        self._live.start()

    def begin(self, run: str) -> None:
        """Show that a run has begun."""
        self._tasks[run], self._shown[run] = self._live.add_task(run, total=None, text=""), ""

    def step(self, run: str, step: Step) -> None:
        """Show how far a run has come with what it is doing; ``step.title`` names the run, and what that is."""
        task = self._tasks[run]
        if not console.is_terminal:
            self._print(run, step)
        elif not step.title:
            self._live.remove_task(task)  # a task that has a total keeps one
            self.begin(run)
        elif step.done and self._shown[run] == step.title:
            self._live.update(task, completed=step.done, total=step.total, text=step.text)
        else:
            self._shown[run] = step.title
            self._live.reset(task, total=step.total, completed=step.done, description=step.title, text=step.text)

    def line(self, line: Line) -> None:
        """Print a message of a run."""
        if line.error:
            print(line.text, file=sys.stderr)
        else:
            console.print(line.text)

    def end(self, run: str, done: bool) -> None:
        """Remove a run from the view; it counts as completed if it is ``done``."""
        self._live.remove_task(self._tasks.pop(run))
        self._bars.pop(run, None)
        self._live.advance(self._all, int(done))

    def _print(self, run: str, step: Step) -> None:
        """Print a line where it is time for one."""
        bar = self._bars.get(run)
        if bar is None or bar.title != step.title or not step.done:
            self._bars[run] = bar = Bar(step.title, step.total, step.done)
        if step.title and step.done > bar.first:
            bar.update(step.done, step.text)


class _Counted(ProgressColumn):
    """A column that is empty while a run has no step with a known total."""

    def __init__(self, column: ProgressColumn, after: str = "") -> None:
        super().__init__()
        self._column, self._after = column, after

    def render(self, task: Task) -> Text:
        """Return the column's own text."""
        shown = self._column(task) if task.total is not None else Text()
        assert isinstance(shown, Text)
        return Text.assemble(shown, self._after if task.total is not None else "")
