"""From the tables of a suite file to the runs that they make. What a stage's runs start from decides the form of its tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lutbench.data.catalogue import MEASURED_ON
from lutbench.errors import UserError, listed, unknown
from lutbench.kinds import STAGES, Kind, kinds_of
from lutbench.recipes.base import DataRecipe, DatasetRecipe, EncoderRecipe, Recipe
from lutbench.recipes.downstream import EncoderSource, FinetuneRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.recipes.robustness import RobustnessTable
from lutbench.recipes.segmentation import SegmentationDataRecipe
from lutbench.recipes.suite import UNTRAINED, AnalysisTable, PlannedRun, Suite, TaskTable

AnyData = DataRecipe | SegmentationDataRecipe

PROBES = {"linear": "linear-probe"}
"""What the tasks of a robustness table end with where it measures frozen encoders with a probe, by the probe's kind."""


class _Table(NamedTuple):
    """A table of a suite file that makes runs of one kind."""

    kind: Kind
    task: str
    """Its name, ``[STAGE.TASK]``."""
    given: Any
    """The table as the suite's model has it."""
    settings: dict[str, Any]
    """The settings of its runs, with the suite's defaults for the kind."""

    @property
    def where(self) -> str:
        """Its name in messages."""
        return f"{self.kind.stage}.{self.task}"


def expand(name: str, suite: Suite, data: Mapping[str, AnyData]) -> list[PlannedRun]:
    """Return the runs of all stages, each after the one it needs; ``data`` are the suite's datasets.

    Raises:
        UserError: for every setting that is unknown, mistyped, out of range or contradictory.
    """
    runs: list[PlannedRun] = []
    for stage in STAGES:
        for task, given in getattr(suite, stage).items():
            table = _table(suite, stage, task, given)
            if table.kind.starts_from == "nothing":
                runs += _from_nothing(name, suite, data, table)
            elif table.kind.starts_from == "encoder":
                runs += _from_encoders(name, suite, data, runs, table)
            else:
                runs += _from_classifiers(name, suite, runs, table)
    for method in suite.method:
        _origin(suite, method, runs)  # also of those that no table is run for
    return runs


def _table(suite: Suite, stage: str, task: str, given: Any) -> _Table:
    """Return a table with its kind: the one that it names, or the first of its stage where its form names none."""
    kinds = kinds_of(stage)
    named = isinstance(given, TaskTable)
    kind = given.kind if named else next(iter(kinds))
    if kind not in kinds:
        raise unknown(f"{stage}.{task}.kind: no such task {kind!r}", kind, kinds)
    own = given if isinstance(given, dict) else given.model_extra or {}
    return _Table(kinds[kind], task, given, suite.defaults.get(kind, {}) | ({"kind": kind} if named else {}) | own)


def _from_nothing(name: str, suite: Suite, data: Mapping[str, AnyData], table: _Table) -> list[PlannedRun]:
    """Return the runs of a table that starts from nothing but data, such as pre-training: one for every seed."""
    settings = _resolved(table.settings, "encoder", suite.encoder, table.where)
    settings = _with_data(settings, table.kind.recipe, data, table.where)
    recipe = read_recipe(table.kind.recipe, settings, table.where)
    return [PlannedRun(name, table.kind, table.task, "", seed, recipe) for seed in suite.seeds]


def _from_encoders(
    name: str, suite: Suite, data: Mapping[str, AnyData], before: Sequence[PlannedRun], table: _Table
) -> list[PlannedRun]:
    """Return the runs of a task: for the encoder of every method, or of those it lists."""
    kind, where, runs = table.kind, table.where, []
    if "encoder" in table.settings:
        raise UserError(f"{where}.encoder: a task is run for the encoder of every method; set it in [method.NAME].")
    settings = _with_data(table.settings, kind.recipe, data, where)
    for method in _methods(suite, table):
        if method not in suite.method:
            raise unknown(f"{where}.methods: no such method {method!r}", method, suite.method)
        made_by, source = _origin(suite, method, before, where)
        values = {**settings, "encoder": source}
        if (pool := suite.method[method].pool) and "pool" in kind.recipe.model_fields:
            values["pool"] = pool
        recipe = read_recipe(kind.recipe, values, where, also=TaskTable.model_fields)
        for seed in suite.seeds:
            needs = replace(made_by, seed=seed).name if made_by else None
            runs.append(PlannedRun(name, kind, table.task, method, seed, recipe, needs))
    if isinstance(table.given, AnalysisTable):
        runs += _untrained(suite, runs)
    return runs


