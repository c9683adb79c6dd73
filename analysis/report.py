"""Tables of an analysis: a row per method, a baseline below them, and all measurements by block and head."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.attachments import check_attachments
from analysis.block_outcomes import ATTENTION, FEATURES, POOLED, TOKENS, BlockOutcomes
from analysis.depth_figures import drawings
from analysis.uniform import uniform_distance, uniform_entropy
from lutbench.evaluate.outcomes import Measurement
from lutbench.evaluate.ranks import statistics
from lutbench.evaluate.statistics import BOOTSTRAP, mean_intervals, wilson
from lutbench.record import Record
from lutbench.report.entries import TableEntry, method_order, run_ids
from lutbench.report.sections import Section, View, by_task, not_run
from lutbench.report.values import interval_legend, row_numbers, seeds_text

OWN_ROWS = True
"""The main table leaves the rows of analyses to the sections of this module."""

NAME = "analysis"
"""Of the kind of run, and of the files analysis.csv and analysis.tex."""

UNIFORM = "Uniform attention"
ENOUGH = 10
"""Images for each dimension of pooled features that their intervals need, see docs/protocols.md."""
HEADINGS = {
    "attention distance, first third": ("distance, px", "first"),
    "attention distance, last third": ("distance, px", "last"),
    "attention distance": ("distance, px", "all"),
    "attention distance, share of uniform": ("of uniform", ""),
    "NMI": ("NMI", ""),
    "effective rank, pooled": ("effective rank", "pooled"),
    "effective rank, tokens": ("effective rank", "tokens"),
    "alpha, pooled": ("alpha", ""),
    "best depth": ("k-NN", "depth"),
    "k-NN top-1, best depth": ("k-NN", "top-1"),
    "highest frequency, last block": ("highest frequency", ""),
    "token similarity": ("token similarity", ""),
    "alignment": ("alignment", ""),
    "uniformity": ("uniformity", ""),
}  # fmt: skip
"""Of the columns, in one or two lines, by the metric."""
MEANINGS = {
    "attention distance": "Distance: attention distance, the mean distance in pixels between the centres of the query's and the key's patch, "
    "weighted by attention; mean over heads and over the first third, the last third and all of the blocks. Of uniform: the mean over all "
    "blocks divided by the distance of uniform attention on the same patch grid; 1: as far, above 1: distant patches are preferred.",
    "NMI": "NMI: normalised mutual information of query and key, mean over heads and blocks; 0: all queries attend to the same keys, 1: each query attends to a different key.",
    "effective rank, pooled": "Effective rank: number of directions that the output's features use, exp of the entropy of their singular values; for the "
    "mean over the patches of an image (pooled), and for single patches (tokens). The value may be below its interval: with few images it "
    "is biased downwards, which only the interval corrects.",
    "alpha, pooled": "Alpha: exponent of the power law i^-alpha of the variances of the pooled features. It too may be outside its interval.",
    "k-NN top-1, best depth": "k-NN: the block with the best k-NN accuracy of its pooled features, and this top-1 accuracy in percent; the block "
    "was chosen on the same images, so the value is optimistic.",
    "highest frequency, last block": "Highest frequency: log amplitude of the highest frequency of the patch grid, relative to frequency 0, in "
    "the last block.",
    "token similarity": "Token similarity: mean cosine over all pairs of patches of an image, in the output.",
    "alignment": "Alignment: mean squared distance between two views of an image. Uniformity: how evenly images are spread over the sphere. Lower "
    "is better for both.",
}
"""Explanations of columns, by the metric whose presence decides whether they are printed."""
FLOOR = (
    "The untrained encoder and uniform attention are baselines: an encoder whose attention distance is that of uniform attention and "
    "whose NMI is near 0 selects nothing."
)
FILES = "Every block and head, and spectra, are in analysis.csv."

COLUMNS = [
    "suite", "table", "method", "encoder", "seed", "quantity", "block", "head", "rank", "frequency", "value", "unit", "low", "high",
    "n", "interval", "run", "note",
]  # fmt: skip
"""Of analysis.csv, also where nothing was measured."""

UNITS = {"distance": "px", "entropy": "nats"}
NAMES = {
    "distance": "attention distance", "entropy": "attention entropy", "nmi": "NMI", "to_class": "attention to the class token",
    "to_itself": "attention to itself", "similarity": "token similarity", "token_rank": "token rank in an image",
    "right_pooled": "k-NN top-1, pooled", "right_class": "k-NN top-1, class token",
}  # fmt: skip
"""How analysis.csv names what is kept of every block."""


def sections(view: View) -> list[Section]:
    """Return a table for each analysis of the suite that has records, and what was not run."""
    analysed = view.of_kind(NAME)
    if not analysed:
        return []
    for record in {r.run: r for entry in analysed for r in entry.runs}.values():
        check_attachments(record)
    shown = by_task(entry for entry in analysed if entry.runs or entry.stale)
    several = len(view.suite.config.analysis) > 1
    made = [_section(view, of_table, several) for of_table in shown]
    data = every_measurement(view)
    missing = not_run(view, analysed)
    if not made:
        return [Section("Analysis", legend=missing, name=NAME, data=data)]
    return [*made, Section(legend=" ".join([FILES, missing]).strip(), name=NAME, data=data)]


class _Grid(NamedTuple):
    """The patches of an encoder's images."""

    side: int
    patch_size: int

    def __str__(self) -> str:
        return f"{self.side} x {self.side} patches of {self.patch_size} px"


