"""``lutbench submit``: every unfinished run of a suite becomes a SLURM job, after the job it depends on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from filelock import FileLock

from lutbench.cluster.job_arrays import Job, group
from lutbench.cluster.sbatch import sbatch_text, submit_job
from lutbench.cluster.slurm import Listed, listed
from lutbench.cluster.submissions import job_folder, read_submitted
from lutbench.errors import NotRun, UserError, unknown
from lutbench.errors import listed as list_of
from lutbench.locks import held_by
from lutbench.progress import console
from lutbench.recipes.cluster import ClusterRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.recipes.suite import LoadedSuite, PlannedRun, is_selected
from lutbench.refusals import check_run, paragraphs
from lutbench.run import Run, open_run
from lutbench.run_status import RunState
from lutbench.workspace import Workspace


@dataclass(frozen=True)
class Submission:
    """What happens to the chosen runs."""

    jobs: list[Job]
    left: dict[str, str]
    """Runs that are not submitted, and why: finished, queued or running already, or on an optional dataset that is absent."""
    refused: dict[str, str]
    """Runs that cannot run, with the reason."""


def submit_suite(
    suite: LoadedSuite,
    workspace: Workspace,
    stages: Sequence[str],
    only: Sequence[str],
    changes: Mapping[str, Any],
    overrides: Sequence[str],
    dry_run: bool,
) -> None:
    """Submit the chosen, unfinished runs to the cluster; with ``dry_run``, only show the jobs.

    ``changes`` are settings of :class:`lutbench.recipes.cluster.ClusterRecipe` that override those of the suite; ``overrides`` are the
    changes of the suite's own settings.

    Raises:
        UserError: if some runs cannot run, at the end; if there is no SLURM, or it refuses a job.
    """
    folder = job_folder(workspace.runs, suite.name)
    if dry_run:
        submission = plan_jobs(suite, workspace, stages, only, changes)
        _show(submission)
        for number, job in enumerate(submission.jobs, 1):
            name = f"JOB{number}"
            job.ids = [f"{name}_{index}" for index in range(len(job.runs))] if len(job.runs) > 1 else [name]
            console.print(f"\n{_sentence(job)}\n")
            console.print(sbatch_text(job, suite, folder))
        _require_done(suite, submission, "would be")
        return
    workspace.make()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # of two commands at once the second sees what the first has submitted
        submission = plan_jobs(suite, workspace, stages, only, changes)
        _show(submission)
        for job in submission.jobs:
            submit_job(job, suite, workspace, overrides, folder)
            console.print(_sentence(job))
    _require_done(suite, submission, "were")


def plan_jobs(
    suite: LoadedSuite, workspace: Workspace, stages: Sequence[str], only: Sequence[str], changes: Mapping[str, Any]
) -> Submission:
    """Return what happens to the chosen runs: runs of one task with the same resources and dependencies become one job array."""
    _require_tables_used(suite)
    chosen = suite.chosen(stages, only)
    submitted = read_submitted(job_folder(workspace.runs, suite.name), suite, suite.runs)
    known = listed({one.job for one in submitted.values()})
    active = {name: found for name, one in submitted.items() if (found := known.get(one.job)) and found.active}
    submission = Submission([], {}, {})
    to_submit: list[Run[Any]] = []
    for planned in chosen:
        run = open_run(suite, planned, workspace)
        if because := _left(run, active):
            submission.left[run.name] = because
            continue
        coming = {*active, *(other.name for other in to_submit)}
        try:
            if run.needs is not None and run.needs.name in submission.refused:
                raise UserError(f"{run.name} needs {run.needs.name}, which cannot run.")
            with console.capture():  # what there is to say of data, the run says
                check_run(replace(run, workspace=workspace.offline()), coming)
        except NotRun as reason:
            submission.left[run.name] = f"not run: {reason}"
        except UserError as error:
            submission.refused[run.name] = str(error)
        else:
            to_submit.append(run)
    recipes = {run.name: recipe_for(suite, run.planned, changes) for run in to_submit}
    submission.jobs.extend(group(to_submit, recipes, {name: one.job for name, one in active.items()}))
    return submission


def recipe_for(suite: LoadedSuite, run: PlannedRun, changes: Mapping[str, Any]) -> ClusterRecipe:
    """Return the resources of a run's job: those of [cluster], overridden by each of its matching tables, then by ``changes``."""
    table = suite.config.cluster
    settings = table.model_dump(exclude_unset=True, exclude={"runs"})
    for pattern, own in table.runs.items():
        if is_selected(run, pattern):
            settings |= own.model_dump(exclude_unset=True)
    recipe = read_recipe(ClusterRecipe, settings | dict(changes), "cluster")
    cores = recipe.processes_per_node * (1 + run.recipe.workers)
    return recipe.model_copy(update={"cpus": recipe.cpus or cores})


def _left(run: Run[Any], active: Mapping[str, Listed]) -> str:
    """Return why a run needs no job, or has one already; empty if it needs one."""
    try:
        if run.status().state is RunState.FINISHED:
            return "finished"
    except NotRun as reason:
        return f"not run: {reason}"
    except UserError:
        pass  # it waits for another, or the check says what is wrong
    if found := active.get(run.name):
        return f"{found.state.lower()} already, job {found.job}"
    holder = held_by(run)
    return f"running already, by {holder}" if holder else ""


def _require_tables_used(suite: LoadedSuite) -> None:
    """Raise UserError if a table below [cluster] matches no run."""
    for pattern in suite.config.cluster.runs:
        if not any(is_selected(run, pattern) for run in suite.runs):
            known = sorted(
                {part for run in suite.runs for part in run.name.split("/")} | set(ClusterRecipe.model_fields)
            )
            raise unknown(
                f"cluster.{pattern}: this is neither a setting nor the name of a run of suite {suite.name}",
                pattern,
                known,
            )


def _show(submission: Submission) -> None:
    """Print which runs are not submitted, and why."""
    finished = [name for name, because in submission.left.items() if because == "finished"]
    if finished:
        console.print(f"Finished: {list_of(finished)}.")
    for name, because in submission.left.items():
        if because != "finished":
            console.print(f"{name}: {because}")
    if not submission.jobs and not submission.refused:
        console.print("There is nothing to submit.")


def _sentence(job: Job) -> str:
    """Return a line with the number of a job, its runs and its dependency."""
    names = list_of((run.name for run in job.runs), 8)
    number = job.ids[0] if len(job.runs) == 1 else f"{job.ids[0].partition('_')[0]}, {len(job.runs)} jobs"
    return f"{number}: {names}; {job.resources}{f'; {job.dependency}' if job.dependency else ''}"


def _require_done(suite: LoadedSuite, submission: Submission, tense: str) -> None:
    """Raise UserError with the reasons if some runs could not be submitted."""
    if submission.refused:
        many = len(submission.refused)
        head = f"{many} run{'s' * (many > 1)} cannot run, and {tense} not submitted."
        raise UserError("\n".join([head, *paragraphs(suite, submission.refused)]))
