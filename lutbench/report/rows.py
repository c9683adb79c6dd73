"""Rows of the tables: a cell's value beside the published one, with footnotes to its runs and sources."""

from collections.abc import Iterable, Sequence
from string import ascii_lowercase

import pandas as pd

from lutbench.recipes.suite import LoadedSuite
from lutbench.report.entries import TableEntry
from lutbench.report.names import method_label, task_title


def value_table(suite: LoadedSuite, shown: Sequence[TableEntry], made: Iterable[TableEntry]) -> pd.DataFrame:
    """A row for each cell that is shown, of all that were made, which count for the footnotes.

    Measured value, interval, seeds, published value, difference, footnote; without the columns of published values if
    there is none.
    """
    made = list(made)
    marks, numbers = letters(made), row_numbers(made)
    rows = []
    for cell in shown:
        measured = ("stale" if cell.stale else "") if cell.value is None else f"{cell.value:.1f}"
        seeds = f"{len(cell.runs)} of {cell.planned}" if 0 < len(cell.runs) < cell.planned else len(cell.runs) or ""
        told = cell.published
        rows.append(
            {
                "task": task_title(suite, cell.task),
                "method": method_label(suite, cell.method),
                "encoder": cell.encoder,
                "metric": cell.metric,
                "measured": measured,
                "95 % interval": "" if cell.low is None else f"{cell.low:.1f} to {cell.high:.1f}",
                "seeds": str(seeds),
                "published": f"{told.value:.1f} [{marks[told.source]}]" if told else "",
                "difference": f"{cell.value - told.value:+.1f}" if told and cell.value is not None else "",
                "runs": f"[{numbers[cell.row]}]" if cell.runs or cell.stale else "",
            }
        )
    table = pd.DataFrame(rows)
    # Without a published value in the whole table the two columns would only be wide.
    return table if letters(shown) or table.empty else table.drop(columns=["published", "difference"])


def row_numbers(made: Iterable[TableEntry]) -> dict[tuple[str, str], int]:
    """The footnote of every task and method."""
    return {row: number for number, row in enumerate(dict.fromkeys(cell.row for cell in made), 1)}


def letters(made: Iterable[TableEntry]) -> dict[str, str]:
    """A letter for every source of a published value."""
    sources = dict.fromkeys(cell.published.source for cell in made if cell.published)
    return {source: _letter(number) for number, source in enumerate(sources)}


def footnotes(made: Iterable[TableEntry]) -> list[str]:
    """The runs of every task and method, and why those that do not count are stale."""
    made = list(made)
    lines = []
    for row, number in row_numbers(made).items():
        of_row = [cell for cell in made if cell.row == row]
        for r in {r.run: r for cell in of_row for r in cell.runs}.values():
            first = r.measurements[0]
            metric = "" if first.metric == of_row[0].metric and r.stage != "robustness" else f"{first.metric} "
            lines.append(
                f"- [{number}] `{r.run}` {r.identity[:12]}: {metric}{first.value:.1f} {first.unit}, "
                f"{r.wall_seconds:.0f} s on {r.hardware}, code {r.code}"
            )
        lines += [f"- [{number}] {reason}" for reason in stale_reasons(of_row)]
    return lines


def stale_reasons(made: Iterable[TableEntry]) -> list[str]:
    """Why records do not count, each once."""
    return list(dict.fromkeys(reason for cell in made for reason in cell.stale))


def _letter(number: int) -> str:
    """a to z, then aa, ab ..."""
    before, last = divmod(number, len(ascii_lowercase))
    return (_letter(before - 1) if before else "") + ascii_lowercase[last]
