"""Tables of sections as a page shows them: numbers apart from their intervals, the best marked, each with the runs behind it."""

import base64
import gzip
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import pandas as pd

from lutbench.recipes.suite import Row
from lutbench.report.sections import ANY, Section, heading_lines

RUNS = "runs"
"""The column of footnotes, which a page has no need of: its numbers are links."""

_NUMBER = re.compile(r"^([+-]?\d[\d,.]*(?:e[+-]?\d+)?%?)( .*)?$")
"""A number, and what stands behind it: an interval, half its width, a unit, or a source."""

_FOOTNOTE = re.compile(r"\[(\d+|[a-z]+)\]")

_MEASURED = re.compile(r"^\[?[+-]?\d")
"""How a text begins that is a number, a count or an interval."""

_WORDS = {"encoder", "method", "task", "metric", "pair", "comparison", "run", "machine", "like", "corruption"}
"""Columns that say what a row is of, also where a name begins with a digit."""

_WHOLE = {"seeds", "95 % interval"}
"""Columns whose texts are not a number and what stands behind it: ``2 of 3``, ``77.1 to 79.5``."""

GROUPS = ("task", "encoder", "metric", "comparison")
"""Columns in which rows that belong together have the same text."""


@dataclass(frozen=True)
class GridCell:
    """A cell of a table."""

    text: str
    """All of it, for copies and for sorting."""
    main: str
    """The number, or the whole text."""
    rest: str = ""
    """What stands behind the number, smaller."""
    rank: int = 0
    """1 for the best of its column, 2 for the second."""
    behind: str = ""
    """The ids of what a drawer shows, with spaces between them; empty if nothing is behind it."""
    is_again: bool = False
    """Whether it repeats the cell above it, in one of the columns that say what a row is of."""
    colour: str = ""
    """Of a method's name the colour that the method has in figures."""


@dataclass(frozen=True)
class Grid:
    """A table of a section."""

    name: str
    above: Sequence[tuple[str, int]]
    """The upper line of the headings: texts with the columns that each spans; empty if there is one line only."""
    heads: Sequence[str]
    is_number: Sequence[bool]
    """Which columns are right-aligned."""
    rows: Sequence[Sequence[GridCell]]
    csv: str = ""
    """All numbers, unrounded: a CSV, compressed by gzip, as base64."""


def grid_of(
    section: Section, anchors: Mapping[Row, str], footnotes: Mapping[str, str], colours: Mapping[str, str]
) -> Grid | None:
    """Return the table of a section; None if it has none.

    ``anchors`` are the ids of what is behind each row of runs, ``footnotes`` the ids of footnotes such as ``[3]`` and ``[b]``, and
    ``colours`` those of methods by their labels.
    """
    csv = "" if section.data is None or section.data.empty else packed(section.data.to_csv(index=False))
    frame = section.frame
    if frame.empty:
        return Grid(section.name, [], [], [], [], csv) if csv else None
    kept = [column for column in range(frame.shape[1]) if _is_kept(frame, column)]
    heads = [heading_lines(frame.columns[column]) for column in kept]
    footnote_column = next((c for c, name in enumerate(frame) if heading_lines(name)[1] == RUNS), None)
    rows: list[list[GridCell]] = []
    for number, texts in enumerate(frame.astype(str).itertuples(index=False, name=None)):
        of_row = _ids(texts[footnote_column], footnotes) if footnote_column is not None else ""
        of_row = of_row or _joined(section.rows_behind.get((number, ANY), ()), anchors)
        row: list[GridCell] = []
        for column, (above, head) in zip(kept, heads, strict=True):
            own = _joined(section.rows_behind.get((number, column), ()), anchors) or of_row
            text = texts[column]
            above_it = rows[-1][len(row)].text if rows else None
            cell = _cell(text, head, above, own, section.marks.get((number, column), 0), above_it, footnotes)
            row.append(replace(cell, colour=colours.get(text, "")) if head == "method" else cell)
        rows.append(row)
    upper = [(text, len([*of])) for text, of in groupby(above for above, _ in heads)]
    is_number = [_is_number([row[place] for row in rows]) for place in range(len(kept))]
    return Grid(
        section.name, upper if any(text for text, _ in upper) else [], [head for _, head in heads], is_number, rows, csv
    )


def packed(text: str) -> str:
    """Return a text compressed by gzip, the same bytes at any time, as base64."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _is_kept(frame: pd.DataFrame, column: int) -> bool:
    return heading_lines(frame.columns[column])[1] != RUNS and bool((frame.iloc[:, column].astype(str) != "").any())


def _cell(
    text: str, head: str, above: str, behind: str, rank: int, above_it: str | None, footnotes: Mapping[str, str]
) -> GridCell:
    found = None if head in _WORDS | _WHOLE else _NUMBER.match(text)
    is_measured = (_MEASURED.match(text) is not None or text == "stale") and head not in _WORDS
    if head == "published" and not above:
        behind = _ids(text, footnotes)
    main, rest = (found[1], (found[2] or "").strip()) if found else (text, "")
    return GridCell(
        text, main, rest, rank, behind if is_measured else "", head in GROUPS and bool(text) and text == above_it
    )


def _ids(text: str, footnotes: Mapping[str, str]) -> str:
    """Return the ids of the footnotes that a text has."""
    return " ".join(footnotes[found[0]] for found in _FOOTNOTE.finditer(text) if found[0] in footnotes)


def _joined(rows: Sequence[Row], anchors: Mapping[Row, str]) -> str:
    return " ".join(dict.fromkeys(anchors[row] for row in rows if row in anchors))


def _is_number(cells: Sequence[GridCell]) -> bool:
    told = [cell for cell in cells if cell.text]
    return sum(cell.text.startswith("[") or _NUMBER.match(cell.text) is not None for cell in told) * 2 > len(told)
