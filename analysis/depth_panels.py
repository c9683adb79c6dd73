"""What the figures of an analysis show, and the charts of the report: the panels, their texts, and the encoders in them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from analysis.block_outcomes import BlockOutcomes
from analysis.depth_curves import Group, Row, Values
from analysis.uniform import uniform_distance, uniform_entropy
from lutbench.record import Record
from lutbench.report.comparisons import on_same_images
from lutbench.report.entries import TableEntry
from lutbench.report.figures import Point, seeds_label
from lutbench.report.sections import View

BANDS = "Bands show 95 % intervals: over images (bootstrap) for one seed, over seeds (Student's t) for several."
OF_ATTENTION = "Attention that reaches as far as uniform attention, with NMI near 0, selects nothing."
OF_FEATURES = "out: the output after the final norm. The bar at its effective rank, with one seed, is the 95 % interval over images."
OF_SPECTRA = (
    "The singular values of the centred features of all images, the largest first. A line that falls fast: few directions have most of the\n"
    "variation. Pooled features have fewer values than there are images. Values below 1e-6 of the largest are rounding errors.\n"
    "Bands: 95 % intervals over seeds, if there are several."
)
OF_CKA = (
    "How alike the features of two blocks are: linear CKA of the mean over patches, by the unbiased estimate over minibatches (Nguyen et al.\n"
    "2021); mean over seeds. 1: equal up to rotation and scale; 0: nothing in common. out: the output after the final norm."
)

SPECTRA = {"pooled": "pooled: mean over patches", "tokens": "tokens: every patch"}
"""The panels of the spectra of the output, by the rows that the singular values are of."""
SHARE, FALL = "number of the value / width of the features", "log10 (value / largest value)"
"""Their axes."""


class Panel(NamedTuple):
    """One of the small plots of a figure, drawn for every group."""

    title: str
    unit: str
    solid: str
    """The curve of its solid line, see :func:`depth_curves`; without that there is no panel."""
    dotted: str = ""
    notes: tuple[str, str] = ("", "")
    """What tells the two curves apart."""

    @property
    def x(self) -> str:
        """The name of the horizontal axis."""
        return "frequency, cycles per patch" if self.solid == "radial" else "block"

    def ticks(self, curves: Sequence[Mapping[str, Values]], first: BlockOutcomes) -> dict[int, str]:
        """Return where blocks have ticks, and what is written there; empty for an axis of frequencies."""
        if self.solid == "radial":
            return {}
        return block_ticks(first.blocks, any(of.get(self.solid, NONE).shape[1] > first.blocks for of in curves))


NONE = np.empty((3, 0))
"""A curve without points."""

ATTENTION_PANELS = (
    Panel("mean attention distance", "px", "distance"),
    Panel("NMI of query and key", "NMI", "nmi"),
    Panel("entropy", "nats", "entropy"),
    Panel("to itself (solid), to the class token (dotted)", "share of attention", "to_itself", "to_class", ("to itself", "to the class token")),
)  # fmt: skip
FEATURE_PANELS = (
    Panel("amplitude of the highest frequency", "ln (amplitude / that at 0)", "highest"),
    Panel("amplitudes in the last block", "ln (amplitude / that at 0)", "radial"),
    Panel("effective rank, pooled (solid), tokens (dotted)", "effective rank", "rank_pooled", "rank_tokens", ("pooled", "tokens")),
    Panel("similarity of the tokens of an image", "mean cosine", "similarity"),
    Panel("rank of the tokens of an image", "participation ratio", "token_rank"),
    Panel("k-NN, mean of patches (solid), class (dotted)", "top-1, %", "right_pooled", "right_class", ("mean of patches", "class token")),
)  # fmt: skip


def groups_of(view: View, measured: Sequence[TableEntry]) -> list[Group]:
    """Return the rows of a table, those of encoders with the same name, grid and blocks together."""

    def architecture(entry: TableEntry) -> tuple[str, int, int, int]:
        first: BlockOutcomes = entry.runs[0].outcomes
        return entry.encoder, first.grid, first.patch_size, first.blocks

    order = list(dict.fromkeys(map(architecture, measured)))
    groups = []
    for (encoder, *_), of_group in groupby(sorted(measured, key=lambda e: order.index(architecture(e))), architecture):
        shown = list(of_group)
        names = view.method_names(shown)
        rows = []
        for entry in shown:
            runs = _distinct(entry.runs)
            heads = [record.array("heads") for record in runs if has_array(record, "heads")]
            label = seeds_label(names[entry.method], len(runs))
            rows.append(
                Row(label, view.colour(entry.method), [r.outcomes for r in runs], heads, [r.run for r in entry.runs])
            )
        groups.append(Group(encoder, rows))
    return groups


def _distinct(runs: Sequence[Record]) -> Sequence[Record]:
    """Return the runs of all seeds; the first alone where all found the same, as of weights that no seed has made."""
    first, *others = (record.outcomes.measured for record in runs)
    alike = all(
        of.keys() == first.keys() and all(np.array_equal(of[name], first[name]) for name in of) for of in others
    )
    return runs[:1] if alike else runs


def has_array(record: Record, name: str) -> bool:
    """Return whether a record keeps an array of this name."""
    return any(one.name == name for one in record.attachments)


def points_of(curves: Mapping[str, Values], name: str, first: BlockOutcomes) -> dict[float, Point]:
    """Return a curve by block or, of amplitudes, by frequency; the output stands behind the last block."""
    values = curves.get(name, NONE)
    at = np.arange(1, values.shape[1] + 1) / (first.grid if name == "radial" else 1)
    return {float(x): Point(*point) for x, point in zip(at, values.T.tolist(), strict=True)}


def block_ticks(blocks: int, out: bool, first: int = 1) -> dict[int, str]:
    """Return where blocks have ticks and what is written there, the first block at ``first``, and the output behind the last."""
    step = -(-blocks // 6)
    labelled = [block for block in range(step, blocks + 1, step) if not out or blocks + 1 - block >= step]
    return {block - 1 + first: str(block) for block in labelled} | ({blocks + first: "out"} if out else {})


def of_uniform(first: BlockOutcomes) -> dict[str, float]:
    """Return by quantity what attention gives that is the same for all tokens."""
    tokens = first.grid**2 + first.has("to_class")
    return {
        "distance": uniform_distance(first.grid, first.patch_size),
        "nmi": 0.0,
        "entropy": uniform_entropy(first.grid),
        "to_itself": 1 / tokens,
    }


class Alike(NamedTuple):
    """How alike all blocks of two encoders are, or those of one among themselves."""

    title: str
    x: str
    y: str
    """The names of the axes: columns are blocks of the second encoder, rows are blocks of the first."""
    values: Values
    """(L1 + 1, L2 + 1) The mean of CKA over seeds."""
    runs: Sequence[str]
    """The names of the runs behind it."""


def keeping_grams(measured: Sequence[TableEntry]) -> list[TableEntry]:
    """Return the entries all of whose runs kept what CKA is computed from."""
    return [entry for entry in measured if all(has_array(record, "grams") for record in entry.runs)]


def alike_blocks(view: View, measured: Sequence[TableEntry]) -> Iterator[Alike]:
    """Yield how alike the blocks of every encoder that has grams are, then those of the suite's pairs on the same images."""
    from analysis.cka import cka

    names, entries = view.method_names(measured), {entry.method: entry for entry in keeping_grams(measured)}
    grams = {method: [record.array("grams") for record in entry.runs] for method, entry in entries.items()}
    pairs = [pair for pair in view.suite.config.compare if {*pair} <= entries.keys()]
    on_same = [(one, other) for one, other in pairs if on_same_images(entries[one], entries[other])]
    for one, other in [*((method, method) for method in entries), *on_same]:
        seeds = zip(grams[one], grams[other], strict=True)
        alike = np.mean([cka(first, second) for first, second in seeds], 0)
        runs = [record.run for method in dict.fromkeys((one, other)) for record in entries[method].runs]
        if one == other:
            yield Alike(names[one], "block", "block", alike, runs)
        else:
            title = f"{names[one]} and {names[other]}"
            yield Alike(title, f"{names[other]}, block", f"{names[one]}, block", alike, runs)