def _methods(suite: Suite, table: _Table) -> Sequence[str]:
    """Return the methods that a table is run for: those it lists, or all that can be.

    An analysis has untrained encoders as rows in any case. What a fine-tuning made is no row of that very task, nor of those
    above it, so a task is run only for those of them that it lists.
    """
    if table.given.methods is not None:
        methods: list[str] = table.given.methods
        return methods
    left_out = {"downstream": "finetuned", "analysis": "scratch"}.get(table.kind.stage)
    return [name for name, row in suite.method.items() if not (left_out and getattr(row, left_out))]


def _untrained(suite: Suite, runs: Sequence[PlannedRun]) -> Iterator[PlannedRun]:
    """Yield what a table is besides run for: an untrained encoder of every architecture, unless a method is one.

    It is named ``untrained``; of several architectures ``untrained-NAME``, where the suite has an [encoder.NAME], and
    ``untrained-NAME-SIDE`` where one was fine-tuned at another size.
    """
    recipes = {run.recipe.encoder.architecture: run for run in runs}  # type: ignore[attr-defined]
    named = {name: read_recipe(EncoderRecipe, _labelled(name, recipe), name) for name, recipe in suite.encoder.items()}
    for architecture, run in recipes.items():
        source = {"architecture": architecture, "kind": "scratch"}
        recipe = run.recipe.model_copy(update={"encoder": EncoderSource.model_validate(source)})
        if any(recipe == other.recipe for other in runs):
            continue
        method = UNTRAINED if len(recipes) == 1 else f"{UNTRAINED}-{_name(architecture, named)}"
        if method in suite.method and not suite.method[method].scratch:
            raise UserError(
                f"method.{method}: {run.stage}.{run.task} has a row of this name, an untrained encoder, and what the suite file calls so "
                "is another. Give it another name."
            )
        for seed in suite.seeds:
            yield replace(run, method=method, seed=seed, recipe=recipe, needs=None)


def _name(architecture: EncoderRecipe, named: Mapping[str, EncoderRecipe]) -> str:
    """Return the name of an architecture in the suite file; with its size if it has none there, or has it at another size."""
    size = {"image_size": architecture.image_size}
    alike = [name for name, recipe in named.items() if recipe.model_copy(update=size) == architecture]
    exact = [name for name in alike if named[name] == architecture]
    return exact[0] if exact else f"{next(iter(alike), architecture.model)}-{architecture.image_size}"


