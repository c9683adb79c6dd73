"""What interactive charts show: the points of a figure, drawn by no library yet. The HTML report draws them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lutbench.evaluate.outcomes import Measurement
from lutbench.report.figures import Point

Style = Literal["solid", "dotted", "dots"]
"""How a line is drawn; of ``dots`` the points alone, each with a bar for its interval."""


def point_of(measured: Measurement) -> Point:
    """Return a value with its interval, which is the value itself where there is none."""
    low, high = (measured.value if end is None else end for end in (measured.low, measured.high))
    return Point(measured.value, low, high)


@dataclass(frozen=True)
class ChartLine:
    """A method in a panel."""

    label: str
    """What the legend says; lines of one label share a colour, in all panels of a chart."""
    colour: str
    points: Mapping[float, Point]
    """By horizontal position a value with its interval, which is the value itself where there is none."""
    style: Style = "solid"
    note: str = ""
    """What the line is, where a label has several: ``tokens``."""
    has_band: bool = True
    """Whether the intervals are drawn."""
    runs: Sequence[str] = ()
    """The names of the runs behind it."""
    runs_at: Mapping[float, Sequence[str]] = field(default_factory=dict)
    """By horizontal position the runs behind a point, where points are of different runs."""


@dataclass(frozen=True)
class ChartPanel:
    """One of the small plots of a chart."""

    title: str
    x: str
    y: str
    lines: Sequence[ChartLine]
    ticks: Mapping[float, str] = field(default_factory=dict)
    """What is written at horizontal positions; numbers where a plot wants them if not given."""
    level: float | None = None
    """Where a dashed line goes across, such as what uniform attention gives."""
    level_label: str = ""
    from_zero: bool = False
    """Whether the vertical axis begins at 0."""
    top: float | None = None
    """Where the vertical axis, from 0, ends, so that panels can be compared; where the lines need it to if not given."""


@dataclass(frozen=True)
class CategoryPanel:
    """Values by category, one category below the other: of every method a dot with a bar for its interval."""

    title: str
    x: str
    categories: Sequence[str]
    """From the top."""
    lines: Sequence[ChartLine]
    """Their points are by the category's place, from 0; a category that has no value of a method has no point."""
    top: float | None = None
    """Where the axis, from 0, ends; where the points need it to if not given."""


@dataclass(frozen=True)
class MapPanel:
    """A number for every pair of a row and a column, as colours."""

    title: str
    x: str
    y: str
    value: str
    """What the numbers are."""
    columns: Sequence[str]
    """From the left."""
    rows: Sequence[str]
    """From the bottom."""
    values: Sequence[Sequence[float]]
    """Row by row; NaN where there is none."""
    ends: tuple[float, float] = (0.0, 1.0)
    """The values of the first and of the last colour."""
    runs: Sequence[str] = ()
    """The names of the runs behind it."""


@dataclass(frozen=True)
class Chart:
    """Small plots with a legend in common."""

    panels: Sequence[ChartPanel | CategoryPanel | MapPanel]
    note: str = ""
    """What bands and dots are."""

    @property
    def colours(self) -> dict[str, str]:
        """The colour of every label, in the order of the legend."""
        with_lines = [panel for panel in self.panels if not isinstance(panel, MapPanel)]
        return {line.label: line.colour for panel in with_lines for line in panel.lines}


@dataclass(frozen=True)
class Difference:
    """A row of a forest plot."""

    task: str
    metric: str
    unit: str
    label: str
    """The pair, ``LUT - MAE``."""
    value: float
    over_images: tuple[float, float]
    over_runs: tuple[float, float] | None = None
    """Over seeds or draws; None of one."""
    runs: Sequence[str] = ()
    """The names of the runs behind it."""

    @property
    def ends(self) -> tuple[float, ...]:
        """The ends of its intervals."""
        return *self.over_images, *(self.over_runs or ())


@dataclass(frozen=True)
class Forest:
    """Differences with their intervals, task by task, around zero."""

    rows: Sequence[Difference]
    note: str = "Thick bars: 95 % intervals over images. Thin bars: over seeds or draws, where there are several."


def reach(values: Iterable[float]) -> float:
    """Return how far an axis around zero has to reach to hold all values, a little more than the farthest."""
    return 1.08 * max(abs(value) for value in values) or 1.0
