"""How a job is given to SLURM: its resources, through submitit, and what it does when it starts."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from lutbench.cluster.job import PerformRun
from lutbench.cluster.job_arrays import Job
from lutbench.cluster.submissions import Submitted, key_of, now, write_submitted
from lutbench.errors import UserError
from lutbench.recipes.suite import LoadedSuite
from lutbench.run import Run
from lutbench.workspace import Workspace


def sbatch_text(job: Job, suite: LoadedSuite, folder: Path) -> str:
    """Return the sbatch script of a job."""
    drafted = _executor(job, suite, folder, _Drafts)
    if len(job.runs) > 1:
        drafted.parameters["map_count"] = len(job.runs)
    return drafted._make_submission_file_text(drafted._submitit_command_str, "")


def submit_job(job: Job, suite: LoadedSuite, workspace: Workspace, overrides: Sequence[str], folder: Path) -> None:
    """Submit a job, and save the job number of each of its runs."""
    perform = [perform_run(run, job, suite, workspace, overrides, folder) for run in job.runs]
    to_be_made = _executor(job, suite, folder)
    try:
        made = to_be_made.submit_array(perform) if len(perform) > 1 else [to_be_made.submit(perform[0])]
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        told = [line for line in str(error).splitlines() if "sbatch" in line] or [str(error)]
        raise UserError(
            f"{job.title(suite.name)}: SLURM refused the job: {told[-1].strip()}. It requested {job.resources}. Change [cluster] in "
            "the suite file, or give --partition, --gpus, --cpus, --nodes or --time, and submit again. Jobs already submitted are kept."
        ) from error
    job.ids = [one.job_id for one in made]
    for one, run, what in zip(made, job.runs, perform, strict=True):
        after = run.needs.name if run.needs and job.dependency else ""
        paths = {"out": str(one.paths.stdout), "err": str(one.paths.stderr)}
        write_submitted(folder, Submitted(run=run.name, key=what.key, job=one.job_id, after=after, when=now(), **paths))


def perform_run(
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


def _executor(job: Job, suite: LoadedSuite, folder: Path, kind: type[SlurmExecutor] = SlurmExecutor) -> SlurmExecutor:
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
        "partition": recipe.partition,
        "account": recipe.account,
        "qos": recipe.qos,
        "constraint": recipe.constraint,
        "gpus_per_node": f"{recipe.gpu_type}:{recipe.gpus}" if recipe.gpus and recipe.gpu_type else recipe.gpus,
        "mem": f"{round(1024 * recipe.memory)}M" if recipe.memory else "",
        "dependency": job.dependency,
        "setup": recipe.setup,
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
        **{name: value for name, value in asked.items() if value},
    )
    return made


class _Drafts(SlurmExecutor):
    """Writes the scripts of jobs on machines without SLURM."""

    @classmethod
    def affinity(cls) -> int:
        """Return 1: this executor can be used."""
        return 1
