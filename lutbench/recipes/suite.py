"""A suite file: the datasets, pre-training runs, methods and tasks of one experiment, and the runs they make.

One TOML file describes the whole experiment::

    [data.NAME]        an image dataset                 [encoder.NAME]     an architecture
    [pretrain.NAME]    a pre-training run               [method.NAME]      an encoder and its origin: a row of the tables
    [downstream.NAME]  a task: a column of the tables   [defaults.pretrain], [defaults.robustness]
    [shifted.NAME]     a shifted test set                   and [defaults.TASK-KIND]
    [robustness.NAME]  classifiers of tasks on test sets    [classifier.NAME]  a row for a classifier trained elsewhere
    [analysis.NAME]    measurements on attention and features of encoders
    [sweep.NAME]       a run or task with several values of a setting, see :mod:`lutbench.recipes.studies`
    [cluster]          resources of SLURM jobs, see :mod:`lutbench.recipes.cluster`

``data = "NAME"`` and ``encoder = "NAME"`` refer to those tables. Every task runs for every method (or for those it
lists) and every seed; its classifiers are then evaluated on every robustness dataset. A method can also be the teacher of a
pre-training run (``teacher = true``) or the encoder of a fine-tuned classifier (``finetuned = "TASK/METHOD"``). With ``at``, a task also
runs for snapshots during pre-training. Folders and files are named after the NAMEs.

``extends = "small"`` includes another suite and adds or changes tables, see :mod:`lutbench.recipes.suite_files`.
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
"""Prefix of the rows that an analysis adds: encoders with random weights."""


ORIGINS = ("pretrain", "timm", "checkpoint", "scratch", "finetuned")
"""The settings of a method that define where its encoder comes from."""


class MethodRecipe(PreprocessingRecipe):
    """A row of the tables: an encoder and where it comes from. Exactly one of pretrain, timm, checkpoint, scratch and finetuned
    is given.

    Source of the defaults: our choice.
    """

    pretrain: str | None = None
    """Name of a pre-training run of this suite."""
    teacher: bool = False
    """Use the momentum teacher's encoder instead of the student's. Only runs with the context loss have a teacher."""
    finetuned: str | None = None
    """A fine-tuning of this suite, as ``TASK/METHOD``: use the encoder of its classifier, at its input size. Tasks run for such a
    method only if they list it in ``methods``; an analysis without ``methods`` includes it."""
    timm: bool = False
    """Use timm's pre-trained weights for ``encoder``."""
    checkpoint: str | None = None
    """File with an encoder's weights, or a folder in Hugging Face's format, see :mod:`lutbench.models.formats`."""
    part: str = ""
    """Which encoder of the checkpoint to use, such as ``teacher.backbone``, if it holds several."""
    scratch: bool = False
    """Train the encoder from random initial weights on the task itself."""
    encoder: str | None = None
    """The architecture, one of [encoder.NAME]. Not for pretrain and finetuned, where the run defines it."""
    pool: Literal["class", "mean"] | None = None
    """Overrides the setting ``pool`` of tasks for this method, such as ``mean`` for an encoder without class token."""
    label: str = ""
    """Name of the method in tables. If empty, its name in the suite file."""
    published: str = ""
    """The method's name in lutbench/report/published.toml, to print published values beside the measured ones."""
    like: str = ""
    """For a new method of a suite that extends another: a method of that suite; the new one is added to the same tables, see
    :mod:`lutbench.recipes.joining`. By default it is added to the tables of similar methods; ``none`` adds it to no table."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [n for n in ORIGINS if getattr(self, n)]
        if len(given) != 1:
            raise ValueError(
                f"expected exactly one of {', '.join(ORIGINS[:-1])} and {ORIGINS[-1]}, found {', '.join(given) or 'none'}"
            )
        if (self.encoder is None) != (given[0] in ("pretrain", "finetuned")):
            raise ValueError(
                "encoder (the architecture) is required for timm, checkpoint and scratch, and not allowed for pretrain and finetuned"
            )
        if self.finetuned and self.finetuned.count("/") != 1:
            raise ValueError(
                f"finetuned = {self.finetuned!r}: expected TASK/METHOD, a fine-tuning and one of its methods"
            )
        if self.teacher and given != ["pretrain"]:
            raise ValueError("teacher = true: only together with pretrain. Remove teacher, or set pretrain")
        if self.part and given != ["checkpoint"]:
            raise ValueError(f"part = {self.part!r}: only together with checkpoint. Remove part, or set checkpoint")
        if given[0] not in ("timm", "checkpoint") and self.preprocessing():
            seen = (
                "preprocessed as in that fine-tuning"
                if given == ["finetuned"]
                else "normalised with ImageNet's mean and std"
            )
            raise ValueError(
                f"{', '.join(self.preprocessing())}: only together with timm or checkpoint; with {given[0]}, images are {seen}"
            )
        return self


class TaskTable(Recipe, extra="allow"):
    """A task: a column of the tables. The other keys of its table are settings of the task's kind.

    Source of the defaults: our choice.
    """

    kind: str
    """Kind of the task, such as finetune, linear, knn, logistic or segmentation."""
    title: str = ""
    """Heading of the column. If empty, the task's name in the suite file."""
    methods: list[str] | None = None
    """The methods that the task runs for. By default all, except (for downstream tasks) methods with ``finetuned``."""
    draws: Annotated[int, Field(ge=1, le=1000)] = 1
    """For tasks with ``shots`` or ``share``: number of random draws of the training images to run, starting with ``draw = 0``.
    Tables print the mean over draws."""
    at: At | None = None
    """Also run the task for snapshots of the methods' pre-training runs, at these shares of the training. Their rows are named
    METHOD-at-SHARE and make a curve. The runs must save these ``snapshots``. 1, the method itself, is always included."""
    published: str = ""
    """The task's name in lutbench/report/published.toml."""


