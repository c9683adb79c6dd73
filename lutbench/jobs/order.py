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
from lutbench.reference_curves import REFERENCE
from lutbench.run import Run, open_run


def longest_first(runs: Sequence[Run[Any]], seconds: Mapping[str, float]) -> list[Run[Any]]:
    """Return the runs, sorted by the length in seconds of the longest chain that starts with them (critical path first).

    A run of unknown duration counts as the average; ties stay in the order of the suite.
    """
    usual = fmean(seconds.values()) if seconds else 1.0
    to_come: dict[str, float] = {}
    for run in reversed(runs):  # a run comes after the one that it needs
        after = [to_come[other.name] for other in runs if other.needs is not None and other.needs.name == run.name]
        to_come[run.name] = seconds.get(run.name, usual) + max(after, default=0.0)
    return sorted(runs, key=lambda run: -to_come[run.name])


def known_seconds(runs: Sequence[Run[Any]]) -> dict[str, float]:
    """Return how many seconds runs took, for those with a record of any recipe in the results or in the reference."""
    found = {}
    for run in runs:
        for results in (run.workspace.results, run.workspace.results / REFERENCE):
            with suppress(UserError, OSError):
                found[run.name] = read_record(record_path(results, run.planned.suite, run.name)).wall_seconds
                break
    return found


@dataclass
class Queue:
    """The runs that have not started yet, in the preferred order, and which of them can start now."""

    suite: LoadedSuite
    waiting: list[Run[Any]]
    threads: int | None
    """Total number of threads of the current runs; a run that needs more starts alone. The threads of a run are always those of its
    recipe: its last bits depend on them. None where runs compute on GPUs: their threads on the CPU are not counted."""
    all_threads: int
    """Threads of a run whose recipe does not set them."""
    later: dict[str, float] = field(default_factory=dict)
    """Runs that another command is performing, with the time of the next check."""
    _identities: dict[str, str] = field(default_factory=dict)

    def take(self, running: Collection[Run[Any]], now: float) -> Run[Any] | None:
        """Return the next run to start besides those ``running``, and remove it from the queue; None if none can start.

        The run it depends on has finished, and no run with the same identity (the same run under another name) is running. Runs whose
        features another run may be encoding right now come last.
        """
        unfinished = {run.name for run in (*self.waiting, *running)}
        taken = sum(map(self._threads, running))
        identities = {self._identity(run) for run in running}
        shared = {key for run in running if (key := _features(run))}
        able = [
            run
            for run in self.waiting
            if (run.needs is None or run.needs.name not in unfinished)
            and self.later.get(run.name, 0.0) <= now
            and (not running or self.threads is None or taken + self._threads(run) <= self.threads)
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
        """Return the identity of a run whose dependency has finished; its name if the identity cannot be computed."""
        if run.name not in self._identities:
            self._identities[run.name] = run.name
            with suppress(UserError):
                self._identities[run.name] = open_run(self.suite, run.planned, run.workspace).identity
        return self._identities[run.name]


def _features(run: Run[Any]) -> tuple[str, str] | None:
    """Return a key shared by runs that use the same encoder's features on the same dataset; None for a run that trains the encoder."""
    if not isinstance(run.recipe, FeatureSettings):
        return None
    return f"{run.planned.method} {run.seed}", run.planned.recipe.dataset.model_dump_json()
