"""``lutbench submit``: every unfinished run of a suite becomes a SLURM job, after the job it depends on."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from lutbench.cluster.job import PerformRun
from lutbench.cluster.jobs import Submitted, job_folder, key_of, now, read_submitted, write_submitted
from lutbench.cluster.slurm import Listed, listed
from lutbench.errors import NotRun, UserError, unknown
from lutbench.errors import listed as list_of
from lutbench.locks import held_by
from lutbench.progress import console
from lutbench.recipes.cluster import ClusterRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.recipes.suite import LoadedSuite, PlannedRun, name_matches
from lutbench.refusals import check_run, paragraphs
from lutbench.run import Run, open_run
from lutbench.run_status import RunState
from lutbench.workspace import Workspace


@dataclass
class Job:
    """Runs that are submitted together, as one job or an array of jobs, with their resources and dependencies."""

    runs: list[Run[Any]]
    recipe: ClusterRecipe
    needs: "Job | None" = None
    """The job, among those submitted now, that they depend on: each on the run at the same index there, or all on ``place``."""
    place: int | None = None
    waits_for: str = ""
    """A job that was submitted before, on which all of them depend."""
    ids: list[str] = field(default_factory=list)
    """SLURM's job numbers, one per run."""

    @property
    def dependency(self) -> str:
        """The dependency for sbatch; empty if there is none."""
        if self.waits_for:
            return f"afterok:{self.waits_for}"
        if self.needs is None:
            return ""
        if self.place is not None:
            return f"afterok:{self.needs.ids[self.place]}"
        return f"aftercorr:{self.needs.ids[0].partition('_')[0]}"  # afterok, for each the one at its place

    def title(self, suite: str) -> str:
        """Return its name in SLURM: the suite and the common parts of its runs' names."""
        names = [run.name.split("/") for run in self.runs]  # of one stage and task, so of as many parts
        common = [part for part, *others in zip(*names, strict=True) if all(part == other for other in others)]
        return "/".join([suite, *common])


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
            _submit(job, suite, workspace, overrides, folder)
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
    submission.jobs.extend(
        group(to_submit, {name: one.job for name, one in active.items()}, partial(recipe_for, suite, changes=changes))
    )
    return submission


def recipe_for(suite: LoadedSuite, run: PlannedRun, changes: Mapping[str, Any]) -> ClusterRecipe:
    """Return the resources of a run's job: those of [cluster], overridden by each of its matching tables, then by ``changes``."""
    table = suite.config.cluster
    settings = table.model_dump(exclude_unset=True, exclude={"runs"})
    for pattern, own in table.runs.items():
        if name_matches(run.name, pattern):
            settings |= own.model_dump(exclude_unset=True)
    recipe = read_recipe(ClusterRecipe, settings | dict(changes), "cluster")
    cores = recipe.processes_per_node * (1 + run.recipe.workers)
    return recipe.model_copy(update={"cpus": recipe.cpus or cores})


def group(runs: Sequence[Run[Any]], active: Mapping[str, str], recipe_of: Any) -> list[Job]:
    """Return the jobs of runs, each after the one it depends on; ``active`` has the jobs that were submitted before, by run.

    Runs of one task with the same resources become one array if they depend on nothing, on one job, or each on the run at its index in
    one array; else one array for each job that they depend on.
    """
    together: dict[Any, list[Run[Any]]] = {}
    places: dict[str, tuple[Job, int]] = {}
    first_key: dict[str, Any] = {}
    for run in runs:
        needs = run.needs.name if run.needs else ""
        before = first_key.get(needs) or active.get(needs)
        row = run.planned.method if needs in first_key else ""  # the seeds of a method, as those of its pre-training
        key = run.planned.stage, run.planned.task, row, recipe_of(run.planned).model_dump_json(), before
        together.setdefault(key, []).append(run)
        first_key[run.name] = key
    jobs: list[Job] = []
    for alike in together.values():
        needs = alike[0].needs.name if alike[0].needs else ""
        recipe = recipe_of(alike[0].planned)
        if needs not in places:
            made = [Job(alike, recipe, waits_for=active.get(needs, ""))]
        else:
            made = _after(alike, recipe, [places[run.needs.name] for run in alike if run.needs])
        for job in made:
            places |= {run.name: (job, index) for index, run in enumerate(job.runs)}
        jobs += made
    return jobs


def _after(alike: Sequence[Run[Any]], recipe: ClusterRecipe, before: Sequence[tuple[Job, int]]) -> list[Job]:
    """Return the jobs of runs that start each from the one at a place of a job that is submitted now."""
    first = before[0][0]
    each = [index for job, index in before if job is first]
    if len(first.runs) > 1 and each == list(range(len(first.runs))) and len(each) == len(alike):
        return [Job(list(alike), recipe, needs=first)]
    apart: dict[tuple[int, int], Job] = {}
    for run, (job, index) in zip(alike, before, strict=True):
        apart.setdefault((id(job), index), Job([], recipe, needs=job, place=index)).runs.append(run)
    return list(apart.values())


