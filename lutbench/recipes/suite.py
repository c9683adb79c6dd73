"""A suite file: the data sets, pre-training runs, methods and tasks of one experiment, and the runs they make.

One TOML file holds everything that a reader needs to know what is run::

    [data.NAME]        an image set                     [encoder.NAME]     an architecture
    [pretrain.NAME]    a pre-training run               [method.NAME]      an encoder's origin: a row of the tables
    [downstream.NAME]  a task: a column of the tables   [defaults.pretrain], [defaults.robustness]
    [shifted.NAME]     a shifted test set                   and [defaults.TASK-KIND]
    [robustness.NAME]  a task's classifiers on sets     [classifier.NAME]  a row of those that no run made
    [analysis.NAME]    what is measured inside encoders
    [sweep.NAME]       one of these with several values of a setting, see :mod:`lutbench.recipes.studies`
    [cluster]          what jobs on SLURM ask for, see :mod:`lutbench.recipes.cluster`

``data = "NAME"`` and ``encoder = "NAME"`` refer to those tables. Every task is run for every method (or those it
lists), for every seed; its classifiers are then measured on every robustness dataset. A method can also be what a run made
beside its encoder: the teacher of a pre-training (``teacher = true``), or the encoder of a fine-tuned classifier
(``finetuned = "TASK/METHOD"``); and with ``at`` a task is run for what a pre-training had come to on the way. Folders and files are named by the NAMEs.

``extends = "small"`` takes everything of another suite and adds or changes tables, see :mod:`lutbench.recipes.suite_files`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lutbench.errors import unknown
from lutbench.kinds import STAGES, Kind
from lutbench.recipes.base import SEED_BOUND, EncoderRecipe, Name, PreprocessingRecipe, Recipe, RunRecipe
from lutbench.recipes.cluster import ClusterTable
from lutbench.recipes.decided import Decided
from lutbench.recipes.equal_compute import Budget
from lutbench.recipes.robustness import ClassifierTable, RobustnessDatasetRecipe, RobustnessTable
from lutbench.recipes.shares import At

UNTRAINED = "untrained"
"""What the names of the rows begin with that an analysis adds: encoders of random weights."""


ORIGINS = ("pretrain", "timm", "checkpoint", "scratch", "finetuned")
"""The settings of a method that say where its encoder comes from."""


class MethodRecipe(PreprocessingRecipe):
    """A row of the tables: where its encoder comes from, exactly one of :data:`ORIGINS`."""

    pretrain: str | None = None
    """A pre-training run of this suite."""
    teacher: bool = False
    """The encoder of its momentum teacher in place of the student's; only a run with the context loss has one."""
    finetuned: str | None = None
    """A fine-tuning of this suite, ``TASK/METHOD``: the encoder of its classifier, at the size of its input. A task has to name such
    a row in its ``methods`` to be run for it; an analysis without ``methods`` has it."""
    timm: bool = False
    """timm's own pre-trained weights for ``encoder``."""
    checkpoint: str | None = None
    """A file with an encoder's weights, or a folder of Hugging Face's form: see :mod:`lutbench.models.formats`."""
    part: str = ""
    """Which of the encoders in the checkpoint, such as ``teacher.backbone``, where it has several."""
    scratch: bool = False
    """No weights: trained from random initial ones on the task itself."""
    encoder: str | None = None
    """The architecture, one of [encoder.NAME]; a run brings its own."""
    pool: Literal["class", "mean"] | None = None
    """What tasks take of its tokens that say ``pool``, in place of what they say: ``mean`` for an encoder without class token."""
    label: str = ""
    """How tables name the method; its name in the suite file if empty."""
    published: str = ""
    """The method's name in lutbench/report/published.toml, for the published value beside the measured one."""
    like: str = ""
    """Of a new row in a suite that extends another: the row of that one beside which it stands in every table, see
    :mod:`lutbench.recipes.joining`; those that it is like if not given, and ``none`` for a row that is in no table of that suite."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [n for n in ORIGINS if getattr(self, n)]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(ORIGINS[:-1])} and {ORIGINS[-1]}, not {', '.join(given) or 'none'}"
            )
        if (self.encoder is None) != (given[0] in ("pretrain", "finetuned")):
            raise ValueError(
                "encoder names the architecture of timm, checkpoint and scratch; pretrain and finetuned bring their own"
            )
        if self.finetuned and self.finetuned.count("/") != 1:
            raise ValueError(f"finetuned = {self.finetuned!r}: expected TASK/METHOD, a fine-tuning and a method of it")
        if self.teacher and given != ["pretrain"]:
            raise ValueError("teacher = true goes with pretrain: of what else there is, nothing has a teacher")
        if self.part and given != ["checkpoint"]:
            raise ValueError(
                f"part = {self.part!r}: it names one of the encoders in a checkpoint, and goes with that alone"
            )
        if given[0] not in ("timm", "checkpoint") and self.preprocessing():
            seen = "seen as in that fine-tuning" if given == ["finetuned"] else "normalised as ImageNet's"
            raise ValueError(
                f"{', '.join(self.preprocessing())}: given for weights that were trained elsewhere, by timm or in a "
                f"checkpoint; with {given[0]} images are {seen}"
            )
        return self


class TaskTable(Recipe, extra="allow"):
    """A column of the tables. The other keys of its table are those of the task's recipe."""

    kind: str
    """A kind of its stage, such as finetune, linear, knn, logistic or segmentation."""
    title: str = ""
    """Heading of the column; the task's name in the suite file if empty."""
    methods: list[str] | None = None
    """The methods it is run for. If not given all, but a task not for those that a fine-tuning made: it may be that one."""
    draws: Annotated[int, Field(ge=1, le=1000)] = 1
    """Of a task with ``shots`` or a ``share`` of the training images, how many draws of them it is run for, the first ``draw = 0``;
    tables have their mean."""
    at: At | None = None
    """Shares of their pre-training, short of its end, at which it is run for methods as well that a run of this suite makes, as rows
    METHOD-at-SHARE, for a curve. The run has to keep these ``snapshots``; 1, the method itself, is there in any case."""
    published: str = ""
    """The task's name in lutbench/report/published.toml."""