class AnalysisTable(TaskTable):
    """``[analysis.NAME]``: measurements on the encoders of methods, and on an untrained encoder of each architecture.

    Source of the defaults: our choice.
    """

    kind: str = "analysis"
    """The only kind of this stage."""


class SweepTable(Recipe, extra="allow"):
    """``[sweep.NAME]``: a pre-training run or a task with several values of a setting. The other keys of its table are the axes:
    settings of that run or task, each with a list of values. With several axes, every combination is run.

    Source of the defaults: our choice.
    """

    of: str
    """What to vary: ``pretrain.NAME``, ``downstream.NAME`` or ``analysis.NAME``."""
    tasks: list[str] = Field(default_factory=list)
    """For a pre-training run: the tasks that evaluate every encoder, as ``NAME`` or ``STAGE.NAME``."""
    methods: list[str] | None = None
    """For a task: the methods it runs for; by default those of the task."""
    teacher: bool = False
    """For a pre-training run: evaluate the momentum teacher's encoder instead of the student's."""
    title: str = ""
    """Heading of the section. If empty, made from the run or task and the settings that vary."""
    label: str = ""
    """Text before the value in row labels. If empty, the suite's label for the run or task."""

    @model_validator(mode="before")
    @classmethod
    def _no_axis_has_the_name_of_a_key(cls, values: Any) -> Any:
        plain = [name for name in cls.model_fields if name not in ("tasks", "methods")]
        for name in plain:
            if isinstance(values, dict) and isinstance(values.get(name), list):
                raise ValueError(
                    f"{name} = {values[name]!r}: expected one value, found a list. {name} is one of the sweep's own keys "
                    f"({', '.join(cls.model_fields)}) and cannot be varied. Vary another setting"
                )
        return values


