"""The tables of values: the long one with published values beside measured ones, and the wide one that papers print."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import count, product
from string import ascii_lowercase

import pandas as pd

from lutbench.evaluate.outcomes import Measurement, decimals
from lutbench.evaluate.statistics import BASIC, BOOTSTRAP, QUERIES, RESAMPLES
from lutbench.record import Record
from lutbench.report.entries import OF_DRAWS, STUDENT, TableEntry, method_order
from lutbench.report.published import NOT_KNOWN, PublishedValue
from lutbench.report.sections import Section, View, directed, signed

INTERVALS = {
    "Wilson": "Wilson's over images",
    "Newcombe": "Newcombe's over images",
    "Bonett-Price": "Bonett and Price's over images",
    BOOTSTRAP: f"percentiles of {RESAMPLES} resamples of the images",
    QUERIES: f"percentiles of {RESAMPLES} resamples of the queries",
    BASIC: "resamples of the images, corrected for bias",
    STUDENT: f"{STUDENT} over seeds",
    OF_DRAWS: f"{STUDENT} over draws of the training images",
}
"""How legends name the methods of intervals, in their order."""

PUBLISHED = (
    "Published values are from the method's own paper, or from a re-run with the recipe of this run. Difference: measured minus "
    "published, given only if the published value is known to have the recipe of this run; others are marked *."
)
MARKED = (
    "Among the methods with the same encoder, the best value is bold and the second best underlined; this does not mean that the "
    "difference is significant."
)


def value_table(view: View, shown: Sequence[TableEntry]) -> pd.DataFrame:
    """Return a row for each entry: measured value, interval, seeds, published value, difference, footnotes.

    Without the columns of published values if there is none: they would only be wide.
    """
    marks, numbers = letters(view), row_numbers(view)
    rows = []
    for entry in shown:
        measured, published = entry.measured, entry.published
        digits = measured.decimals if measured else 0
        ends = measured and measured.low is not None and f"{measured.low:.{digits}f} to {measured.high:.{digits}f}"
        rows.append(
            {
                "task": view.task_title(entry),
                "method": view.method_label(entry.method),
                "encoder": entry.encoder,
                "metric": entry.metric,
                "measured": f"{measured.value:.{digits}f}" if measured else "stale" if entry.stale else "",
                "95 % interval": ends or "",
                "seeds": seeds_text(entry) if entry.runs else "",
                "published": f"{published.value:.1f} {_source_mark(published, marks)}" if published else "",
                "difference": signed(difference) if (difference := entry.difference) is not None else "",
                "runs": f"[{numbers[entry.row]}]" if entry.runs or entry.stale else "",
            }
        )
    without = [] if any(entry.published for entry in shown) else ["published", "difference"]
    return pd.DataFrame(rows).drop(columns=without, errors="ignore")


def seeds_text(entry: TableEntry) -> str:
    """Return ``3``, ``2 of 3`` seeds, ``3 x 5 draws``, or ``7 of 15 runs`` of such."""
    if entry.draws > 1:
        whole = len(entry.runs) == entry.planned
        return (
            f"{entry.planned // entry.draws} x {entry.draws} draws"
            if whole
            else f"{len(entry.runs)} of {entry.planned} runs"
        )
    return f"{len(entry.runs)} of {entry.planned}" if len(entry.runs) < entry.planned else str(entry.planned)


def value_legend(view: View, shown: Sequence[TableEntry]) -> str:
    """Return what the values, intervals and published values of these entries are, and what is to be known of the published ones."""
    sentences = []
    if any(entry.measured for entry in shown):
        intervals = interval_legend(entry.measured for entry in shown)
        each = f", each with its 95 % interval: {intervals}" if intervals else ""
        sentences.append(f"{_percent(shown, 'Measured values')}{each}.")
    published = [entry for entry in shown if entry.published]
    if published:
        sentences.append(PUBLISHED)
    return "\n".join([" ".join(sentences), *published_notes(view, published), *fit_notes(view, shown)]).strip()


def published_notes(view: View, shown: Iterable[TableEntry]) -> list[str]:
    """Return a line for what is to be known of published values: ``[c]* ViT-B/16, ViT-L/16: 1600 epochs.``"""
    marks, encoders = letters(view), dict[tuple[str, str], dict[str, None]]()
    for entry in shown:
        if value := entry.published:
            known = "" if value.other_recipe == NOT_KNOWN and (value.setting or value.note) else value.other_recipe
            said = " ".join(f"{text.rstrip('.')}." for text in (value.setting, value.note, known) if text)
            encoders.setdefault((_source_mark(value, marks), said), {})[entry.encoder] = None
    return [f"{mark} {', '.join(of)}: {said}" for (mark, said), of in encoders.items() if said]


def fit_notes(view: View, shown: Iterable[TableEntry]) -> list[str]:
    """Return a line each for logistic regressions whose C is an end of its grid, and for those that did not converge."""
    limits: dict[str, dict[str, None]] = {}
    for entry in shown:
        grids = [(record.extra, record.recipe.get("C_grid")) for record in entry.runs]
        cases = {
            "C is an end of its grid": sum(extra.get("C") in (min(grid), max(grid)) for extra, grid in grids if grid),
            "Not converged": sum(extra.get("converged") is False for extra, _ in grids),
        }
        for case, runs in cases.items():
            if runs:
                name = f"{view.task_title(entry)} with {view.method_label(entry.method)} ({runs} of {len(entry.runs)} runs)"
                limits.setdefault(case, {})[name] = None
    return [f"{case}: {'; '.join(names)}." for case, names in limits.items()]


def interval_legend(measured: Iterable[Measurement | None]) -> str:
    """Return how the intervals of these values were made, as their records say; empty without any."""
    metrics: dict[str, dict[str, None]] = {name: {} for name in INTERVALS}
    for m in measured:
        if m and m.interval:
            metrics.setdefault(m.interval, {})[m.metric.split(", ")[0]] = None
    seeds, draws = (INTERVALS[name] if metrics.pop(name) else "" for name in (STUDENT, OF_DRAWS))
    found = {INTERVALS.get(name, name): f" ({', '.join(of)})" for name, of in metrics.items() if of}
    images = " and ".join(name + (of if len(found) > 1 else "") for name, of in found.items())
    cases = {
        images: "for one seed or seeds with the same result",
        seeds: "for several seeds",
        draws: "for several draws",
    }
    told = {text: case for text, case in cases.items() if text}
    return ", ".join(told if len(told) == 1 else (f"{text} {case}" for text, case in told.items()))


def wide_section(view: View, shown: Sequence[TableEntry]) -> Section:
    """Return the table with a row per method and encoder and a column per task and metric; empty without values.

    Tasks and methods without a value are left out, other cells without one are empty.
    """
    measured = [entry for entry in shown if entry.measured]
    if not measured:
        return Section()
    columns = {entry.column: entry for entry in measured}
    order = method_order(view.suite, dict.fromkeys(entry.method for entry in measured))
    rows: dict[tuple[str, str], dict[tuple[str, str, str], TableEntry]] = {}
    for entry in sorted(measured, key=lambda entry: order.index(entry.method)):
        rows.setdefault((entry.method, entry.encoder), {})[entry.column] = entry
    headings = [(view.task_title(entry), directed(entry)) for entry in columns.values()]
    frame = pd.DataFrame(
        [
            [view.method_label(method), encoder, *(_with_half_width(row.get(column)) for column in columns)]
            for (method, encoder), row in rows.items()
        ],
        columns=pd.MultiIndex.from_tuples([("method", ""), ("encoder", ""), *headings]),
    )
    marks = {
        (row_index, column_index): rank
        for column_index, column in enumerate(columns, 2)
        for row_index, rank in ranks({i: row[column] for i, row in enumerate(rows.values()) if column in row}).items()
    }
    intervals = interval_legend(entry.measured for entry in measured)
    half_width = [f"±: half the width of the 95 % interval, {intervals}."] if intervals else []
    legend = " ".join([f"{_percent(measured, 'Values')}.", *half_width, MARKED, *view.dataset_notes(measured)])
    behind = {
        (row_index, column_index): [row[column].row]
        for row_index, row in enumerate(rows.values())
        for column_index, column in enumerate(columns, 2)
        if column in row
    }
    return Section("One row per method", 3, frame, marks, legend, name="wide", files_only=True, rows_behind=behind)


def sources(view: View) -> list[tuple[str, str, str]]:
    """Return letter and text of every source of a published value, and the protocols of the values that are shown of it.

    A protocol is what was measured and, by encoder, what is known of the settings.
    """
    found: dict[str, dict[str, dict[str, dict[str, None]]]] = {source: {} for source in letters(view)}
    for entry in view.entries:
        if value := entry.published:
            found[value.source].setdefault(value.protocol, {}).setdefault(value.settings, {})[entry.encoder] = None
    described = []
    for source, letter in letters(view).items():
        tasks: dict[str, list[str]] = {}
        for task, of in found[source].items():
            told = "; ".join(f"{', '.join(encoders)}: {settings}" for settings, encoders in of.items())
            tasks.setdefault(told, []).append(task)
        protocols = "; ".join(f"{'; '.join(of)} ({told})" for told, of in tasks.items())
        described.append((letter, source, protocols))
    return described


def letters(view: View) -> dict[str, str]:
    """Return a letter for every source of a published value: a to z, then aa, ab ..."""
    sources = dict.fromkeys(entry.published.source for entry in view.entries if entry.published)
    names = ("".join(letters) for length in count(1) for letters in product(ascii_lowercase, repeat=length))
    return {source: next(names) for source in sources}


def footnotes(view: View) -> tuple[list[str], list[str]]:
    """Return the runs of every row of the tables, and those that do not count, each with the reason."""
    runs, stale = dict[str, None](), dict[str, None]()
    numbers = row_numbers(view)
    for entry in sorted(view.entries, key=lambda entry: numbers[entry.row]):
        for r in entry.runs:
            first = r.measurements[0]
            value = f"{first.metric} {number_text(first.value, first.unit)} {first.unit}".rstrip()
            made = f"{value}, {r.wall_seconds:.0f} s on {r.hardware}, code {r.code}"
            made += f", reused from `{r.made_as}`" if r.made_as else ""
            runs[f"- [{numbers[entry.row]}] `{r.run}` {r.identity[:12]}: {made}"] = None
        stale |= {f"- [{numbers[entry.row]}] {reason}": None for reason in entry.stale}
    return list(runs), list(stale)


def row_numbers(view: View) -> dict[tuple[str, str, str], int]:
    """Return the footnote of every row."""
    return {row: number for number, row in enumerate(dict.fromkeys(entry.row for entry in view.entries), 1)}


def number_text(value: float, unit: str) -> str:
    """Return a value as tables print it without its interval: ``78.1`` percent, ``1900`` images."""
    return f"{value:.{decimals(unit, value)}f}"


def took_text(record: Record) -> str:
    """Return how long a run took, and how fast it was: ``12.3 s, 45.6 images/s``."""
    seconds, rate = record.wall_seconds, record.images_per_second
    time = f"{seconds:.1f} s" if seconds < 120 else f"{timedelta(seconds=round(seconds))} h"
    return f"{time}, {rate:,.1f} images/s" if rate else time


def _source_mark(value: PublishedValue, marks: Mapping[str, str]) -> str:
    """Return ``[b]``, or ``[b]*`` for a value by another recipe than the run's."""
    return f"[{marks[value.source]}]{'*' if value.other_recipe else ''}"


