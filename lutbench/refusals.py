"""Reasons why runs cannot start, found before any compute by ``run``, ``plan`` and ``status`` alike, and reported once per cause."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lutbench.errors import NotRun, UserError, listed
from lutbench.progress import console
from lutbench.recipes.suite import LoadedSuite
from lutbench.run import Run
from lutbench.run_status import waits, weights_problem
from lutbench.run_weights import FIRST, needed_weights
from lutbench.train.trackers import require_trackers

RUN, NEEDED, KEPT = "\0run\0", "\0needed\0", "\0kept\0"
"""Placeholders for the names of a run, of the run it depends on and of a snapshot of that one, in a paragraph that several runs share."""

SNAPSHOT = re.compile(r"\b(encoder|teacher)-at-[\d.]*\d")


def check_run(run: Run[Any], chosen: Collection[str], repeated: Collection[str] = ()) -> None:
    """Check that a run can start, before any compute is spent; the run it depends on may still be missing if it is ``chosen`` too.

    Raises:
        NotRun: if its dataset is optional and absent.
        UserError: if its data, weights and settings do not fit together; if the run it depends on did not finish, or did not keep the
            weights that it takes; if a tracker that it names is not installed.
    """
    require_trackers(getattr(run.recipe, "trackers", ()), f"{run.planned.stage}.{run.planned.task}")
    run.planned.kind.module.check(run)
    if run.needs is not None:
        to_come = run.needs.name in chosen and (run.needs.name in repeated or waits(run))
        if not to_come:
            needed_weights(run, run.needs)


def refusal(run: Run[Any], chosen: Collection[str]) -> str:
    """Return in a paragraph why ``lutbench run`` would refuse a run; empty if it would not. Builds and decodes nothing."""
    if problem := weights_problem(run):
        return problem
    try:
        with console.capture():
            check_run(replace(run, workspace=run.workspace.offline()), chosen)
    except NotRun:
        return ""
    except UserError as error:
        return str(error)
    return ""


def warnings(runs: Iterable[Run[Any]], images: Mapping[str, Mapping[str, int]] | None = None) -> dict[str, str]:
    """Return the warnings of the runs by name, see :meth:`lutbench.recipes.base.RunRecipe.warning`.

    ``images`` has the split sizes by run name; if it is None, the splits that are present are counted.
    """
    found = {run.name: run.recipe.warning(_sizes(run) if images is None else images[run.name]) for run in runs}
    return {name: warning for name, warning in found.items() if warning}


def _sizes(run: Run[Any]) -> dict[str, int]:
    """Return the size of the training split, if it is present."""
    if run.planned.stage != "pretrain":
        return {}
    try:
        return {"train": len(run.workspace.offline().open(run.recipe.dataset, "train"))}
    except UserError:
        return {}


@dataclass
class Failures:
    """The runs of a command that cannot be completed, and why."""

    suite: LoadedSuite
    reasons: dict[str, str] = field(default_factory=dict)
    """The reason for each run, by name."""
    told: set[str] = field(default_factory=set)
    """The names of those whose reasons have been printed."""

    def check_needed(self, run: Run[Any]) -> None:
        """Raise UserError if the run that a run depends on failed."""
        if run.needs is not None and run.needs.name in self.reasons:
            raise UserError(f"{run.name} needs {run.needs.name}, which cannot be completed.")

    def tell(self, run: Run[Any]) -> None:
        """Print why a run failed, unless the run it depends on failed: that one's reason is printed."""
        if run.needs is None or run.needs.name not in self.reasons:
            console.print(*paragraphs(self.suite, {run.name: self.reasons[run.name]}))
            self.told.add(run.name)

    def summary(self, runs: int) -> str:
        """Return which of so many runs failed, and why, in a paragraph for each cause that has not been printed."""
        reasons = self.reasons
        if not self.told and len(reasons) == runs and len(set(reasons.values())) == 1:
            return next(iter(reasons.values()))
        before = [f"{listed(name for name in reasons if name in self.told)}: see above."] if self.told else []
        later = {name: reason for name, reason in reasons.items() if name not in self.told}
        return "\n".join(
            [f"{len(reasons)} of {runs} runs cannot be completed.", *before, *paragraphs(self.suite, later)]
        )


def paragraphs(suite: LoadedSuite, failed: Mapping[str, str]) -> list[str]:
    """Return a paragraph for each cause, with the runs that it stops; ``failed`` has the reason for each run by name."""
    needs = {run.name: run.needs or "" for run in suite.runs}
    causes: dict[str, list[str]] = {}
    for name, reason in failed.items():
        cause = SNAPSHOT.sub(KEPT, _named(_named(reason, name, RUN), needs.get(name, ""), NEEDED), count=1)
        causes.setdefault(cause, []).append(name)
    told = []
    for cause, names in causes.items():
        before = list(dict.fromkeys(needs.get(name, "") for name in names))
        needed = before[0] if len(before) == 1 else f"the run before it ({listed(before, 3)})"
        own = names[0] if len(names) == 1 else "each"
        kept = dict.fromkeys(found[0] for name in names if (found := SNAPSHOT.search(failed[name])))
        reason = cause.replace(RUN, own).replace(NEEDED, needed).replace(KEPT, listed(kept)) + _study(
            suite, cause, names
        )
        told.append(reason if len(names) == 1 and RUN in cause else f"{listed(names)}: {reason}")
    return told


def _named(reason: str, name: str, by: str) -> str:
    """Replace a run's name in a paragraph, but not where it is a part of a longer name."""
    return re.sub(rf"(?<![\w./-]){re.escape(name)}(?![\w/-])", by, reason) if name else reason


def _study(suite: LoadedSuite, cause: str, names: Collection[str]) -> str:
    """Return how to run the studies whose runs lack another run, with everything they depend on; empty if there are none."""
    studied = suite.runs_of_studies() if FIRST in cause else {}
    studies = list(dict.fromkeys(studied[name] for name in names if name in studied))
    only = " ".join(f"--only {study}" for study in studies)
    return f" To run a study with all the runs it depends on, name the study: {only}." if only else ""