def _section(view: View, of_table: Sequence[TableEntry], several: bool) -> Section:
    """Return the table of one analysis: a row per method and encoder, then uniform attention over each grid of patches."""
    methods: dict[str, dict[str, TableEntry]] = {}
    for method in method_order(view.suite, dict.fromkeys(entry.method for entry in of_table)):
        methods[method] = {entry.metric: entry for entry in of_table if entry.method == method}
    measured = {entry.metric: None for entry in of_table if entry.measured}
    found = [m for m in HEADINGS if m in measured or (m == "best depth" and "k-NN top-1, best depth" in measured)]
    shown = found or ["attention distance"]  # where all are stale
    rows = [_row(view, entries, shown) for entries in methods.values()]
    rows += _uniform_rows(_grids(of_table), shown)
    headings = [("method", ""), ("encoder", ""), *(HEADINGS[metric] for metric in shown), ("seeds", ""), ("runs", "")]
    frame = pd.DataFrame(rows, columns=pd.MultiIndex.from_tuples(headings))
    frame = frame.loc[:, (frame != "").any()]
    intervals = interval_legend(entry.measured for entry in of_table)
    legend = [
        *(sentence for metric, sentence in MEANINGS.items() if metric in found),
        *([FLOOR] if "attention distance" in found else []),
        *_few_images(of_table),
        *view.dataset_notes(of_table),
    ]
    title = f"Analysis: {view.task_title(of_table[0])}" if several else "Analysis"
    notation = f"In brackets the 95 % interval: {intervals}." if intervals else ""
    figures = drawings(view, of_table)
    return Section(title, frame=frame, notation=notation, legend="\n".join(legend), figures=figures, name=NAME)


def _few_images(of_table: Iterable[TableEntry]) -> list[str]:
    """Return a line that says so where images are too few for the intervals of ranks and alpha, see docs/protocols.md."""
    outcomes = [r.outcomes for entry in of_table for r in entry.runs if r.outcomes.has("spectrum_pooled")]
    found = {(one.count, one.measured["spectrum_pooled"].shape[1]) for one in outcomes}
    few = [f"{count:,} images for features {width:,} wide" for count, width in sorted(found) if count < ENOUGH * width]
    if not few:
        return []
    return [
        f"{' and '.join(few)}: with fewer than {ENOUGH} images per dimension, pooled effective ranks and alpha hold only for these images: "
        "compare them only with each other; their intervals may be too narrow."
    ]


