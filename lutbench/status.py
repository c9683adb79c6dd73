"""``lutbench status``: how far the runs of a suite have come."""

from collections import Counter
from typing import Any

from lutbench.cluster.states import job_states
from lutbench.errors import NotRun, UserError, listed
from lutbench.locks import held_by
from lutbench.progress import console
from lutbench.recipes.suite import LoadedSuite
from lutbench.reference_curves import departed
from lutbench.refusals import paragraphs, refusal, warnings
from lutbench.run import Run, open_runs
from lutbench.run_status import RunState, unknown_because, waits, weights_problem
from lutbench.run_weights import NotKeptError
from lutbench.workspace import Workspace

CANNOT = "cannot run"
"""The status of a run that needs weights which a finished run did not keep."""


def _result(run: Run[Any], problems: list[str]) -> str:
    """Return a run's result; if its record is damaged, add that to ``problems`` and return the empty string."""
    try:
        return run.result()
    except UserError as error:
        problems.append(str(error))
        return ""


def show_status(suite: LoadedSuite, workspace: Workspace) -> None:
    """Print every run of the suite with its status, result and folder, and whether the loss of a run in progress leaves the reference band.

    One line per run; on a narrow terminal, result and folder below it. Missing runs that belong to a study only are counted in one
    line per study: a grid has many.
    """
    rows: list[tuple[str, ...]] = []
    studied, missing = suite.runs_of_studies(), Counter[str]()
    problems: list[str] = []
    refused, chosen = dict[str, str](), {planned.name for planned in suite.runs}
    edited: dict[tuple[str, ...], int] = {}
    to_come: list[Run[Any]] = []
    jobs = job_states(suite, workspace.runs)
    runs = open_runs(suite, workspace)
    for planned in suite.runs:
        run, done = runs[planned.name], False
        try:
            status, holder = run.status(), held_by(run)
            state = f"running, by {holder}" if holder else status.short
            if status.sources:
                edited[status.sources] = edited.get(status.sources, 0) + 1
            problems += status.damage
            rows.append((run.name, state, _result(run, problems), str(status.folder)))
            done = status.state is RunState.FINISHED
            if (holder or status.state is RunState.RESUMABLE) and (left := departed(run)):
                problems.append(f"{run.name}: {left}.")
        except NotKeptError:
            rows.append((run.name, CANNOT, "", ""))
        except NotRun as reason:
            rows.append((run.name, "not run", "", ""))
            problems.append(str(reason))
        except UserError as error:
            state = RunState.UNKNOWN if (because := unknown_because(run)) else RunState.MISSING
            waiting = not because and waits(run)
            rows.append((run.name, state, f"needs {planned.needs}" if waiting else "", because))
            if not waiting:
                refused[run.name] = str(error)
        if problem := weights_problem(run, finished=True) if done else refusal(run, chosen):
            refused[run.name] = problem
        if not done:
            to_come.append(run)
        if not done and (job := jobs.get(run.name)):
            kept = rows[-1][1] if rows[-1][1].startswith((RunState.RESUMABLE, RunState.STALE)) else ""
            rows[-1] = (run.name, "; ".join(filter(None, (job.text, kept))), *rows[-1][2:])
            problems += [job.paragraph] if job.paragraph else []
        if rows[-1][1] == RunState.MISSING and run.name in studied:
            missing[studied[run.name]] += 1
            rows.pop()
    rows += [(study, RunState.MISSING, f"{count} runs of this study", "") for study, count in missing.items()]
    console.print(f"Suite {suite.name}")
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    narrow = console.is_terminal and sum(widths) - 2 > console.width
    for row in rows:
        if narrow:
            console.print("\n    ".join(part for part in (f"{row[0]}  {row[1]}", *row[2:]) if part))
        else:
            console.print("".join(part.ljust(width) for part, width in zip(row, widths, strict=True)).rstrip())
    told = [
        f"{runs} of {len(suite.runs)} runs finished with different code. Changed since then: {listed(sources)}. Repeat a run with --again NAME."
        for sources, runs in edited.items()
    ]
    warned = paragraphs(suite, warnings(to_come))
    for problem in dict.fromkeys([*problems, *paragraphs(suite, refused), *warned, *told]):
        console.print(f"\n{problem}")