class AnalysisTable(TaskTable):
    """``[analysis.NAME]``: what is measured inside the encoders of methods, and of an untrained one for each architecture."""

    kind: str = "analysis"
    """The only kind of its stage."""


class SweepTable(Recipe, extra="allow"):
    """``[sweep.NAME]``: a pre-training run or a task with several values of a setting. The other keys of its table are the
    axes, settings of that run or task with a list of values each; of several axes every combination is run."""

    of: str
    """``pretrain.NAME``, or the ``downstream.NAME`` or ``analysis.NAME`` of a task."""
    tasks: list[str] = Field(default_factory=list)
    """Of a pre-training run, the tasks that every encoder is measured by: ``NAME`` or ``STAGE.NAME``."""
    methods: list[str] | None = None
    """Of a task, the methods that it is run for; those of the task if not given."""
    teacher: bool = False
    """Of a pre-training run, measure the encoder of the momentum teacher in place of the student's."""
    title: str = ""
    """Heading of its section; what is varied, and by what, if empty."""
    label: str = ""
    """How tables name what is varied, before the value; as the suite names it if empty."""

    @model_validator(mode="before")
    @classmethod
    def _no_axis_has_the_name_of_a_key(cls, values: Any) -> Any:
        plain = [name for name in cls.model_fields if name not in ("tasks", "methods")]
        for name in plain:
            if isinstance(values, dict) and isinstance(values.get(name), list):
                raise ValueError(
                    f"{name} = {values[name]!r}: a list, as of a setting to vary, and {name} is one of the sweep's own keys "
                    f"({', '.join(cls.model_fields)}), each of which has one value. Vary another setting"
                )
        return values