def _row(view: View, entries: Mapping[str, TableEntry], shown: Sequence[str]) -> list[str]:
    """Return the cells of a method: empty where the analysis of its encoder lacks a measure."""
    first = next(iter(entries.values()))
    cells = [_depth(first) if metric == "best depth" else _cell(entries.get(metric)) for metric in shown]
    if first.stale and not any(entry.runs for entry in entries.values()):
        cells = ["stale" for _ in shown]
    seeds = seeds_text(first) if first.planned > 1 and first.runs else ""
    return [view.method_label(first.method), first.encoder, *cells, seeds, f"[{row_numbers(view)[first.row]}]"]


def _cell(entry: TableEntry | None) -> str:
    return entry.measured.text() if entry and entry.measured else ""


def _depth(entry: TableEntry) -> str:
    """Return the best depth of every seed, each different one once: ``11``, or ``11, output``."""
    depths = [(m.value, r.outcomes.blocks) for r in entry.runs if (m := r.measured("best depth"))]
    return ", ".join(dict.fromkeys("output" if depth > blocks else f"{depth:.0f}" for depth, blocks in depths))


def _grids(of_table: Iterable[TableEntry]) -> list[_Grid]:
    """Return the grids over which attention was measured."""
    outcomes = (r.outcomes for entry in of_table for r in entry.runs)
    return list(dict.fromkeys(_Grid(one.grid, one.patch_size) for one in outcomes if one.has("distance")))


def _uniform_rows(grids: Sequence[_Grid], shown: Sequence[str]) -> list[list[str]]:
    """Return what uniform attention would give, on every grid of the table's encoders."""
    rows = []
    for grid in grids:
        values = {m.metric: m.text() for m in _uniform(grid)}
        values |= {metric: values["attention distance"] for metric in HEADINGS if metric.endswith(" third")}
        label = str(grid) if len(grids) > 1 else ""
        rows.append([UNIFORM, label, *(values.get(metric, "") for metric in shown), "", ""])
    return rows


def _uniform(grid: _Grid) -> list[Measurement]:
    """Return the numbers of uniform attention."""
    return [
        Measurement(metric="attention distance", value=uniform_distance(*grid), unit="px"),
        Measurement(metric="attention distance, share of uniform", value=1.0, unit=""),
        Measurement(metric="attention entropy", value=uniform_entropy(grid.side), unit="nats"),
        Measurement(metric="NMI", value=0.0, unit=""),
    ]