def executor(job: Job, suite: LoadedSuite, folder: Path, kind: type[SlurmExecutor] = SlurmExecutor) -> SlurmExecutor:
    """Return submitit's executor for a job.

    Raises:
        UserError: if there is no SLURM here.
    """
    recipe, logs = job.recipe, folder.absolute() / "logs"
    try:
        made = kind(logs, max_num_timeout=recipe.requeues)
    except RuntimeError as error:
        raise UserError(
            f"SLURM not found: {error}. Submit from a node of the cluster, or show the jobs with --dry-run."
        ) from error
    asked = {
        **{name: value for name in ("partition", "account", "qos", "constraint") if (value := getattr(recipe, name))},
        **(
            {"gpus_per_node": f"{recipe.gpu_type}:{recipe.gpus}" if recipe.gpu_type else recipe.gpus}
            if recipe.gpus
            else {}
        ),
        **({"mem": f"{round(1024 * recipe.memory)}M"} if recipe.memory else {}),
        **({"dependency": job.dependency} if job.dependency else {}),
        **({"setup": recipe.setup} if recipe.setup else {}),
    }
    # srun of SLURM 22.05 and later does not take the cores from sbatch; one node that fails ends the others after ten minutes
    srun_args = [f"--cpus-per-task={recipe.cpus}", *(["--wait=600"] if recipe.nodes > 1 else [])]
    made.update_parameters(
        job_name=job.title(suite.name),
        time=recipe.minutes,
        nodes=recipe.nodes,
        ntasks_per_node=1,
        cpus_per_task=recipe.cpus,
        array_parallelism=recipe.parallel,
        signal_delay_s=recipe.grace,
        srun_args=srun_args,
        additional_parameters={
            "requeue": True,
            "kill-on-invalid-dep": "yes",  # what can no longer be done does not stay in the queue
            **recipe.options,
        },
        **asked,
    )
    return made


class _Drafts(SlurmExecutor):
    """Writes the scripts of jobs on machines without SLURM."""

    @classmethod
    def affinity(cls) -> int:
        """Return 1: this executor can be used."""
        return 1


def sbatch_text(job: Job, suite: LoadedSuite, folder: Path) -> str:
    """Return the sbatch script of a job."""
    drafted = executor(job, suite, folder, _Drafts)
    if len(job.runs) > 1:
        drafted.parameters["map_count"] = len(job.runs)
    return drafted._make_submission_file_text(drafted._submitit_command_str, "")


def _submit(job: Job, suite: LoadedSuite, workspace: Workspace, overrides: Sequence[str], folder: Path) -> None:
    """Submit a job, and save the job number of each of its runs."""
    perform = [_perform(run, job, suite, workspace, overrides, folder) for run in job.runs]
    to_be_made = executor(job, suite, folder)
    try:
        made = to_be_made.submit_array(perform) if len(perform) > 1 else [to_be_made.submit(perform[0])]
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        told = [line for line in str(error).splitlines() if "sbatch" in line] or [str(error)]
        raise UserError(
            f"{job.title(suite.name)}: SLURM refused the job: {told[-1].strip()}. It requested {_asked(job.recipe)}. Change [cluster] in "
            "the suite file, or give --partition, --gpus, --cpus, --nodes or --time, and submit again. Jobs already submitted are kept."
        ) from error
    job.ids = [one.job_id for one in made]
    for one, run, what in zip(made, job.runs, perform, strict=True):
        after = run.needs.name if run.needs and job.dependency else ""
        paths = {"out": str(one.paths.stdout), "err": str(one.paths.stderr)}
        write_submitted(folder, Submitted(run=run.name, key=what.key, job=one.job_id, after=after, when=now(), **paths))


def _perform(
    run: Run[Any], job: Job, suite: LoadedSuite, workspace: Workspace, overrides: Sequence[str], folder: Path
) -> PerformRun:
    """Return what the job of a run does; all paths are absolute, because a job may start in any folder."""
    name = suite.given.split(" --set ")[0]
    folders = {"runs": workspace.runs, "results": workspace.results}
    return PerformRun(
        suite=str(Path(name).expanduser().absolute()) if name.endswith(".toml") else name,
        run=run.name,
        key=key_of(suite, run.planned),
        overrides=tuple(overrides),
        data_root=job.recipe.data_root or str(workspace.data.absolute()),
        options=tuple(f"--{option}={path.absolute()}" for option, path in folders.items()),
        results=str(workspace.results.absolute()),
        folder=str(folder.absolute()),
        processes=job.recipe.processes_per_node,
        requeues=job.recipe.requeues,
    )


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
        if not any(name_matches(run.name, pattern) for run in suite.runs):
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
    return f"{number}: {names}; {_asked(job.recipe)}{f'; {job.dependency}' if job.dependency else ''}"


def _asked(recipe: ClusterRecipe) -> str:
    """Return the resources of a job in a few words."""
    gpus = [f"{recipe.gpus} GPU{'s' * (recipe.gpus > 1)}"] if recipe.gpus else []
    nodes = "1 node" if recipe.nodes == 1 else f"{recipe.nodes} nodes"
    parts = [*gpus, f"{recipe.cpus} core{'s' * (recipe.cpus > 1)}"]
    time = f"{recipe.time} minutes" if recipe.time.strip().isdigit() else recipe.time
    return f"{nodes} with {' and '.join(parts)}, for {time}{f', in partition {recipe.partition}' if recipe.partition else ''}"


def _require_done(suite: LoadedSuite, submission: Submission, tense: str) -> None:
    """Raise UserError with the reasons if some runs could not be submitted."""
    if submission.refused:
        many = len(submission.refused)
        head = f"{many} run{'s' * (many > 1)} cannot run, and {tense} not submitted."
        raise UserError("\n".join([head, *paragraphs(suite, submission.refused)]))