class Suite(Recipe):
    """A suite file as read; recipes are checked when :func:`lutbench.recipes.loading.load_suite` expands it."""

    title: str
    about: str
    """What it shows, on what machine, how long it takes and what to expect."""
    kind: Literal["pipeline", "exploration", "evidence"]
    """``pipeline``: its tables say that they show that the pipeline works, and nothing about the method. ``exploration``: that nothing
    was decided before they were seen. ``evidence``: what was, which ``decided`` then has to say, and what came out."""
    decided: Decided | None = None
    """The question, and what will count as an answer, written before the first run."""
    seeds: list[Annotated[int, Field(ge=0, lt=SEED_BOUND)]] = Field([0], min_length=1)
    compare: list[list[str]] = Field(default_factory=list)
    """Pairs of methods to compare on the same images, as [first, second]; the untrained rows of an analysis are methods too."""
    extends: list[str] = Field(default_factory=list)
    """Names of the suites that it extends, the nearest first, with those that they extend; all of theirs is in here already, see
    :mod:`lutbench.recipes.suite_files`."""
    data: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    encoder: dict[Name, EncoderRecipe] = Field(default_factory=dict)
    method: dict[Name, MethodRecipe] = Field(default_factory=dict)
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of each kind of run that hold unless a table says otherwise."""
    pretrain: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    downstream: dict[Name, TaskTable] = Field(default_factory=dict)
    classifier: dict[Name, ClassifierTable] = Field(default_factory=dict)
    shifted: dict[Name, RobustnessDatasetRecipe] = Field(default_factory=dict)
    robustness: dict[Name, RobustnessTable] = Field(default_factory=dict)
    analysis: dict[Name, AnalysisTable] = Field(default_factory=dict)
    sweep: dict[Name, SweepTable] = Field(default_factory=dict)
    cluster: ClusterTable = Field(default_factory=ClusterTable)
    """What jobs ask for where the suite is run on a cluster; of no effect on any result."""


Row = tuple[str, str, str]
"""Stage, task and method: what the runs of all seeds have in common. Of a pre-training run the method is empty."""


@dataclass(frozen=True)
class StudyPoint:
    """One value of what a study varies, or one combination of values."""

    values: Mapping[str, Any]
    """By axis, as the suite file has them: ``{"context_weight": 0.05}``."""
    rows: Mapping[tuple[str, str], Row]
    """By column and series the row that was measured. A column is a task as the suite file names it; a series is the method
    that is varied."""


@dataclass(frozen=True)
class Study:
    """Rows of a suite that differ in a setting: a section of the tables of its own, with curves."""

    name: str
    """``sweep.weight``"""
    title: str
    axes: tuple[str, ...]
    points: tuple[StudyPoint, ...]
    base: int | None
    """The place of the point that differences are to; None if it is none of them."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a suite, before anything of it exists on disk."""

    suite: str
    kind: Kind
    task: str
    """The pre-training run's or the task's name in the suite file; ``TABLE/SET`` in robustness, ``TABLE/SET/linear-probe`` of a probe."""
    method: str
    """The row it belongs to, a method or a classifier; empty for pre-training runs."""
    seed: int
    recipe: RunRecipe = field(repr=False)
    needs: str | None = None
    """Name of the run whose encoder it starts from, or whose classifier it measures: a pre-training, a fine-tuning or a linear probe."""
    draw: int = 0
    """Of a task that is run for several draws of its training images, which of them."""
    smoke: str = ""
    """Of a smoke run what it is, ``toy``: its identity is that of no measurement; see :mod:`lutbench.smoke`."""

    @property
    def stage(self) -> str:
        """The stage that it belongs to."""
        return self.kind.stage

    @property
    def row(self) -> Row:
        """What it has in common with the runs of other seeds."""
        return self.stage, self.task, self.method

    @property
    def name(self) -> str:
        """The run's name, unique within the suite."""
        return run_name(self.stage, self.task, self.method, self.seed, self.draw)