def every_measurement(view: View) -> pd.DataFrame:
    """Return all numbers of the records that count, a row each, see :data:`COLUMNS`.

    Those of the records are unrounded. What follows from their per-image outcomes has seven significant digits, since of more
    every machine has its own: means of every block with their intervals, of heads without, and the singular values of the output.
    """
    rows: list[dict[str, Any]] = []
    analysed = [entry for entry in view.entries if entry.kind.name == NAME]  # those of studies too
    for of_table in by_task(analysed):
        about = {"suite": view.suite.name, "table": of_table[0].task}
        for entry, r in {r.run: (e, r) for e in of_table for r in e.runs}.values():
            of_run = {"method": entry.method, "encoder": entry.encoder, "seed": r.seed, "run": run_ids([r])}
            note = " ".join(view.notes_of(entry))
            for row in _of_record(r):
                output = "after the last block: the output" if row.get("block") == r.outcomes.blocks + 1 else ""
                rows.append({**about, **of_run, **row, "note": " ".join(filter(None, (output, note)))})
        for grid in _grids(of_table):
            named = {**about, "method": UNIFORM.lower(), "encoder": str(grid)}
            note = " ".join(view.notes_of(of_table[0]))
            rows += [{**named, **_as_row(m), "value": _rounded(m.value), "note": note} for m in _uniform(grid)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    whole = ["seed", "block", "head", "rank", "frequency", "n"]  # absent in some rows, and no floats for that
    return table.astype(dict.fromkeys(whole, "Int64"))


def _as_row(measurement: Measurement) -> dict[str, Any]:
    found = measurement.model_dump()
    return {"quantity": found.pop("metric"), **found}


def _of_record(record: Record) -> Iterator[dict[str, Any]]:
    """Yield the measurements of a record, then its blocks, heads and singular values."""
    outcomes: BlockOutcomes = record.outcomes
    yield from (_as_row(measurement) for measurement in record.measurements)
    yield from _of_blocks(outcomes)
    yield from _spectra(outcomes)
    if any((kept.name, kept.kind) == ("heads", "array") for kept in record.attachments):
        for name, values in zip(ATTENTION, record.array("heads"), strict=True):
            if outcomes.has(name):
                for block, head in product(*map(range, values.shape)):
                    numbers = {"value": _rounded(values[block, head]), "n": outcomes.count}
                    yield {**_named(name), "block": block + 1, "head": head + 1, **numbers}


def _named(name: str) -> dict[str, str]:
    return {"quantity": NAMES[name], "unit": UNITS.get(name, "")}


def _of_blocks(outcomes: BlockOutcomes) -> Iterator[dict[str, Any]]:
    """Yield the means of every block, with their intervals over the images."""
    kept = {name: outcomes.measured[name] for name in (*ATTENTION, *FEATURES) if outcomes.has(name)}
    about = [{**_named(name), "block": block + 1} for name, of in kept.items() for block in range(of.shape[1])]
    values = list(kept.values())
    if outcomes.has("amplitude"):
        amplitude = outcomes.measured["amplitude"]
        _, blocks, frequencies = amplitude.shape
        about += [
            {"quantity": "relative log amplitude", "unit": "", "block": block + 1, "frequency": frequency + 1}
            for block, frequency in product(range(blocks), range(frequencies))
        ]
        values.append(amplitude.reshape(len(amplitude), -1))
    if values:
        for row, (value, low, high) in zip(about, _with_intervals(np.concatenate(values, 1)), strict=True):
            numbers = {"value": value, "low": low, "high": high}
            yield {**row, **numbers, "n": outcomes.count, "interval": BOOTSTRAP}
    for name in (f"right_{pool}" for pool in POOLED):
        if outcomes.has(name):
            for block, right in enumerate(outcomes.measured[name].sum(0)):
                ends = [_rounded(100 * end) for end in wilson(int(right), outcomes.count)]
                numbers = {"value": 100 * int(right) / outcomes.count, "low": ends[0], "high": ends[1]}
                yield {
                    **_named(name), "unit": "%", "block": block + 1, **numbers, "n": outcomes.count, "interval": "Wilson"
                }  # fmt: skip


def _with_intervals(values: NDArray[np.float32]) -> Iterator[tuple[float, float, float]]:
    """Yield the mean and the ends of the interval of every column of ``values`` (n, m)."""
    exact = values.astype(np.float64)
    for column in zip(exact.mean(0), *mean_intervals(exact), strict=True):
        value, below, above = (_rounded(number) for number in column)
        yield value, below, above


def _spectra(outcomes: BlockOutcomes) -> Iterator[dict[str, Any]]:
    """Yield the statistics of the spectra of every block, and the singular values of the output."""
    for rows in TOKENS:
        if outcomes.has(f"spectrum_{rows}"):
            of_blocks = outcomes.measured[f"spectrum_{rows}"]
            for name, statistic in statistics(outcomes.fitted).items():
                for block, value in enumerate(statistic(of_blocks)):
                    numbers = {"value": _rounded(value), "unit": "", "n": outcomes.count}
                    yield {"quantity": f"{name}, {rows}", "block": block + 1, **numbers}
            for rank, value in enumerate(of_blocks[-1]):
                numbers = {"value": _rounded(value), "unit": "", "n": outcomes.count}
                yield {"quantity": f"singular value, {rows}", "block": len(of_blocks), "rank": rank + 1, **numbers}


def _rounded(value: float) -> float:
    """Return a number with seven significant digits."""
    return float(f"{value:.7g}")
