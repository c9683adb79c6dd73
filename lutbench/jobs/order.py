"""The order in which parallel runs are started."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from lutbench.errors import UserError
from lutbench.recipes.probes import FeatureSettings
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import read_record, record_path
from lutbench.run import Run, open_run

REFERENCE = "reference"
"""The folder below the results that has the records that come with the repository."""


def longest_first(runs: Sequence[Run[Any]], seconds: Mapping[str, float]) -> list[Run[Any]]:
    """Return the runs, those first that have most to come after them: their own seconds and those of the longest chain that waits for them.

    A run whose seconds are not known takes as many as the others on average; those with as much to come stay in the order of the suite.
    """
    usual = fmean(seconds.values()) if seconds else 1.0
    to_come: dict[str, float] = {}
    for run in reversed(runs):  # a run comes after the one that it needs
        after = [to_come[other.name] for other in runs if other.needs is not None and other.needs.name == run.name]
        to_come[run.name] = seconds.get(run.name, usual) + max(after, default=0.0)
    return sorted(runs, key=lambda run: -to_come[run.name])


def known_seconds(runs: Sequence[Run[Any]]) -> dict[str, float]:
    """Return how long runs took, of those of which the results or the reference beside them have a record, of whatever recipe."""
    found = {}
    for run in runs:
        for results in (run.workspace.results, run.workspace.results / REFERENCE):
            with suppress(UserError, OSError):
                found[run.name] = read_record(record_path(results, run.planned.suite, run.name)).wall_seconds
                break
    return found


@dataclass
class Queue:
    """The runs that are still to be begun, in the order in which they are wanted, and which of them can be begun now."""

    suite: LoadedSuite
    waiting: list[Run[Any]]
    threads: int
    """How many threads runs may have together; a run that has more is begun alone. Those of a run are its recipe's in any case: its
    last bits depend on it."""
    all_threads: int
    """Threads of a run whose recipe gives no number."""
    later: dict[str, float] = field(default_factory=dict)
    """Runs that another command is at work on, with the time from which they are looked at again."""
    _identities: dict[str, str] = field(default_factory=dict)

    def take(self, running: Collection[Run[Any]], now: float) -> Run[Any] | None:
        """Return the run to begin beside those ``running``, which waits no more; None if none can be.

        What it needs has finished; none with its identity is running, since that is the same run by another name; and one whose
        features another may be encoding comes after those for which that is not so.
        """
        unfinished = {run.name for run in (*self.waiting, *running)}
        free = self.threads - sum(map(self._threads, running))
        identities = {self._identity(run) for run in running}
        shared = {key for run in running if (key := _features(run))}
        able = [
            run
            for run in self.waiting
            if (run.needs is None or run.needs.name not in unfinished)
            and self.later.get(run.name, 0.0) <= now
            and (not running or self._threads(run) <= free)
            and (not running or self._identity(run) not in identities)
        ]
        if not able:
            return None
        chosen = min(able, key=lambda run: _features(run) in shared)
        self.waiting.remove(chosen)
        return chosen

    def _threads(self, run: Run[Any]) -> int:
        return run.recipe.threads or self.all_threads

    def _identity(self, run: Run[Any]) -> str:
        """Return the identity of a run whose needed one has finished; its name if that cannot be found out, which it says itself."""
        if run.name not in self._identities:
            self._identities[run.name] = run.name
            with suppress(UserError):
                self._identities[run.name] = open_run(self.suite, run.planned, run.workspace).identity
        return self._identities[run.name]


def _features(run: Run[Any]) -> tuple[str, str] | None:
    """Return what runs have in common that take features of one encoder on one dataset; None of a run that trains the encoder."""
    if not isinstance(run.recipe, FeatureSettings):
        return None
    return f"{run.planned.method} {run.seed}", run.planned.recipe.dataset.model_dump_json()
