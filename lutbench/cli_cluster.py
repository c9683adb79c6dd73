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
        typer.Option(help=f"{', '.join(STAGES[:-1])} or {STAGES[-1]}; all stages if not given. May be repeated."),
    ] = None,
    only: Only = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Submit nothing; show the jobs and what sbatch would be given.")
    ] = False,
    partition: Annotated[str | None, typer.Option(help="Partition of the cluster.")] = None,
    account: Annotated[str | None, typer.Option(help="Account that the time is taken from.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Features that the nodes must have.")] = None,
    time: Annotated[
        str | None,
        typer.Option(help="After how long a job is ended, to be queued again and go on: 2-00:00:00, 12:00:00."),
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes of one run.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of a node, with a process on each.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes of a node, if not one for each GPU.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores of a node.")] = None,
    memory: Annotated[float | None, typer.Option(min=0, metavar="GB", help="Memory of a node.")] = None,
    overrides: Overrides = None,
    data_root: DataRoot = Path("data"),
    runs: RunsRoot = Path("runs"),
    results: ResultsRoot = Path("results"),
) -> None:
    """Put every run of a suite that is not finished on SLURM, after what it needs; what is queued or running stays what it is.

    What jobs ask for is said by [cluster] of the suite file; these options go over it for all runs that are chosen.
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
