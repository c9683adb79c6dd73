"""``[decided]``: the pre-registered question of a suite and the comparisons that answer it, written before its first run.

Required for ``kind = "evidence"``. It does not change any run or identity; it defines how to read the results.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lutbench.errors import UserError, unknown
from lutbench.recipes.base import Recipe

if TYPE_CHECKING:
    from lutbench.recipes.suite import PlannedRun, Suite


class DecidedComparison(Recipe):
    """A comparison of two rows of the tables on one task; the first is expected to be better."""

    pair: Annotated[list[str], Field(min_length=2, max_length=2)]
    """Names of two methods."""
    task: str
    """Name of a task in the suite file, or ``TABLE/SET`` for a robustness dataset."""
    metric: str = ""
    """The metric to compare. By default the first that tables print for the task, whatever the settings of its data make that."""


class Decided(Recipe):
    """The question, the comparisons that answer it, and how settings were chosen. The decision rule is
    :func:`lutbench.report.decided.verdict`, the same for all suites."""

    question: str
    """The question, in one or two sentences."""
    settings: str
    """How the settings of every row were chosen, and on which images."""
    seeds: Annotated[list[int], Field(min_length=2)]
    """The seeds. With fewer, more or others there is no verdict, so that nobody stops when the result suits, or chooses among seeds."""
    primary: Annotated[list[DecidedComparison], Field(min_length=1)]
    """Primary comparisons: together they answer the question."""
    secondary: list[DecidedComparison] = Field(default_factory=list)
    """Secondary comparisons: reported in addition, as a separate family for multiple testing."""


def check_decided(suite: "Suite", runs: "Iterable[PlannedRun]") -> None:
    """Check that a suite has ``[decided]`` if its kind requires it, and that its runs cover every comparison.

    Raises:
        UserError: if ``kind = "evidence"`` has no ``[decided]``, or a comparison names a row or task without runs, or appears twice.
    """
    if suite.decided is None:
        if suite.kind == "evidence":
            raise UserError(
                'kind = "evidence": expected a table [decided] with question, settings, seeds and primary, written before the first run; found '
                'none. For a suite without decisions made beforehand use kind = "exploration".'
            )
        return
    if len(set(suite.decided.seeds)) != len(suite.decided.seeds):
        raise UserError(f"decided.seeds: expected each seed once, found {suite.decided.seeds}.")
    measured: dict[str, set[str]] = {}
    for run in runs:
        if run.method:
            measured.setdefault(run.task, set()).add(run.method)
    seen = set[tuple[str, ...]]()
    for family in ("primary", "secondary"):
        for compared in getattr(suite.decided, family):
            where = f"decided.{family}"
            if compared.task not in measured:
                raise unknown(f"{where}: no run has task = {compared.task!r}", compared.task, measured)
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
                    f"{where}: {' and '.join(compared.pair)} on {compared.task}: expected two different rows, and each comparison only once."
                )
            seen.add(key)
