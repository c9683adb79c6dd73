"""``[decided]``: what a suite asks, and what it will count as an answer, written down before its first run.

``kind = "evidence"`` demands it. What is decided is part of no run: it says how to read them.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lutbench.errors import UserError, unknown
from lutbench.recipes.base import Recipe

if TYPE_CHECKING:
    from lutbench.recipes.suite import PlannedRun, Suite


class DecidedComparison(Recipe):
    """Two rows of the tables on one task: the first is expected to be the better one."""

    pair: Annotated[list[str], Field(min_length=2, max_length=2)]
    """Names of two methods."""
    task: str
    """Name of a task in the suite file, or ``TABLE/SET`` of a robustness dataset."""
    metric: str = ""
    """The metric that is compared; the first that tables print of the task if not given."""


class Decided(Recipe):
    """The question, the comparisons that answer it, and how settings were chosen. The rule is that of
    :func:`lutbench.report.decided.verdict`, the same for all suites."""

    question: str
    """What is asked, in a sentence or two."""
    settings: str
    """How settings were chosen, for every row, and on which images."""
    primary: Annotated[list[DecidedComparison], Field(min_length=1)]
    """The comparisons that answer the question: all of them together."""
    secondary: list[DecidedComparison] = Field(default_factory=list)
    """What is looked at beside, in a family of its own."""


def check_decided(suite: "Suite", runs: "Iterable[PlannedRun]") -> None:
    """Check that a suite decides what its kind demands, and that its runs make every comparison that it decides on.

    Raises:
        UserError: if ``kind = "evidence"`` decides nothing, or a comparison is of a row or a task that no run has, or is there twice.
    """
    if suite.decided is None:
        if suite.kind == "evidence":
            raise UserError(
                'kind = "evidence": expected a table [decided] with question, settings and primary, written before the first run; found '
                'none. A suite that looks at data without having decided anything is kind = "exploration".'
            )
        return
    measured: dict[str, set[str]] = {}
    for run in runs:
        if run.method:
            measured.setdefault(run.task, set()).add(run.method)
    seen = set[tuple[str, ...]]()
    for family in ("primary", "secondary"):
        for compared in getattr(suite.decided, family):
            where = f"decided.{family}"
            if compared.task not in measured:
                raise unknown(f"{where}: task = {compared.task!r}: no run is of that task", compared.task, measured)
            for method in compared.pair:
                if method not in measured[compared.task]:
                    raise unknown(
                        f"{where}: pair = {compared.pair}: task {compared.task} is not run for {method!r}",
                        method,
                        measured[compared.task],
                    )
            key = (*sorted(compared.pair), compared.task, compared.metric)
            if key in seen or compared.pair[0] == compared.pair[1]:
                raise UserError(
                    f"{where}: {' and '.join(compared.pair)} on {compared.task}: expected two different rows, and every comparison once."
                )
            seen.add(key)
