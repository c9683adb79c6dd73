"""Why runs cannot be done as they are: found before any compute by ``run``, ``plan`` and ``status`` alike, and told once for each cause."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from lutbench.errors import NotRun, UserError, listed
from lutbench.progress import console
from lutbench.recipes.suite import LoadedSuite
from lutbench.run import Run
from lutbench.run_status import waits, weights_problem
from lutbench.run_weights import FIRST, require_needed
from lutbench.train.trackers import require_trackers

RUN, NEEDED, KEPT = "\0run\0", "\0needed\0", "\0kept\0"
"""What stands for the names of a run, of the one that it needs and of a snapshot of that, in a paragraph that is the same for several."""

SNAPSHOT = re.compile(r"\b(encoder|teacher)-at-[\d.]*\d")


def check_run(run: Run[Any], chosen: Collection[str], repeated: Collection[str] = ()) -> None:
    """Find what would stop a run before any compute is spent; the run that it needs is to come if it is ``chosen`` too.

    Raises:
        NotRun: if its dataset is optional and absent.
        UserError: if its data, weights or settings do not go together, or what it needs did not finish, or did not keep what it takes;
            if a tracker that it names is not installed.
    """
    require_trackers(getattr(run.recipe, "trackers", ()), f"{run.planned.stage}.{run.planned.task}")
    run.planned.kind.module.check(run)
    if run.needs is not None:
        to_come = run.needs.name in chosen and (run.needs.name in repeated or waits(run))
        if not to_come:
            require_needed(run)


def refusal(run: Run[Any], chosen: Collection[str]) -> str:
    """Return why ``lutbench run`` would refuse a run, a paragraph; empty if it would not. Nothing is made or decoded for it.

    What should be known of weights is noted; what there is to say of data, a run says.
    """
    if problem := weights_problem(run):
        return problem
    looking = replace(run, workspace=replace(run.workspace, download=False))
    try:
        with console.capture():
            check_run(looking, chosen)
    except NotRun:
        return ""
    except UserError as error:
        return str(error)
    return ""


def warnings(runs: Iterable[Run[Any]], images: Mapping[str, Mapping[str, int]] | None = None) -> dict[str, str]:
    """Return by name of the run what a user should know before it, see :meth:`lutbench.recipes.base.RunRecipe.warning`.

    ``images`` has the size of the splits by name of the run; if not given they are counted, as far as they are here.
    """
    found = {run.name: run.recipe.warning(_sizes(run) if images is None else images[run.name]) for run in runs}
    return {name: warning for name, warning in found.items() if warning}


def _sizes(run: Run[Any]) -> dict[str, int]:
    """Return the size of the training split, if it is here."""
    looking = replace(run, workspace=replace(run.workspace, download=False))
    try:
        return (
            {"train": len(looking.workspace.open(run.recipe.dataset, "train"))}
            if run.planned.stage == "pretrain"
            else {}
        )
    except UserError:
        return {}


def not_done(suite: LoadedSuite, failed: Mapping[str, str], runs: int, told: Collection[str] = ()) -> str:
    """Return which of so many runs cannot be done, and why, in a paragraph for each cause that was not ``told`` before."""
    if not told and len(failed) == runs and len(set(failed.values())) == 1:
        return next(iter(failed.values()))
    before = [f"{listed(name for name in failed if name in told)}: as told above."] if told else []
    later = {name: reason for name, reason in failed.items() if name not in told}
    return "\n".join([f"{len(failed)} of {runs} runs cannot be done.", *before, *paragraphs(suite, later)])


def paragraphs(suite: LoadedSuite, failed: Mapping[str, str]) -> list[str]:
    """Return a paragraph for each cause, with the runs that cannot be done for it; ``failed`` has a reason for each by name."""
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
    """Return a paragraph with another word in the place of a run's name, and not of a longer one that begins or ends so."""
    return re.sub(rf"(?<![\w./-]){re.escape(name)}(?![\w/-])", by, reason) if name else reason


def _study(suite: LoadedSuite, cause: str, names: Collection[str]) -> str:
    """Return how to run the studies that want for a run before, with all that they start from; empty if none does."""
    studied = suite.runs_of_studies() if FIRST in cause else {}
    studies = list(dict.fromkeys(studied[name] for name in names if name in studied))
    only = " ".join(f"--only {study}" for study in studies)
    return f" With all that it starts from, a study is run by its name: {only}." if only else ""
