"""What the runs of a suite will cost: images, time and compute of every group of seeds. Nothing is run or written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite

from lutbench.errors import UserError
from lutbench.plan.compute import Demand, demand_of
from lutbench.plan.counts import Counts, Samples, samples_of
from lutbench.plan.sets import look_at_all
from lutbench.progress import tracked
from lutbench.recipes import ClassificationRecipe, FinetuneRecipe, PretrainRecipe, SegmentationRecipe
from lutbench.recipes.robustness import RobustnessRecipe
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.record import Record, read_record, record_path
from lutbench.run import RunState, open_run
from lutbench.workspace import Workspace

GIVEN, MEASURED, COUNTED, NO_RATE, NO_COUNT = "given", "measured", "FLOP", "no rate", "size unknown"
"""Where the time of a run comes from, or why there is none."""

HOUR = 3600


@dataclass(frozen=True)
class Rates:
    """What is known of speed beside the records."""

    given: Mapping[str, float] = field(default_factory=dict)
    """Images/s of all GPUs of a run together, by name of the run."""
    flops: float | None = None
    """FLOP/s that one GPU keeps up; for runs that have no images/s."""
    gpus: int = 1
    """That a run is spread over. A record's rate is divided by its own GPUs, and multiplied by these."""


@dataclass(frozen=True)
class Cost:
    """Of one run that is still to be run."""

    planned: PlannedRun
    looks: Samples | None
    """None where the size of a set is not known."""
    flop: float | None
    """None with ``looks``."""
    rate: float | None
    """Images/s; None if there is none."""
    origin: str
    """Where the time comes from."""
    seconds: float | None
    demand: Demand


@dataclass(frozen=True)
class Group:
    """The seeds of a pre-training run, of a task or of a set with one method: a row of the plan."""

    stage: str
    task: str
    method: str
    """Empty for a pre-training run."""
    runs: int
    costs: tuple[Cost, ...]
    """Of the runs that have not finished."""

    @property
    def name(self) -> str:
        """Task and method."""
        return "/".join(filter(None, (self.task, self.method)))

    @property
    def done(self) -> int:
        """Runs that have finished: they cost nothing more."""
        return self.runs - len(self.costs)

    @property
    def images(self) -> int | None:
        """To look at; None where the size of a set is not known."""
        looks = [cost.looks for cost in self.costs]
        return None if None in looks else sum(look.all for look in looks if look is not None)

    @property
    def flop(self) -> float | None:
        """To compute; None where the size of a set is not known."""
        return None if self.images is None else sum(cost.flop or 0 for cost in self.costs)

    @property
    def seconds(self) -> float | None:
        """Of the runs whose time can be told, one after another; None if there is none."""
        told = [cost.seconds for cost in self.costs if cost.seconds is not None]
        return sum(told) if told else None

    @property
    def rate(self) -> float | None:
        """Images/s over the runs that have a rate."""
        rated = [cost.rate for cost in self.costs if cost.rate is not None]
        return len(rated) / sum(1 / rate for rate in rated) if rated else None

    @property
    def lacks(self) -> str:
        """Why not every run has a time; empty if each has."""
        return next((cost.origin for cost in self.costs if cost.seconds is None), "")


@dataclass(frozen=True)
class Costs:
    """Of a whole suite."""

    groups: tuple[Group, ...]
    gpus: int
    measured: dict[str, int]
    """Hardware of the records whose rates are used, and of how many runs."""

    @property
    def to_run(self) -> list[Cost]:
        """Of every run that has not finished."""
        return [cost for group in self.groups for cost in group.costs]

    @property
    def done(self) -> int:
        """Runs that have finished."""
        return sum(group.done for group in self.groups)

    @property
    def images(self) -> int:
        """Of the runs whose sets have a known size."""
        return sum(cost.looks.all for cost in self.to_run if cost.looks is not None)

    @property
    def flop(self) -> float:
        """Of the same runs."""
        return sum(cost.flop or 0 for cost in self.to_run)

    @property
    def seconds(self) -> float:
        """Of the runs whose time can be told, one after another."""
        return sum(cost.seconds or 0 for cost in self.to_run)

    @property
    def gpu_hours(self) -> float:
        """The same on so many GPUs at once."""
        return self.seconds / HOUR * self.gpus

    def of_stages(self) -> dict[str, "Costs"]:
        """Each stage's part."""
        stages = dict.fromkeys(group.stage for group in self.groups)
        return {
            stage: replace(self, groups=tuple(group for group in self.groups if group.stage == stage))
            for stage in stages
        }


