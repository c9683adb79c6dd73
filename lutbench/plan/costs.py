"""What the runs of a suite will cost: images, time and compute of every group of seeds. Nothing is run or written."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from lutbench.data.survey import Survey
from lutbench.errors import UserError
from lutbench.plan.compute import Cost
from lutbench.progress import tracked
from lutbench.recipes.base import Samples
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.record import Record, read_record, record_path
from lutbench.run import Run, RunState, open_run
from lutbench.workspace import Workspace

GIVEN, MEASURED, COUNTED, NO_RATE, NO_COUNT = "given", "measured", "FLOP", "no rate", "size unknown"
"""Where the time of a run comes from, or why there is none."""


@dataclass(frozen=True)
class Rates:
    """What is known of speed beside the records."""

    given: Mapping[str, float] = field(default_factory=dict)
    """Images/s of all GPUs of a run together, by name of the run."""
    flops: float | None = None
    """FLOP/s that one GPU keeps up; for runs that have no images/s."""
    gpus: int = 1
    """GPUs that a run is spread over. A record's rate is divided by its own GPUs, and multiplied by these."""


@dataclass(frozen=True)
class RunCost:
    """What a run will cost that has not finished."""

    run: Run[Any]
    cost: Cost
    samples: Samples | None
    """None where the size of its dataset is not known."""
    rate: float | None = None
    """Images/s; None if none was given or measured."""
    hardware: str = ""
    """The machine that the rate was measured on; empty if it was given."""
    flops: float | None = None
    """FLOP/s, by which its time is told where there is no rate."""

    @property
    def images(self) -> int:
        """Images that go through the network; 0 where they are not known."""
        return self.samples.all if self.samples else 0

    @property
    def flop(self) -> float:
        """Compute of those images."""
        train, evaluate = self.samples or (0, 0)
        return self.cost.train * train + self.cost.evaluate * evaluate

    @property
    def origin(self) -> str:
        """Where the time comes from, or why there is none."""
        if self.samples is None:
            return NO_COUNT
        if self.rate is not None:
            return MEASURED if self.hardware else GIVEN
        return NO_RATE if self.flops is None else COUNTED

    @property
    def seconds(self) -> float | None:
        """Its time; None where there is none."""
        if self.samples is None:
            return None
        if self.rate is not None:
            return self.images / self.rate
        return None if self.flops is None else self.flop / self.flops


@dataclass(frozen=True)
class Costs:
    """What some runs will cost together: the seeds of a task with one method, a stage, or a suite."""

    runs: int
    to_run: tuple[RunCost, ...]
    """The runs that have not finished."""
    gpus: int = 1
    """GPUs that each run is spread over."""
    stage: str = ""
    task: str = ""
    method: str = ""
    """Empty for pre-training, and where there are several."""

    @property
    def done(self) -> int:
        """Runs that have finished: they cost nothing more."""
        return self.runs - len(self.to_run)

    @property
    def images(self) -> int:
        """Images of the runs whose datasets have a known size."""
        return sum(one.images for one in self.to_run)

    @property
    def flop(self) -> float:
        """Compute of the same runs."""
        return sum(one.flop for one in self.to_run)

    @property
    def timed(self) -> list[RunCost]:
        """Runs whose time is known."""
        return [one for one in self.to_run if one.seconds is not None]

    @property
    def seconds(self) -> float:
        """Time of those runs, one after another."""
        return sum(one.seconds or 0 for one in self.to_run)

    @property
    def gpu_hours(self) -> float:
        """Time of those runs on so many GPUs at once."""
        return self.seconds / 3600 * self.gpus

    @property
    def rate(self) -> float | None:
        """Images/s over the runs that have a rate."""
        rated = [one.rate for one in self.to_run if one.rate is not None]
        return len(rated) / sum(1 / rate for rate in rated) if rated else None

    def count(self, origin: str) -> int:
        """Return how many runs have their time, or lack it, for this reason."""
        return sum(one.origin == origin for one in self.to_run)


def together(groups: Iterable[Costs], gpus: int, stage: str = "") -> Costs:
    """Return the sum of the groups of a stage, or of all."""
    groups = [group for group in groups if stage in ("", group.stage)]
    return Costs(
        sum(group.runs for group in groups), tuple(one for group in groups for one in group.to_run), gpus, stage
    )


def costs_of(suite: LoadedSuite, workspace: Workspace, surveys: Mapping[str, Survey], rates: Rates) -> list[Costs]:
    """Return what every group of seeds will cost; ``surveys`` are of the runs' datasets, by name of the run.

    Raises:
        UserError: if an encoder cannot be built, or a record is damaged.
    """
    grouped: dict[tuple[str, str, str], list[PlannedRun]] = {}
    for planned in suite.runs:
        grouped.setdefault((planned.stage, planned.task, planned.method), []).append(planned)
    groups = []
    for (stage, task, method), seeds in tracked(grouped.items(), len(grouped), "counting"):
        records = {planned.name: record for planned in seeds if (record := _record(planned, workspace)) is not None}
        runs = [open_run(suite, planned, workspace) for planned in seeds]
        costs = tuple(
            _cost(run, surveys, rates, records.get(run.name) or next(iter(records.values()), None))
            for run in runs
            if not is_finished(run, surveys)
        )
        groups.append(Costs(len(runs), costs, rates.gpus, stage, task, method))
    return groups


def read_rates(suite: LoadedSuite, given: Sequence[str]) -> dict[str, float]:
    """Return ``NAME=IMAGES_PER_SECOND`` of the command line as the rate of every run that NAME matches; a later one wins.

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


def is_finished(run: Run[Any], surveys: Mapping[str, Survey]) -> bool:
    """Return whether a run of this recipe, on the data that is present, has finished.

    Without its data, or without the run that it needs, a run has no identity: it is to be run.
    """
    one: Run[Any] | None = run
    while one is not None:
        if any(split in surveys[one.name].problems for split in one.recipe.splits):
            return False  # and to open it could be to make it
        one = one.needs
    try:
        return run.status().state is RunState.FINISHED
    except UserError:
        return False


def _cost(run: Run[Any], surveys: Mapping[str, Survey], rates: Rates, record: Record | None) -> RunCost:
    kind = run.planned.kind
    trained = run.needs if run.needs is not None and kind.starts_from == "classifier" else run
    count = getattr(kind.module, "cost", None)
    cost = Cost() if count is None else count(run, surveys[trained.name].classes)
    rate, hardware = rates.given.get(run.name), ""
    if rate is None and record is not None:
        assert record.images_per_second is not None
        each = record.images_per_second / max(1, len(record.hardware.gpus))  # processes on a CPU share it
        rate, hardware = each * rates.gpus, str(record.hardware)
    try:
        samples = run.recipe.samples(surveys[run.name].images)
    except KeyError:  # the size of a split is not known
        samples = None
    return RunCost(run, cost, samples, rate, hardware, rates.flops and rates.flops * rates.gpus)


def _record(planned: PlannedRun, workspace: Workspace) -> Record | None:
    """Return the record of a run of this name, whatever its recipe, if it has a rate."""
    path = record_path(workspace.results, planned.suite, planned.name)
    record = read_record(path) if path.is_file() else None
    return record if record is not None and record.images_per_second else None