class Suite(Recipe):
    """The content of a suite file. Recipes are validated when :func:`lutbench.recipes.loading.load_suite` expands it.

    Source of the defaults: our choice.
    """

    title: str
    """Title of the suite, printed above its tables."""
    about: str
    """What the suite shows, on what machine, how long it takes and which results to expect."""
    kind: Literal["pipeline", "exploration", "evidence"]
    """What the numbers can show; tables print it. ``pipeline``: that the pipeline works, nothing about the methods. ``exploration``:
    nothing was decided before the results were known. ``evidence``: question and comparisons were decided beforehand, in
    ``decided``, and the tables print the outcome."""
    decided: Decided | None = None
    """The question and the comparisons that answer it, written before the first run."""
    seeds: list[Annotated[int, Field(ge=0, lt=SEED_BOUND)]] = Field([0], min_length=1)
    """Random seeds: every run is repeated with each of them."""
    compare: list[list[str]] = Field(default_factory=list)
    """Pairs of methods to compare image by image, as [first, second]. Untrained encoders of an analysis count as methods too."""
    extends: list[str] = Field(default_factory=list)
    """Suites that this one includes, the nearest first. Their tables are merged into this suite, see
    :mod:`lutbench.recipes.suite_files`."""
    data: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    """``[data.NAME]``: datasets for training and evaluation."""
    encoder: dict[Name, EncoderRecipe] = Field(default_factory=dict)
    """``[encoder.NAME]``: architectures."""
    method: dict[Name, MethodRecipe] = Field(default_factory=dict)
    """``[method.NAME]``: rows of the tables."""
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """``[defaults.KIND]``: settings of all runs of a kind; a run's own table overrides them."""
    pretrain: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    """``[pretrain.NAME]``: pre-training runs."""
    downstream: dict[Name, TaskTable] = Field(default_factory=dict)
    """``[downstream.NAME]``: tasks, which evaluate encoders."""
    classifier: dict[Name, ClassifierTable] = Field(default_factory=dict)
    """``[classifier.NAME]``: rows of the robustness tables, for classifiers that were trained elsewhere."""
    shifted: dict[Name, RobustnessDatasetRecipe] = Field(default_factory=dict)
    """``[shifted.NAME]``: shifted test sets."""
    robustness: dict[Name, RobustnessTable] = Field(default_factory=dict)
    """``[robustness.NAME]``: evaluations of trained classifiers on shifted test sets."""
    analysis: dict[Name, AnalysisTable] = Field(default_factory=dict)
    """``[analysis.NAME]``: measurements on attention and features of encoders."""
    sweep: dict[Name, SweepTable] = Field(default_factory=dict)
    """``[sweep.NAME]``: runs or tasks with several values of a setting."""
    cluster: ClusterTable = Field(default_factory=ClusterTable)
    """``[cluster]``: resources of jobs on a SLURM cluster."""


Row = tuple[str, str, str]
"""Stage, task and method, the same for the runs of all seeds. The method of a pre-training run is empty."""


@dataclass(frozen=True)
class StudyPoint:
    """One value, or combination of values, of the settings that a study varies."""

    values: Mapping[str, Any]
    """Values by axis, as in the suite file: ``{"context_weight": 0.05}``."""
    rows: Mapping[tuple[str, str], Row]
    """Rows by column and series. A column is a task, as named in the suite file; a series is the method that is varied."""


@dataclass(frozen=True)
class Study:
    """Rows that differ in one or several settings; shown in a separate section of the tables, with curves."""

    name: str
    """``sweep.weight``"""
    title: str
    axes: tuple[str, ...]
    points: tuple[StudyPoint, ...]
    base: int | None
    """Index of the point to which differences are printed; None if the unchanged value is not among the points."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a suite, before anything of it exists on disk."""

    suite: str
    kind: Kind
    task: str
    """Name of the pre-training run or task in the suite file; in robustness ``TABLE/SET``, or ``TABLE/SET/linear-probe`` for a probe."""
    method: str
    """The row: a method or a classifier; empty for pre-training runs."""
    seed: int
    recipe: RunRecipe = field(repr=False)
    needs: str | None = None
    """Name of the run whose encoder or classifier it uses: a pre-training, a fine-tuning or a linear probe."""
    draw: int = 0
    """Number of the random draw of training images, for tasks with several draws."""
    smoke: str = ""
    """For a smoke run its width, such as ``toy``. Smoke runs have other identities than measurements, see :mod:`lutbench.smoke`."""

    @property
    def stage(self) -> str:
        """The stage of the run."""
        return self.kind.stage

    @property
    def row(self) -> Row:
        """Stage, task and method, the same for the runs of other seeds."""
        return self.stage, self.task, self.method

    @property
    def name(self) -> str:
        """The run's name, unique within the suite."""
        return run_name(self.stage, self.task, self.method, self.seed, self.draw)


def run_name(stage: str, task: str, method: str, seed: int, draw: int = 0) -> str:
    """Return the name of a run, such as ``pretrain/lut/seed0``, or ``downstream/knn/lut/seed0-draw1`` for draws after the first."""
    return "/".join(part for part in (stage, task, method, f"seed{seed}{f'-draw{draw}' if draw else ''}") if part)


