"""Which runs become one SLURM job, or one array of jobs, and after which other jobs these start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lutbench.recipes.cluster import ClusterRecipe
from lutbench.run import Run


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

    @property
    def resources(self) -> str:
        """What it asks of the cluster, in a few words."""
        recipe = self.recipe
        gpus = [f"{recipe.gpus} GPU{'s' * (recipe.gpus > 1)}"] if recipe.gpus else []
        nodes = "1 node" if recipe.nodes == 1 else f"{recipe.nodes} nodes"
        parts = [*gpus, f"{recipe.cpus} core{'s' * (recipe.cpus > 1)}"]
        time = f"{recipe.time} minutes" if recipe.time.strip().isdigit() else recipe.time
        return f"{nodes} with {' and '.join(parts)}, for {time}{f', in partition {recipe.partition}' if recipe.partition else ''}"

    def title(self, suite: str) -> str:
        """Return its name in SLURM: the suite and the common parts of its runs' names."""
        names = [run.name.split("/") for run in self.runs]  # of one stage and task, so of as many parts
        common = [part for part, *others in zip(*names, strict=True) if all(part == other for other in others)]
        return "/".join([suite, *common])


def group(runs: Sequence[Run[Any]], recipes: Mapping[str, ClusterRecipe], active: Mapping[str, str]) -> list[Job]:
    """Return the jobs of runs, each after the one it depends on.

    ``recipes`` has the resources of each run, and ``active`` the jobs that were submitted before, by the name of the run.

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
        key = run.planned.stage, run.planned.task, row, recipes[run.name].model_dump_json(), before
        together.setdefault(key, []).append(run)
        first_key[run.name] = key
    jobs: list[Job] = []
    for alike in together.values():
        needs = alike[0].needs.name if alike[0].needs else ""
        recipe = recipes[alike[0].name]
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
