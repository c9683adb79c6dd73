"""From the tables of a suite file to the runs that they make. What a stage's runs start from decides the form of its tables."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lutbench.errors import UserError, unknown
from lutbench.kinds import STAGES
from lutbench.recipes.base import EncoderRecipe, RunRecipe
from lutbench.recipes.classifier_rows import from_classifiers
from lutbench.recipes.downstream import EncoderSource, FinetuneRecipe
from lutbench.recipes.draws import drawn
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.recipes.snapshot_rows import snapshot_sources, study_rows_of
from lutbench.recipes.suite import UNTRAINED, AnalysisTable, PlannedRun, Row, Suite, TaskTable
from lutbench.recipes.suite_tables import AnyData, Table, labelled, resolved, table_of, with_data


def expand(name: str, suite: Suite, data: Mapping[str, AnyData], study_rows: Collection[Row] = ()) -> list[PlannedRun]:
    """Return the runs of all stages, each after the one it needs; ``data`` are the suite's datasets.

    ``study_rows`` are there for studies alone: an analysis adds no untrained encoder for them.

    Raises:
        UserError: for every setting that is unknown, mistyped, out of range or contradictory.
    """
    runs = expand_stages(name, suite, data, STAGES, study_rows)
    for method in suite.method:
        _origin(suite, method, runs)  # also of those that no table is run for
    return runs


def expand_stages(
    name: str, suite: Suite, data: Mapping[str, AnyData], stages: Sequence[str], study_rows: Collection[Row] = ()
) -> list[PlannedRun]:
    """Return the runs of the first so many stages, as :func:`expand` does."""
    runs: list[PlannedRun] = []
    for stage in stages:
        for task, given in getattr(suite, stage).items():
            table = table_of(suite, stage, task, given)
            if table.kind.starts_from == "nothing":
                runs += _from_nothing(name, suite, data, table)
            elif table.kind.starts_from == "encoder":
                runs += _from_encoders(name, suite, data, runs, table, study_rows)
            else:
                runs += from_classifiers(name, suite, runs, table)
    return runs


def _from_nothing(name: str, suite: Suite, data: Mapping[str, AnyData], table: Table) -> list[PlannedRun]:
    """Return the runs of a table that starts from nothing but data, such as pre-training: one for every seed."""
    recipe = recipe_from_nothing(suite, data, table)
    return [PlannedRun(name, table.kind, table.task, "", seed, recipe) for seed in suite.seeds]


def recipe_from_nothing(suite: Suite, data: Mapping[str, AnyData], table: Table) -> RunRecipe:
    """Return the recipe of a table that starts from nothing but data."""
    settings = resolved(table.settings, "encoder", suite.encoder, table.where)
    settings = with_data(settings, table.kind.recipe, data, table.where)
    return read_recipe(table.kind.recipe, settings, table.where, also=("budget",))


def pretraining_recipe(suite: Suite, data: Mapping[str, AnyData], name: str, **changes: Any) -> PretrainRecipe:
    """Return the recipe of ``[pretrain.NAME]``, with some of the table's own settings changed.

    Raises:
        UserError: for every setting that is unknown, mistyped, out of range or contradictory.
    """
    recipe = recipe_from_nothing(suite, data, table_of(suite, "pretrain", name, {**suite.pretrain[name], **changes}))
    assert isinstance(recipe, PretrainRecipe)
    return recipe


def _from_encoders(
    name: str,
    suite: Suite,
    data: Mapping[str, AnyData],
    before: Sequence[PlannedRun],
    table: Table,
    study_rows: Collection[Row],
) -> list[PlannedRun]:
    """Return the runs of a task: for the encoder of every method, or of those it lists, and with ``at`` for what it was before."""
    runs = []
    for method in methods_of(suite, table):
        shares = () if (table.kind.stage, table.task, method) in study_rows else table.given.at or ()
        made_by, recipes = recipes_from_encoder(suite, data, before, table, method, shares)
        for row, recipe in recipes.items():
            for seed in suite.seeds:
                needs = replace(made_by, seed=seed).name if made_by else None
                run = PlannedRun(name, table.kind, table.task, row, seed, recipe, needs)
                runs += drawn(run, table.given.draws, table.where)
    if table.given.at and not study_rows_of(runs):
        raise UserError(
            f"{table.where}.at: expected shares short of 1 of the pre-training of its methods, found none, or no method that a pre-training of "
            "this suite makes. Leave it out."
        )
    if isinstance(table.given, AnalysisTable):
        runs += _untrained(suite, [run for run in runs if run.row not in study_rows])
    return runs


def recipes_from_encoder(
    suite: Suite,
    data: Mapping[str, AnyData],
    before: Sequence[PlannedRun],
    table: Table,
    method: str,
    shares: Sequence[float] = (),
) -> tuple[PlannedRun | None, dict[str, RunRecipe]]:
    """Return the run of some seed that makes the encoder of a method, if one does, and the recipes of a task for it by row.

    They are the method's own and, with ``shares`` of its pre-training, those of its snapshots.
    """
    kind, where = table.kind, table.where
    if "encoder" in table.settings:
        raise UserError(f"{where}.encoder: a task is run for the encoder of every method; set it in [method.NAME].")
    if method not in suite.method:
        raise unknown(f"{where}.methods: no such method {method!r}", method, suite.method)
    settings = with_data(table.settings, kind.recipe, data, where)
    made_by, source = _origin(suite, method, before, where)
    rows = {method: source}
    if shares and made_by and suite.method[method].pretrain:
        rows |= snapshot_sources(suite, method, made_by, source, shares, where)
    if (pool := suite.method[method].pool) and "pool" in kind.recipe.model_fields:
        settings["pool"] = pool
    also = TaskTable.model_fields
    return made_by, {
        row: read_recipe(kind.recipe, {**settings, "encoder": encoder}, where, also=also)
        for row, encoder in rows.items()
    }


def methods_of(suite: Suite, table: Table) -> Sequence[str]:
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
    named = {name: read_recipe(EncoderRecipe, labelled(name, recipe), name) for name, recipe in suite.encoder.items()}
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
        named = resolved({"encoder": row.encoder}, "encoder", suite.encoder, f"method.{method}")
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
    rows = methods_of(suite, table_of(suite, "downstream", task, suite.downstream[task]))
    if row not in rows:
        raise unknown(f"{where}: {task} is not run for {row!r}", row, rows)
    made_by = next((run for run in before if (run.stage, run.task, run.method) == ("downstream", task, row)), None)
    if made_by is None:
        raise UserError(
            f"{where}: {wanted_by} is run for {method}, which downstream.{task} makes, and a row can be made only by a task "
            f"above. Take {method} out of the methods of {wanted_by}, or put it below [downstream.{task}]."
        )
    return made_by