def run_name(stage: str, task: str, method: str, seed: int, draw: int = 0) -> str:
    """Return the name of a run, such as ``pretrain/lut/seed0`` or, of another draw than the first, ``downstream/knn/lut/seed0-draw1``."""
    return "/".join(part for part in (stage, task, method, f"seed{seed}{f'-draw{draw}' if draw else ''}") if part)


def name_matches(name: str, pattern: str) -> bool:
    """Return whether ``pattern`` matches consecutive parts of a run's name, such as ``photographs-knn/lut``."""
    parts, length = name.split("/"), pattern.count("/") + 1
    return any(fnmatch("/".join(parts[i : i + length]), pattern) for i in range(len(parts) - length + 1))


@dataclass(frozen=True)
class LoadedSuite:
    """A checked suite and the runs it consists of, each after the one it needs."""

    name: str
    config: Suite
    runs: tuple[PlannedRun, ...]
    given: str
    """The suite as the command named it, by name or path, with what ``--set`` changed: for messages that say what to run."""
    joined: str = ""
    """A sentence on the rows of this file that stand in tables of what it extends, see :mod:`lutbench.recipes.joining`; empty if none does."""
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    """Of the pre-training runs whose epochs follow from another's compute, by their names in the suite file."""
    studies: tuple[Study, ...] = ()
    """Curves, and tables of differences, beside the main table."""
    study_rows: frozenset[Row] = frozenset()
    """The rows that are there for studies alone, and have no place in the tables of methods and in comparisons."""
    smoke: str = ""
    """Of a suite that is smoked its width, ``own`` or ``toy``, see :mod:`lutbench.smoke`."""

    @property
    def studied(self) -> set[str]:
        """The methods that are there for studies alone."""
        rows = {run.row for run in self.runs}
        return {method for *_, method in rows & self.study_rows} - {method for *_, method in rows - self.study_rows}

    def run(self, name: str) -> PlannedRun:
        """Return the run of this name."""
        return next(run for run in self.runs if run.name == name)

    def chosen(self, stages: Sequence[str] = (), only: Sequence[str] = (), option: str = "--only") -> list[PlannedRun]:
        """Return the runs of the stages whose name, or consecutive parts of it between slashes, match one of the patterns.

        A pattern such as ``sweep.weight`` stands for all runs of that study, those included that they start from. None, whatever the patterns, if the suite has no runs of these stages. ``option`` is what the patterns were given by,
        for messages.

        Raises:
            UserError: if there is no such stage, or a pattern matches nothing.
        """
        for stage in stages:
            if stage not in STAGES:
                raise unknown(f"--stage {stage}: there is no such stage", stage, STAGES)
        runs = [run for run in self.runs if not stages or run.stage in stages]
        studied = {study.name: self._runs_of(study) for study in self.studies}

        def matches(run: PlannedRun, pattern: str) -> bool:
            return run.name in studied.get(pattern, ()) or name_matches(run.name, pattern)

        for pattern in only:
            if runs and not any(matches(run, pattern) for run in runs):
                known = sorted({*studied, *(part for run in runs for part in run.name.split("/"))})
                of = f" in stage {' or '.join(stages)}" if stages else ""
                raise unknown(f"{option} {pattern}: no run of suite {self.name}{of} has that name", pattern, known)
        return [run for run in runs if not only or any(matches(run, pattern) for pattern in only)]

    def runs_of_studies(self) -> dict[str, str]:
        """Return by name of the run the first study of each run that is there for studies alone."""
        found = dict[str, str]()
        alone = {run.name for run in self.runs if run.row in self.study_rows}
        for study in self.studies:
            found = {**dict.fromkeys(self._runs_of(study) & alone, study.name), **found}
        return found

    def _runs_of(self, study: Study) -> set[str]:
        """Return the names of the runs of a study, and of those that they start from."""
        rows, names = {row for point in study.points for row in point.rows.values()}, set[str]()
        for run in reversed(self.runs):  # each before the one that it needs
            if run.row in rows or run.name in names:
                names |= {run.name, *([run.needs] if run.needs else [])}
        return names
