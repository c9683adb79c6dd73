"""``lutbench submit``."""

from pathlib import Path
from typing import Annotated

import typer

from lutbench.cli_options import DataRoot, Only, Overrides, ResultsRoot, RunsRoot, SuiteName
from lutbench.kinds import STAGES


def submit(
    suite: SuiteName,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Submit only this stage: {', '.join(STAGES[:-1])} or {STAGES[-1]}. Default: all. May be repeated."
        ),
    ] = None,
    only: Only = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Submit nothing; show the jobs and the sbatch scripts.")
    ] = False,
    partition: Annotated[str | None, typer.Option(help="Partition of the cluster.")] = None,
    account: Annotated[str | None, typer.Option(help="Account to charge.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Required node features.")] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Time limit of a job, such as 2-00:00:00 or 12:00:00. Then it is queued again and resumes."),
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes per run.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs per node, one process on each.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes per node. Default: one per GPU.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPU cores per node.")] = None,
    memory: Annotated[float | None, typer.Option(min=0, metavar="GB", help="Memory per node.")] = None,
    overrides: Overrides = None,
    data_root: DataRoot = Path("data"),
    runs: RunsRoot = Path("runs"),
    results: ResultsRoot = Path("results"),
) -> None:
    """Submit the unfinished runs of a suite to SLURM, each after the runs it depends on. Queued and running jobs are left alone.

    The table "cluster" of the suite file sets the resources of the jobs. The options of this command override it.
    """
    from lutbench.recipes.loading import load_suite

    loaded = load_suite(suite, overrides or [], results, keep=True)
    from lutbench.cluster.submit import submit_suite
    from lutbench.workspace import Workspace

    asked = {
        **{"partition": partition, "account": account, "qos": qos, "constraint": constraint, "time": time},
        **{"nodes": nodes, "gpus": gpus, "processes": processes, "cpus": cpus, "memory": memory},
    }
    changes = {name: value for name, value in asked.items() if value is not None}
    submit_suite(
        loaded, Workspace(data_root, runs, results), stage or [], only or [], changes, overrides or [], dry_run
    )
