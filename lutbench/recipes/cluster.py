"""What jobs on SLURM ask for: ``[cluster]`` of a suite file, and what differs for a part of its runs.

::

    [cluster]                       what every job asks for
    partition = "gpu"
    gpus = 1
    [cluster.pretrain]              and of the runs whose name, or consecutive parts of it, match: as for --only
    gpus = 8
    [cluster."pretrain/lut-l"]
    nodes = 2

Of several tables that match a run each goes over those above it. Nothing of it can change a result, or is part of an identity.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from lutbench.recipes.base import Count, CountOrZero, Processes, Recipe, Runtime

TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


def minutes_of(time: str) -> int:
    """Return the minutes that a time means to SLURM, rounded up; of one without days ``90`` is minutes and ``1:30:00`` hours.

    Raises:
        ValueError: if it is none.
    """
    found = TIME.fullmatch(time.strip())
    if not found:
        raise ValueError(
            'expected a time as SLURM reads it, such as "2-00:00:00" (two days), "12:00:00" or "90" (minutes)'
        )
    numbers = [int(number) for number in found["rest"].split(":")]
    if found["days"] is not None:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:  # minutes, minutes:seconds or hours:minutes:seconds
        hours, minutes, seconds = [0, *numbers, 0][:3] if len(numbers) < 3 else numbers
    total = math.ceil(int(found["days"] or 0) * 24 * 60 + hours * 60 + minutes + seconds / 60)
    if total < 1:
        raise ValueError("a job has at least a minute")
    return total


def check_time(text: str) -> str:
    """Return a time that SLURM reads; raises ValueError for any other text."""
    minutes_of(text)
    return text


class ClusterRecipe(Recipe):
    """What a job asks for, and how it ends. Counts are those of one node."""

    partition: Annotated[str, Runtime] = ""
    """Partition of the cluster; its default if empty, like the next three."""
    account: Annotated[str, Runtime] = ""
    qos: Annotated[str, Runtime] = ""
    constraint: Annotated[str, Runtime] = ""
    """Features that nodes must have, such as ``h100`` or ``a100&nvlink``."""
    time: Annotated[str, Runtime, AfterValidator(check_time)] = "1-00:00:00"
    """After how long a job is ended, to be queued again and to go on (our choice: a day)."""
    nodes: Annotated[Count, Runtime] = 1
    """Nodes of one run."""
    gpus: Annotated[Processes, Runtime] = 0
    """GPUs of a node, with a process on each."""
    gpu_type: Annotated[str, Runtime] = ""
    """Type of the GPUs where a cluster has several and names them so, such as ``h100``."""
    processes: Annotated[Processes, Runtime] = 0
    """Processes of a node; if 0 one for each GPU, or one."""
    cpus: Annotated[CountOrZero, Runtime] = 0
    """Cores of a node; if 0 one for every process and one for each of its loader processes (``workers``)."""
    memory: Annotated[float, Runtime, Field(ge=0)] = 0
    """GB of memory of a node, as SLURM counts them; the cluster's default if 0."""
    parallel: Annotated[Count, Runtime] = 256
    """How many runs of one array may go on at once."""
    grace: Annotated[int, Runtime, Field(ge=1, le=3600)] = 120
    """Seconds before the end of its time at which a job is told to save and stop: several steps of training and a checkpoint (our choice)."""
    requeues: Annotated[CountOrZero, Runtime] = 100
    """How often a job that was told to stop is queued again at most, so that one that saves nothing ends some time (our choice)."""
    data_root: Annotated[str, Runtime] = ""
    """Where jobs find the images, if not where the command does that submits them: such as ``$TMPDIR/data``, on the disk of a node, where
    ``setup`` has put them."""
    setup: Annotated[list[str], Runtime] = Field(default_factory=list)
    """Lines of shell before a job begins, on its first node, such as ``module load cuda``."""
    options: Annotated[dict[str, str | int | bool], Runtime] = Field(default_factory=dict)
    """Other options of sbatch by name, such as ``exclude = "node7"``."""

    @property
    def processes_per_node(self) -> int:
        """Processes that torchrun starts on a node."""
        return self.processes or self.gpus or 1

    @property
    def minutes(self) -> int:
        """Its time in minutes."""
        return minutes_of(self.time)


class ClusterTable(ClusterRecipe):
    """``[cluster]``: what jobs ask for, and for some of them, by a name as for ``--only``, what is different."""

    runs: Annotated[dict[str, ClusterRecipe], Runtime] = Field(default_factory=dict)
    """What is given for the runs whose name, or consecutive parts of it, match: ``[cluster.NAME]``."""

    @model_validator(mode="before")
    @classmethod
    def _tables_of_runs(cls, values: Any) -> Any:
        """Take the tables below [cluster] for those of runs, where they are no settings."""
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
