"""What the runs of a suite will cost: images, time and compute of every group of seeds. Nothing is run or written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from lutbench.errors import UserError
from lutbench.plan.compute import Cost
from lutbench.plan.datasets import Surveys, datasets_of
from lutbench.progress import tracked
from lutbench.recipes.base import DatasetRecipe, Samples
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.record import Record, read_record, record_path
from lutbench.run import Run, RunState, open_run
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
class RunCost:
    """Of one run that is still to be run."""

    planned: PlannedRun
    samples: Samples | None
    """None where the size of a set is not known."""
    flop: float | None
    """None with ``samples``."""
    rate: float | None
    """Images/s; None if there is none."""
    origin: str
    """Where the time comes from."""
    seconds: float | None
    demand: Cost


@dataclass(frozen=True)
class Group:
    """The seeds of a pre-training run, of a task or of a set with one method: a row of the plan."""

    stage: str
    task: str
    method: str
    """Empty for a pre-training run."""
    runs: int
    costs: tuple[RunCost, ...]
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
        samples = [cost.samples for cost in self.costs]
        return None if None in samples else sum(one.all for one in samples if one is not None)

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
    def to_run(self) -> list[RunCost]:
        """Of every run that has not finished."""
        return [cost for group in self.groups for cost in group.costs]

    @property
    def done(self) -> int:
        """Runs that have finished."""
        return sum(group.done for group in self.groups)

    @property
    def images(self) -> int:
        """Of the runs whose sets have a known size."""
        return sum(cost.samples.all for cost in self.to_run if cost.samples is not None)

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


def costs_of(suite: LoadedSuite, workspace: Workspace, surveys: Surveys, rates: Rates) -> Costs:
    """Return what every run of a suite will cost.

    Raises:
        UserError: if an encoder cannot be built, or a record is damaged.
    """
    grouped: dict[tuple[str, str, str], list[PlannedRun]] = {}
    for planned in suite.runs:
        grouped.setdefault((planned.stage, planned.task, planned.method), []).append(planned)
    for recipe in datasets_of(suite):  # listed now, so that what comes after shows no bar within another
        surveys.of(recipe)
    groups, measured = [], dict[str, int]()
    for (stage, task, method), runs in tracked(grouped.items(), len(grouped), "counting"):
        records = {planned.name: record for planned in runs if (record := _record(planned, workspace)) is not None}
        costs = []
        for planned in runs:
            run = open_run(suite, planned, workspace)
            if has_finished(run, surveys):
                continue
            record = records.get(planned.name) or next(iter(records.values()), None)
            cost = _cost(run, surveys, rates, record)
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


def has_finished(run: Run[Any], surveys: Surveys) -> bool:
    """Return whether a run of this recipe, on the data that is present, has finished.

    Without its data, or without the run that it needs, a run has no identity: it is to be run.
    """
    if any(surveys.of(recipe).problem for recipe in _datasets(run) if "train" in recipe.splits):
        return False
    try:
        return run.status().state is RunState.FINISHED
    except UserError:
        return False


def _datasets(run: Run[Any]) -> Iterator[DatasetRecipe]:
    """Yield the datasets of a run and of those that it needs."""
    yield run.recipe.dataset
    if run.needs is not None:
        yield from _datasets(run.needs)


def _cost(run: Run[Any], surveys: Surveys, rates: Rates, record: Record | None) -> RunCost:
    planned, recipe = run.planned, run.recipe
    measured = run.needs if planned.kind.starts_from == "classifier" else None
    classes = surveys.of((measured or run).recipe.dataset).classes
    count = getattr(planned.kind.module, "cost", None)
    demand: Cost = count(run, classes) if count else Cost()
    try:
        samples = recipe.samples(surveys.of(recipe.dataset).images)
    except KeyError:  # the size of a split is not known
        samples = None
    rate, origin = rates.given.get(planned.name), GIVEN
    if rate is None and record is not None:
        assert record.images_per_second is not None
        each = record.images_per_second / max(1, len(record.hardware.gpus))  # processes on a CPU share it
        rate, origin = each * rates.gpus, MEASURED
    if samples is None:
        return RunCost(planned, None, None, rate, NO_COUNT, None, demand)
    flop = demand.train * samples.train + demand.evaluate * samples.evaluate
    if rate is not None:
        return RunCost(planned, samples, flop, rate, origin, samples.all / rate, demand)
    if rates.flops is not None:
        return RunCost(planned, samples, flop, None, COUNTED, flop / (rates.flops * rates.gpus), demand)
    return RunCost(planned, samples, flop, None, NO_RATE, None, demand)


def _record(planned: PlannedRun, workspace: Workspace) -> Record | None:
    """The record of a run of this name, whatever its recipe, if it has a rate."""
    path = record_path(workspace.results, planned.suite, planned.name)
    record = read_record(path) if path.is_file() else None
    return record if record is not None and record.images_per_second else None
