"""``lutbench status``: how far the runs of a suite have come."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from lutbench.cluster.states import JobState, job_states
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


@dataclass
class _Row:
    """A run in the list, and what is said of it below the list."""

    name: str
    state: str
    result: str = ""
    folder: str = ""
    """Or why the status is unknown."""
    is_finished: bool = False
    sources: tuple[str, ...] = ()
    """The source files that have changed since it finished."""
    problems: list[str] = field(default_factory=list)
    refused: str = ""
    """Why it cannot run."""


def show_status(suite: LoadedSuite, workspace: Workspace, check: bool = False) -> None:
    """Print every run of the suite with its status, result and folder, and whether the loss of a run in progress leaves the reference band.

    One line per run; on a narrow terminal, result and folder below it. Missing runs that belong to a study only are counted in one
    line per study: a grid has many. ``check``: find also what would stop the runs to come, for which their models are built.
    """
    jobs, runs, studied = job_states(suite, workspace.runs), open_runs(suite, workspace), suite.runs_of_studies()
    rows = [_row(run, runs, jobs.get(name), check) for name, run in runs.items()]
    lines, missing = [], Counter[str]()
    for row in rows:
        if row.state == RunState.MISSING and row.name in studied:
            missing[studied[row.name]] += 1
        else:
            lines.append((row.name, row.state, row.result, row.folder))
    lines += [(study, RunState.MISSING, f"{count} runs of this study", "") for study, count in missing.items()]
    console.print(f"Suite {suite.name}")
    _print_lines(lines)
    edited = Counter(row.sources for row in rows if row.sources)
    told = [
        f"{count} of {len(suite.runs)} runs finished with different code. Changed since then: {listed(sources)}. Repeat a run with --again NAME."
        for sources, count in edited.items()
    ]
    problems = [problem for row in rows for problem in row.problems]
    refused = paragraphs(suite, {row.name: row.refused for row in rows if row.refused})
    warned = paragraphs(suite, warnings(runs[row.name] for row in rows if not row.is_finished))
    for problem in dict.fromkeys([*problems, *refused, *warned, *told]):
        console.print(f"\n{problem}")


def _row(run: Run[Any], chosen: Collection[str], job: JobState | None, check: bool) -> _Row:
    """Return what is said of a run: how far it has come, the state of its job on a cluster, and why it cannot run."""
    row = _row_of_folder(run)
    tried = check and not row.is_finished
    row.refused = (refusal(run, chosen) if tried else weights_problem(run, finished=True)) or row.refused
    if job is not None and not row.is_finished:
        kept = row.state if row.state.startswith((RunState.RESUMABLE, RunState.STALE)) else ""
        row.state = "; ".join(filter(None, (job.text, kept)))
        row.problems += [job.paragraph] if job.paragraph else []
    return row


def _row_of_folder(run: Run[Any]) -> _Row:
    """Return how far a run has come, according to its folder."""
    try:
        status, holder = run.status(), held_by(run)
        row = _Row(run.name, f"running, by {holder}" if holder else status.short, folder=str(status.folder))
        row.is_finished, row.sources, row.problems = status.state is RunState.FINISHED, status.sources, [*status.damage]
        try:
            row.result = run.result()
        except UserError as error:  # its record is damaged
            row.problems.append(str(error))
        if (holder or status.state is RunState.RESUMABLE) and (left := departed(run)):
            row.problems.append(f"{run.name}: {left}.")
        return row
    except NotKeptError as error:
        return _Row(run.name, CANNOT, refused=str(error))
    except NotRun as reason:
        return _Row(run.name, "not run", problems=[str(reason)])
    except UserError as error:
        if because := unknown_because(run):
            return _Row(run.name, RunState.UNKNOWN, folder=because, refused=str(error))
        if waits(run):
            return _Row(run.name, RunState.MISSING, f"needs {run.planned.needs}")
        return _Row(run.name, RunState.MISSING, refused=str(error))


def _print_lines(lines: Sequence[tuple[str, str, str, str]]) -> None:
    widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    narrow = console.is_terminal and sum(widths) - 2 > console.width
    for line in lines:
        if narrow:
            console.print("\n    ".join(part for part in (f"{line[0]}  {line[1]}", *line[2:]) if part))
        else:
            console.print("".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip())
