"""Resources of SLURM jobs: ``[cluster]`` of a suite file, with exceptions for some of its runs.

::

    [cluster]                       for every job
    partition = "gpu"
    gpus = 1
    [cluster.pretrain]              for runs whose name, or consecutive parts of it, match (as for --only)
    gpus = 8
    [cluster."pretrain/lut-l"]
    nodes = 2

If several tables match a run, later ones override earlier ones. None of these settings affects results or is part of an identity.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from lutbench.recipes.base import Count, CountOrZero, Processes, Recipe, Runtime

TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


def minutes_of(time: str) -> int:
    """Return a SLURM time in minutes, rounded up: ``90`` is minutes, ``1:30:00`` hours:minutes:seconds.

    Raises:
        ValueError: if the format is wrong.
    """
    found = TIME.fullmatch(time.strip())
    if not found:
        raise ValueError(
            'expected a time in SLURM\'s format, such as "2-00:00:00" (two days), "12:00:00" or "90" (minutes)'
        )
    numbers = [int(number) for number in found["rest"].split(":")]
    if found["days"] is not None:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:  # minutes, minutes:seconds or hours:minutes:seconds
        hours, minutes, seconds = [0, *numbers, 0][:3] if len(numbers) < 3 else numbers
    total = math.ceil(int(found["days"] or 0) * 24 * 60 + hours * 60 + minutes + seconds / 60)
    if total < 1:
        raise ValueError("expected a time of at least one minute")
    return total


def check_time(text: str) -> str:
    """Return ``text`` if it is a time in SLURM's format; else raise ValueError."""
    minutes_of(text)
    return text


class ClusterRecipe(Recipe):
    """Resources and time limit of a SLURM job. Numbers are per node."""

    partition: Annotated[str, Runtime] = ""
    """Partition of the cluster. If empty, the cluster's default; likewise for ``account``, ``qos`` and ``constraint``."""
    account: Annotated[str, Runtime] = ""
    """Account to charge."""
    qos: Annotated[str, Runtime] = ""
    """Quality of service."""
    constraint: Annotated[str, Runtime] = ""
    """Required node features, such as ``h100`` or ``a100&nvlink``."""
    time: Annotated[str, Runtime, AfterValidator(check_time)] = "1-00:00:00"
    """Time limit of a job in SLURM's format. A run that needs longer is requeued and resumes (our choice: one day)."""
    nodes: Annotated[Count, Runtime] = 1
    """Nodes per run."""
    gpus: Annotated[Processes, Runtime] = 0
    """GPUs per node, each with one process."""
    gpu_type: Annotated[str, Runtime] = ""
    """Type of the GPUs, such as ``h100``, if the cluster has several named types."""
    processes: Annotated[Processes, Runtime] = 0
    """Processes per node; 0 means one per GPU, or one without GPUs."""
    cpus: Annotated[CountOrZero, Runtime] = 0
    """CPU cores per node; 0 means one for every process and one for each of its loader processes (``workers``)."""
    memory: Annotated[float, Runtime, Field(ge=0)] = 0
    """Memory per node in GB, as SLURM counts them; 0 means the cluster's default."""
    parallel: Annotated[Count, Runtime] = 256
    """Maximum number of runs of one job array at the same time."""
    grace: Annotated[int, Runtime, Field(ge=1, le=3600)] = 120
    """Seconds before the time limit at which a job gets the signal to save a checkpoint and stop (our choice: enough for several
    training steps and a checkpoint)."""
    requeues: Annotated[CountOrZero, Runtime] = 100
    """Maximum number of times that a stopped job is requeued, so that a job which never saves a checkpoint ends at some point (our
    choice)."""
    data_root: Annotated[str, Runtime] = ""
    """Data root for jobs, if different from that of the submitting command, such as ``$TMPDIR/data`` on a node's local disk, filled
    by ``setup``."""
    setup: Annotated[list[str], Runtime] = Field(default_factory=list)
    """Shell commands to run at the start of a job on its first node, such as ``module load cuda``."""
    options: Annotated[dict[str, str | int | bool], Runtime] = Field(default_factory=dict)
    """Other options of sbatch by name, such as ``exclude = "node7"``."""

    @property
    def processes_per_node(self) -> int:
        """Number of processes that torchrun starts per node."""
        return self.processes or self.gpus or 1

    @property
    def minutes(self) -> int:
        """Time limit in minutes."""
        return minutes_of(self.time)


class ClusterTable(ClusterRecipe):
    """``[cluster]``: resources of all jobs, with exceptions for some runs, selected by name as with ``--only``."""

    runs: Annotated[dict[str, ClusterRecipe], Runtime] = Field(default_factory=dict)
    """Settings for the runs whose name, or consecutive parts of it, match NAME: ``[cluster.NAME]``."""

    @model_validator(mode="before")
    @classmethod
    def _tables_of_runs(cls, values: Any) -> Any:
        """Treat every table below [cluster] that is not a setting as a table for runs."""
        if not isinstance(values, Mapping):
            return values
        tables = {
            key: value for key, value in values.items() if isinstance(value, Mapping) and key not in cls.model_fields
        }
        if not tables:
            return values
        return {
            **{key: value for key, value in values.items() if key not in tables},
            "runs": {**values.get("runs", {}), **tables},
        }
