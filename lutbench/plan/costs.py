"""The costs of the runs of a suite: images, time and compute of every group of seeds. Nothing is run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Literal

from lutbench.data.survey import Survey
from lutbench.errors import UserError
from lutbench.plan.cost import Cost, NotCountedError
from lutbench.plan.gpus import Gpu
from lutbench.plan.known import answer
from lutbench.plan.measured import Card
from lutbench.plan.rates import is_repeated, measured_alike
from lutbench.progress import tracked
from lutbench.recipes.base import RunRecipe
from lutbench.recipes.suite import LoadedSuite, PlannedRun, Row
from lutbench.record import Record, read_record, record_path
from lutbench.run import Run, open_run, row_named
from lutbench.run_status import RunState
from lutbench.workspace import Workspace

DONE, GIVEN, MEASURED, REPEATED = "done", "given", "measured", "another seed"
ON_CARD, COUNTED, ESTIMATED = "card", "FLOP", "data sheet"
NO_RATE, NO_COUNT, NO_FLOP, CANNOT = "no rate", "size unknown", "FLOP unknown", "cannot run"
"""Where the time of a run comes from, or why there is none."""


@dataclass(frozen=True)
class Rates:
    """Sources of speed besides the records."""

    given: Mapping[str, float] = field(default_factory=dict)
    """Images/s of all GPUs of a run together, by name of the run."""
    flops: float | None = None
    """Sustained FLOP/s of one GPU, for runs without images/s."""
    gpus: int = 1
    """GPUs per run. A record's rate is divided by its own number of GPUs, and multiplied by this one."""
    gpu: Gpu | None = None
    """The GPU to estimate for, for runs without any other rate. Rates measured on a CPU are then ignored."""
    card: Card | None = None
    """The card whose measured speeds are taken, before ``flops``, for runs that have no images/s."""
    named: bool = False
    """Whether ``card`` was given by name: rates measured on a CPU are then ignored."""


@dataclass(frozen=True)
class RunCost:
    """What a run will cost; zero if it has finished."""

    run: Run[Any]
    origin: str
    """Where its time comes from, or why there is none."""
    cost: Cost
    rate: float | None = None
    """Images/s; None if none was given or measured."""
    hardware: str = ""
    """The machine that the rate or the time was measured on; empty if it was given."""
    images: int = 0
    """Number of images that go through the network; 0 if it is not known."""
    flop: float = 0
    """FLOP of those images."""
    seconds: float | None = None
    """The time that it will take; None if nothing is known about its speed."""
    refused: str = ""
    """A paragraph that says why it cannot run, or why its FLOP cannot be counted; empty if neither is the case."""


@dataclass(frozen=True)
class Costs:
    """The costs of some runs together: of the seeds of a method in a task, of a stage, or of a suite."""

    runs: tuple[RunCost, ...]
    gpus: int = 1
    """GPUs per run."""

    def by(self, part: Literal["stage", "task", "method"]) -> "dict[str, Costs]":
        """Return the costs of each stage, task or method, by its name."""
        groups: dict[str, list[RunCost]] = {}
        for one in self.runs:
            groups.setdefault(getattr(one.run.planned, part), []).append(one)
        return {name: Costs(tuple(runs), self.gpus) for name, runs in groups.items()}

    @property
    def to_run(self) -> list[RunCost]:
        """The runs that have not finished."""
        return [one for one in self.runs if one.origin != DONE]

    @property
    def timed(self) -> list[RunCost]:
        """Runs whose time is known."""
        return [one for one in self.runs if one.seconds is not None]

    @property
    def images(self) -> int:
        """Images of the runs whose datasets have a known size."""
        return sum(one.images for one in self.runs)

    @property
    def flop(self) -> float:
        """FLOP of the runs whose datasets have a known size."""
        return sum(one.flop for one in self.runs)

    @property
    def seconds(self) -> float:
        """Sum of the times that are known."""
        return sum(one.seconds or 0 for one in self.runs)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of the runs whose time is known."""
        return self.seconds / 3600 * self.gpus

    @property
    def rate(self) -> float | None:
        """Images/s over all runs that have a rate: their harmonic mean."""
        rated = [one.rate for one in self.runs if one.rate is not None]
        return len(rated) / sum(1 / rate for rate in rated) if rated else None

    def count(self, origin: str) -> int:
        """Return how many runs have their time from this origin, or lack it for this reason."""
        return sum(one.origin == origin for one in self.runs)


def narrowed(suite: LoadedSuite, only: Sequence[str]) -> LoadedSuite:
    """Return the suite with only the runs that ``only`` chooses and the runs they depend on; all if it is empty.

    Raises:
        UserError: if a pattern matches nothing.
    """
    wanted = {run.name for run in suite.chosen(only=only)}
    for run in reversed(suite.runs):  # each comes before the run it depends on
        if run.name in wanted and run.needs:
            wanted.add(run.needs)
    runs = tuple(run for run in suite.runs if run.name in wanted)
    tasks = {run.task for run in runs if run.stage == "pretrain"}
    return replace(suite, runs=runs, budgets={name: budget for name, budget in suite.budgets.items() if name in tasks})


def costs_of(
    suite: LoadedSuite, workspace: Workspace, surveys: Mapping[str, Survey], rates: Rates, only: Sequence[str] = ()
) -> Costs:
    """Return the costs of the runs of a suite, or of those that ``only`` chooses; ``surveys`` describe their datasets, by name of the run.

    Raises:
        UserError: if a record is damaged.
    """
    of_run, of_row, unrated = dict[str, Record](), dict[Row, Record](), dict[Row, Record]()
    for planned in suite.runs:
        if (record := _record(planned, workspace)) is None:
            continue
        if record.images_per_second:
            of_run[planned.name] = record
            of_row.setdefault(planned.row, record)  # for the seeds that have none
        else:
            unrated.setdefault(planned.row, record)
    costs, alike = [], measured_alike(workspace.results)
    chosen = suite.chosen(only=only)
    for planned in tracked(chosen, len(chosen), "counting"):
        run = open_run(suite, planned, workspace)
        if is_finished(run, surveys):
            costs.append(RunCost(run, DONE, Cost()))
            continue
        record = of_run.get(planned.name) or of_row.get(planned.row) or alike(run)
        costs.append(_cost(run, surveys, rates, record, unrated.get(planned.row)))
    return Costs(tuple(costs), rates.gpus)


def read_rates(suite: LoadedSuite, given: Sequence[str]) -> dict[str, float]:
    """Return the rate of each run that a ``NAME=IMAGES_PER_SECOND`` of the command line matches, by name; later ones override earlier ones.

    Raises:
        UserError: if one has another form, or matches no run.
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
    """Return whether a run has finished, with this recipe and on the data that is present.

    Without its data, or without the run it depends on, a run has no identity, so it has not finished.
    """
    if not run.workspace.run_folders:
        return False  # nothing has been run; this spares hashing the files of weights
    one: Run[Any] | None = run
    while one is not None:
        if any(split in surveys[one.name].problems for split in one.recipe.splits):
            return False  # opening it could build it
        one = one.needs
    try:
        return run.status().state is RunState.FINISHED
    except UserError:
        return False