def _percent(shown: Sequence[TableEntry], what: str) -> str:
    plain = dict.fromkeys(entry.metric for entry in shown if entry.unit != "%")
    return f"{what} in percent" + (f", except {', '.join(plain)}" if plain else "")


def _with_half_width(entry: TableEntry | None) -> str:
    """Return ``78.1 ± 1.9``."""
    if entry is None or entry.measured is None:
        return ""
    m = entry.measured
    half = "" if m.low is None or m.high is None else f" ± {(m.high - m.low) / 2:.{m.decimals}f}"
    return f"{m.value:.{m.decimals}f}{half}"


def ranks(column: Mapping[int, TableEntry], groups: Mapping[int, str] | None = None) -> dict[int, int]:
    """Return by row 1 for the best and 2 for the second of the entries that compete; ties, as printed, share a rank.

    Those of one group compete, which are those of one encoder if not given.
    """
    competing = {row: entry for row, entry in column.items() if entry.unit == "%"}
    values = pd.Series({row: round(entry.measured.value, 1) for row, entry in competing.items() if entry.measured})
    of_group = values.groupby([groups[row] if groups else entry.encoder for row, entry in competing.items()])
    places = of_group.rank("dense", ascending=any(entry.is_lower_better for entry in competing.values()))
    sizes = of_group.transform("size")
    return {row: int(rank) for row, rank, n in zip(competing, places, sizes, strict=True) if rank <= 2 and n > 1}