def name_matches(name: str, pattern: str) -> bool:
    """Return whether ``pattern`` matches consecutive parts of a run's name, such as ``photographs-knn/lut``."""
    parts, length = name.split("/"), pattern.count("/") + 1
    return any(fnmatch("/".join(parts[i : i + length]), pattern) for i in range(len(parts) - length + 1))


def is_selected(run: PlannedRun, pattern: str) -> bool:
    """Return whether ``pattern`` selects a run: by :func:`name_matches`, and with the first draw of a seed also the other draws.

    Only the whole name of the first draw is of that run alone.
    """
    first = run_name(run.stage, run.task, run.method, run.seed)
    return name_matches(run.name, pattern) or (bool(run.draw) and pattern != first and name_matches(first, pattern))


@dataclass(frozen=True)
class LoadedSuite:
    """A validated suite and its runs, each after the run it starts from."""

    name: str
    config: Suite
    runs: tuple[PlannedRun, ...]
    given: str
    """The suite as given on the command line, by name or path, with ``--set`` options; for messages with commands to run."""
    joined: str = ""
    """A sentence on the methods of this file that were added to tables of the extended suite, see :mod:`lutbench.recipes.joining`."""
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    """Budgets of the pre-training runs that have one, by their names in the suite file."""
    studies: tuple[Study, ...] = ()
    """Studies: curves and tables of differences, in addition to the main table."""
    study_rows: frozenset[Row] = frozenset()
    """The rows that exist only for studies; they are not in the tables of methods and in comparisons."""
    smoke: str = ""
    """For a smoke test its width, ``own`` or ``toy``, see :mod:`lutbench.smoke`; else empty."""

    @property
    def studied(self) -> set[str]:
        """The methods that exist only for studies."""
        rows = {run.row for run in self.runs}
        return {method for *_, method in rows & self.study_rows} - {method for *_, method in rows - self.study_rows}

    def run(self, name: str) -> PlannedRun:
        """Return the run of this name."""
        return next(run for run in self.runs if run.name == name)

    def chosen(self, stages: Sequence[str] = (), only: Sequence[str] = (), option: str = "--only") -> list[PlannedRun]:
        """Return the runs of the stages whose name, or consecutive parts of it between slashes, match one of the patterns.

        A pattern such as ``sweep.weight`` selects all runs of that study and the runs they start from; ``seed0`` also selects the draws
        of that seed, see :func:`is_selected`. If the suite has no runs of these stages, the result is empty for any pattern. ``option``
        is the name of the command-line option, for messages.

        Raises:
            UserError: if there is no such stage, or a pattern matches nothing.
        """
        for stage in stages:
            if stage not in STAGES:
                raise unknown(f"--stage {stage}: unknown stage", stage, STAGES)
        runs = [run for run in self.runs if not stages or run.stage in stages]
        studied = {study.name: self._runs_of(study) for study in self.studies}

        def matches(run: PlannedRun, pattern: str) -> bool:
            return run.name in studied.get(pattern, ()) or is_selected(run, pattern)

        for pattern in only:
            if runs and not any(matches(run, pattern) for run in runs):
                known = sorted({*studied, *(part for run in runs for part in run.name.split("/"))})
                of = f" in stage {' or '.join(stages)}" if stages else ""
                raise unknown(f"{option} {pattern}: no run of suite {self.name}{of} matches", pattern, known)
        return [run for run in runs if not only or any(matches(run, pattern) for pattern in only)]

    def runs_of_studies(self) -> dict[str, str]:
        """Return, for each run that exists only for studies, its first study, by name of the run."""
        found = dict[str, str]()
        alone = {run.name for run in self.runs if run.row in self.study_rows}
        for study in self.studies:
            found = {**dict.fromkeys(self._runs_of(study) & alone, study.name), **found}
        return found

    def _runs_of(self, study: Study) -> set[str]:
        """Return the names of the runs of a study, and of the runs they start from."""
        rows, names = {row for point in study.points for row in point.rows.values()}, set[str]()
        for run in reversed(self.runs):  # reversed: each run before the run it starts from
            if run.row in rows or run.name in names:
                names |= {run.name, *([run.needs] if run.needs else [])}
        return names