def costs_of(suite: LoadedSuite, workspace: Workspace, counts: Counts, rates: Rates) -> Costs:
    """What every run of a suite will cost.

    Raises:
        UserError: if an encoder cannot be built, or a record is damaged.
    """
    grouped: dict[tuple[str, str, str], list[PlannedRun]] = {}
    for planned in suite.runs:
        grouped.setdefault((planned.stage, planned.task, planned.method), []).append(planned)
    groups, measured = [], dict[str, int]()
    look_at_all(suite, counts)
    for (stage, task, method), runs in tracked(grouped.items(), len(grouped), "counting"):
        records = {planned.name: record for planned in runs if (record := _record(planned, workspace)) is not None}
        costs = []
        for planned in runs:
            if has_finished(suite, planned, workspace, counts):
                continue
            record = records.get(planned.name) or next(iter(records.values()), None)
            cost = _cost(suite, planned, counts, rates, record)
            if cost.origin == MEASURED and record is not None:
                measured[str(record.hardware)] = measured.get(str(record.hardware), 0) + 1
            costs.append(cost)
        groups.append(Group(stage, task, method, len(runs), tuple(costs)))
    return Costs(tuple(groups), rates.gpus, measured)


def read_rates(suite: LoadedSuite, given: Sequence[str]) -> dict[str, float]:
    """``NAME=IMAGES_PER_SECOND`` of the command line as the rate of every run that NAME matches; a later one wins.

    Raises:
        UserError: if one is not of this form, or matches no run.
    """
    rates: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            rate = float(number)
        except ValueError:
            rate = 0.0
        if not name or not isfinite(rate) or rate <= 0:
            raise UserError(f"--rate {text}: expected NAME=IMAGES_PER_SECOND, such as pretrain/lut=4100.")
        try:
            runs = suite.chosen(only=[name])
        except UserError as error:
            raise UserError(str(error).replace("--only", "--rate", 1)) from error
        rates |= dict.fromkeys((run.name for run in runs), rate)
    return rates


def has_finished(suite: LoadedSuite, planned: PlannedRun, workspace: Workspace, counts: Counts) -> bool:
    """Whether a run of this very recipe, on the data that is there, has finished.

    Without its data, or without the run that it needs, a run has no identity: it is to be run.
    """
    if any(not counts.is_here(recipe.data) for recipe in _chain(suite, planned)):
        return False
    try:
        return open_run(suite, planned, workspace).status().state is RunState.FINISHED
    except UserError:
        return False


def _chain(
    suite: LoadedSuite, planned: PlannedRun
) -> Iterator[PretrainRecipe | ClassificationRecipe | SegmentationRecipe]:
    """The recipes with data of a run and of those that it needs."""
    if not isinstance(planned.recipe, RobustnessRecipe):
        assert isinstance(planned.recipe, PretrainRecipe | ClassificationRecipe | SegmentationRecipe)
        yield planned.recipe
    if planned.needs is not None:
        yield from _chain(suite, next(run for run in suite.runs if run.name == planned.needs))


def _cost(suite: LoadedSuite, planned: PlannedRun, counts: Counts, rates: Rates, record: Record | None) -> Cost:
    recipe, measured = planned.recipe, None
    if isinstance(recipe, RobustnessRecipe):
        needed = next((run.recipe for run in suite.runs if run.name == planned.needs), None)
        measured = needed if isinstance(needed, FinetuneRecipe) else None
        classes = 0 if measured is None else counts.classes(measured.data)
    else:
        assert isinstance(recipe, PretrainRecipe | ClassificationRecipe | SegmentationRecipe)
        classes = counts.classes(recipe.data)
    demand, looks = demand_of(recipe, classes, measured), samples_of(recipe, counts)
    rate, origin = rates.given.get(planned.name), GIVEN
    if rate is None and record is not None:
        assert record.images_per_second is not None
        each = record.images_per_second / max(1, len(record.hardware.gpus))  # processes on a CPU share it
        rate, origin = each * rates.gpus, MEASURED
    if looks is None:
        return Cost(planned, None, None, rate, NO_COUNT, None, demand)
    flop = demand.train * looks.train + demand.evaluate * looks.evaluate
    if rate is not None:
        return Cost(planned, looks, flop, rate, origin, looks.all / rate, demand)
    if rates.flops is not None:
        return Cost(planned, looks, flop, None, COUNTED, flop / (rates.flops * rates.gpus), demand)
    return Cost(planned, looks, flop, None, NO_RATE, None, demand)


def _record(planned: PlannedRun, workspace: Workspace) -> Record | None:
    """The record of a run of this name, whatever its recipe, if it has a rate."""
    path = record_path(workspace.results, planned.suite, planned.name)
    record = read_record(path) if path.is_file() else None
    return record if record is not None and record.images_per_second else None