def _cost(
    run: Run[Any], surveys: Mapping[str, Survey], rates: Rates, record: Record | None, unrated: Record | None
) -> RunCost:
    """Return the cost of a run, from a ``record`` that has its speed, or from one of its row that has only its time."""
    try:
        with row_named(run):
            cost = _of_one_image(run, surveys[run.trained.name].classes)
    except UserError as error:
        return RunCost(run, NO_FLOP if isinstance(error, NotCountedError) else CANNOT, Cost(), refused=str(error))
    rate, hardware, survey = rates.given.get(run.name), "", surveys[run.name]
    of_any_machine = rates.gpu is None and not rates.named
    if rate is None and record is not None and (of_any_machine or record.hardware.gpus):
        assert record.images_per_second is not None
        each = record.images_per_second / max(1, len(record.hardware.gpus))  # processes on a CPU share it
        rate, hardware = each * rates.gpus, str(record.hardware)
    try:
        train, evaluate = run.recipe.samples(survey.images)
    except KeyError:  # the size of a split is not known, or its part cannot be read
        refused = "" if survey.known or survey.made or not _is_present(run) else survey.problems.get("train", "")
        return RunCost(run, CANNOT if refused else NO_COUNT, cost, rate, hardware, refused=refused)
    images, flop = train + evaluate, cost.train * train + cost.evaluate * evaluate
    origin, seconds = NO_RATE, None
    if rate is not None:
        origin, seconds = MEASURED if hardware else GIVEN, images / rate
    elif unrated is not None and of_any_machine and is_repeated(run, unrated, rates.gpus):
        origin, seconds, hardware = REPEATED, unrated.wall_seconds, str(unrated.hardware)
    elif flop and rates.card is not None and (flops := rates.card.flops(run)) is not None:
        origin, seconds, hardware = ON_CARD, flop / (flops * rates.gpus), str(rates.card)
        rate = images / seconds
    elif rates.flops is not None:
        origin, seconds = COUNTED, flop / (rates.flops * rates.gpus)
    elif rates.gpu is not None:
        origin, seconds = ESTIMATED, flop / (rates.gpu.flops * rates.gpus)
    return RunCost(run, origin, cost, rate, hardware, images, flop, seconds)


def _of_one_image(run: Run[Any], classes: int) -> Cost:
    """Return the cost of one image of a run with so many classes; the model is built only if its cost is not known yet.

    Raises:
        UserError: if the model cannot be built or counted.
    """
    kind = run.planned.kind

    def find() -> list[float]:
        count = getattr(kind.module, "cost", None)
        return list(Cost() if count is None else count(run, classes))

    asked = {"about": "cost", "classes": classes, "run": settings_of(run)}
    return Cost._make(answer(asked, recipes_of(run), find))


def settings_of(run: Run[Any]) -> list[Any]:
    """Return what determines the model of a run: the module of its kind, its settings, and those of the run it depends on."""
    return [run.planned.kind.module_name, *(recipe.affecting_results() for recipe in recipes_of(run))]


def recipes_of(run: Run[Any]) -> list[RunRecipe]:
    """Return the recipe of a run, and that of the run it depends on."""
    return [run.recipe, *([run.needs.recipe] if run.needs else [])]


def _is_present(run: Run[Any]) -> bool:
    """Return whether the training split that a run reads a part of is present."""
    try:
        run.workspace.open(run.recipe.dataset, "train")
    except UserError:
        return False
    return True


def _record(planned: PlannedRun, workspace: Workspace) -> Record | None:
    """Return the record of the run of this name, with any recipe."""
    path = record_path(workspace.results, planned.suite, planned.name)
    return read_record(path, planned.name) if path.is_file() else None