def _from_classifiers(name: str, suite: Suite, before: Sequence[PlannedRun], table: _Table) -> list[PlannedRun]:
    """Return the runs of a table that names datasets, on each of which finished classifiers are measured."""
    kind, where, given = table.kind, table.where, table.given
    datasets = {known.name: known.recipe for known in MEASURED_ON.values()} | suite.shifted
    measured, runs = _measured(given, before, where), []
    rows = suite.classifier if given.classifiers is None else given.classifiers
    for dataset in given.sets:
        if dataset not in datasets:
            problem = f"{where}.sets: there is neither a [shifted.{dataset}] in the suite file nor a published set"
            raise unknown(f"{problem} {dataset!r}", dataset, datasets)
        chosen = {"preprocessing": given.preprocessing} if given.preprocessing else {}
        settings = {**table.settings, "set": {**_labelled(dataset, datasets[dataset]), **chosen}}
        task = f"{table.task}/{dataset}"
        for run in measured:  # its images are seen as in that task, unless the table says otherwise
            as_tuned = {"image_size": run.recipe.side, "eval_crop": run.recipe.eval_crop}  # type: ignore[attr-defined]
            probe = PROBES.get(run.kind.name)
            source = {"kind": "run", "encoder": run.recipe.encoder_label, "export": "linear" if probe else "classifier"}
            values = {**as_tuned, **settings, "classifier": source}
            recipe = read_recipe(kind.recipe, values, where, also=RobustnessTable.model_fields)
            row_of = f"{task}/{probe}" if probe else task
            runs.append(PlannedRun(name, kind, row_of, run.method, run.seed, recipe, run.name))
        for row in rows:  # no run of the suite made it, so it has no seed: it is under the suite's first
            values = {**settings, **_classifier_settings(suite, row, where)}
            recipe = read_recipe(kind.recipe, values, where, also=RobustnessTable.model_fields)
            runs.append(PlannedRun(name, kind, task, row, suite.seeds[0], recipe))
    return runs


def _measured(given: RobustnessTable, before: Sequence[PlannedRun], where: str) -> list[PlannedRun]:
    """Return the fine-tunings whose classifiers a table is about, and behind them the probes."""
    kinds = {"finetune": "fine-tune", **dict.fromkeys(PROBES, "probe")}
    classifiers = sorted((run for run in before if run.kind.name in kinds), key=lambda run: run.kind.name in PROBES)
    fitting = list(dict.fromkeys(run.task for run in classifiers))
    for task in given.tasks:
        if task not in fitting:
            raise unknown(f"{where}.tasks: expected fine-tunings or linear probes, found {task!r}", task, fitting)
    measured = [run for run in classifiers if run.task in given.tasks]
    known = list(dict.fromkeys(run.method for run in measured))
    methods = known if given.methods is None else given.methods
    for method in methods:
        if method not in known:
            of = listed(given.tasks) or "none"
            raise unknown(f"{where}.methods: there is no {method!r} in its tasks, {of}", method, known)
        for kind, verb in kinds.items():
            runs = [run for run in measured if (run.method, run.kind.name) == (method, kind)]
            if len(same := dict.fromkeys(run.task for run in runs)) > 1:
                raise UserError(
                    f"{where}.tasks: {' and '.join(same)} each {verb} {method}, and a table has one classifier of a "
                    "method. Name one of these tasks in it, and the others in a [robustness.NAME] of their own."
                )
    return [run for run in measured if run.method in methods]


def _classifier_settings(suite: Suite, row: str, where: str) -> dict[str, Any]:
    """Return what a ``[classifier.NAME]`` says of the classifier and its input."""
    if row not in suite.classifier:
        raise unknown(f"{where}.classifiers: there is no {row!r} in the suite file", row, suite.classifier)
    given = suite.classifier[row]
    source = {
        "kind": "checkpoint" if given.checkpoint else "timm",
        "model": given.model,
        "path": given.checkpoint,
        "encoder": given.encoder or given.model,
        **given.preprocessing(),
    }
    return {"classifier": source} | ({} if given.image_size is None else {"image_size": given.image_size})


def _with_data(
    settings: Mapping[str, Any], model: type[Recipe], data: Mapping[str, AnyData], where: str
) -> dict[str, Any]:
    """Return ``settings`` with the name of a dataset replaced by what it names, which must be what ``model`` works on."""
    name, wanted = settings.get("data"), model.model_fields["data"].annotation
    if isinstance(name, str) and name in data and type(data[name]) is not wanted:
        needs = "images with masks" if wanted is SegmentationDataRecipe else "images"
        fitting = [other for other, recipe in data.items() if type(recipe) is wanted]
        raise UserError(
            f"{where}.data: expected a set of {needs}, found {name}, whose source is {data[name].source}. "
            f"Fitting sets: {listed(fitting, 20) or 'none'}."
        )
    return _resolved(settings, "data", data, where)


def _origin(
    suite: Suite, method: str, before: Sequence[PlannedRun], wanted_by: str = ""
) -> tuple[PlannedRun | None, dict[str, Any]]:
    """Return the run of some seed that makes the encoder of a method, if one does, and the ``encoder`` of a task's recipe.

    The run is among those planned ``before`` the task ``wanted_by``.
    """
    row, made_by = suite.method[method], None
    if row.finetuned:
        made_by = _finetuning(suite, method, row.finetuned, before, wanted_by)
        tuned: FinetuneRecipe = made_by.recipe  # type: ignore[assignment]
        architecture = tuned.encoder.architecture.model_copy(update={"image_size": tuned.side})
        return made_by, {"architecture": architecture, "kind": "run", "export": "classifier"}
    if row.pretrain is None:
        kind = "timm" if row.timm else "checkpoint" if row.checkpoint else "scratch"
        named = _resolved({"encoder": row.encoder}, "encoder", suite.encoder, f"method.{method}")
        return None, {
            "architecture": named["encoder"],
            "kind": kind,
            "path": row.checkpoint or "",
            "part": row.part,
            **row.preprocessing(),
        }
    if row.pretrain not in suite.pretrain:
        raise unknown(f"method.{method}.pretrain: no such run {row.pretrain!r}", row.pretrain, suite.pretrain)
    made_by = next(run for run in before if (run.stage, run.task) == ("pretrain", row.pretrain))
    pretraining: PretrainRecipe = made_by.recipe  # type: ignore[assignment]
    if row.teacher and not pretraining.has_context:
        raise UserError(
            f"method.{method}.teacher: pretrain.{row.pretrain} has no context loss (context_weight = 0), and so no teacher. "
            "Name a run that has one, or leave teacher out."
        )
    export = "teacher" if row.teacher else "encoder"
    return made_by, {"architecture": pretraining.encoder, "kind": "run", "export": export}


def _finetuning(suite: Suite, method: str, named: str, before: Sequence[PlannedRun], wanted_by: str) -> PlannedRun:
    """Return the run of some seed whose classifier a method names as ``TASK/METHOD``."""
    where, (task, row) = f"method.{method}.finetuned", named.split("/")
    tunings = [name for name, table in suite.downstream.items() if table.kind == "finetune"]
    if task not in tunings:
        found = f", but a task of kind {suite.downstream[task].kind}" if task in suite.downstream else ""
        raise unknown(f"{where}: there is no fine-tuning {task!r}{found}", task, tunings)
    rows = _methods(suite, _table(suite, "downstream", task, suite.downstream[task]))
    if row not in rows:
        raise unknown(f"{where}: {task} is not run for {row!r}", row, rows)
    made_by = next((run for run in before if (run.stage, run.task, run.method) == ("downstream", task, row)), None)
    if made_by is None:
        raise UserError(
            f"{where}: {wanted_by} is run for {method}, which downstream.{task} makes, and a row can be made only by a task "
            f"above. Take {method} out of the methods of {wanted_by}, or put it below [downstream.{task}]."
        )
    return made_by


def _resolved(
    settings: Mapping[str, Any], key: str, known: Mapping[str, EncoderRecipe | DatasetRecipe], where: str
) -> dict[str, Any]:
    """Return ``settings`` with the name under ``key`` replaced by what it names."""
    name = settings.get(key)
    if not isinstance(name, str):
        return dict(settings)
    if name not in known:
        raise unknown(f"{where}.{key}: there is no [{key}.{name}] in the suite file", name, known)
    return {**settings, key: _labelled(name, known[name])}


def _labelled(name: str, recipe: EncoderRecipe | DatasetRecipe) -> dict[str, Any]:
    """Return the settings of an encoder or a dataset, which tables call by its name unless it has a label."""
    return {**recipe.model_dump(), "label": recipe.label or name}
