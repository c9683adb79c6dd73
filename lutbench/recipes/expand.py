"""Expand the tables of a suite file into runs. How a table is expanded depends on what its runs start from: data or encoders."""

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
    """Return the runs of all stages, each after the run it starts from; ``data`` are the suite's datasets.

    ``study_rows`` exist only for studies: an analysis adds no untrained encoder for them.

    Raises:
        UserError: for every setting that is unknown, mistyped, out of range or contradictory.
    """
    runs = expand_stages(name, suite, data, STAGES, study_rows)
    for method in suite.method:
        _origin(suite, method, runs)  # checks methods without runs too
    return runs


def expand_stages(
    name: str, suite: Suite, data: Mapping[str, AnyData], stages: Sequence[str], study_rows: Collection[Row] = ()
) -> list[PlannedRun]:
    """Return the runs of the given first stages, as :func:`expand` does."""
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
    """Return the runs of a table that starts from data only, such as pre-training: one per seed."""
    recipe = recipe_from_nothing(suite, data, table)
    return [PlannedRun(name, table.kind, table.task, "", seed, recipe) for seed in suite.seeds]


def recipe_from_nothing(suite: Suite, data: Mapping[str, AnyData], table: Table) -> RunRecipe:
    """Return the recipe of a table that starts from data only."""
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
    """Return the runs of a task: one per method (or per listed method) and seed; with ``at`` also for its snapshots."""
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
            f"{table.where}.at: expected a share below 1, and a method that a pre-training run of this suite makes; found none. Remove at."
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
    """Return the run (of any seed) that makes the encoder of a method, if there is one, and the task's recipes by row.

    The rows are the method itself and its snapshots at ``shares`` of the pre-training.
    """
    kind, where = table.kind, table.where
    if "encoder" in table.settings:
        raise UserError(
            f"{where}.encoder: tasks have no encoder setting; they run for the encoders of all methods. Set it in [method.NAME]."
        )
    if method not in suite.method:
        raise unknown(f"{where}.methods: unknown method {method!r}", method, suite.method)
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
    """Yield runs for an untrained encoder of every architecture, unless a method is one already.

    Its row is named ``untrained``; with several architectures ``untrained-NAME`` after [encoder.NAME], or ``untrained-NAME-SIDE`` if
    one was fine-tuned at another input size.
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
                f"method.{method}: {run.stage}.{run.task} uses this name for its untrained encoder, but here it is another method. "
                "Rename the method."
            )
        for seed in suite.seeds:
            yield replace(run, method=method, seed=seed, recipe=recipe, needs=None)


def _name(architecture: EncoderRecipe, named: Mapping[str, EncoderRecipe]) -> str:
    """Return the name of an architecture in the suite file; with the input size appended if not defined there at this size."""
    size = {"image_size": architecture.image_size}
    alike = [name for name, recipe in named.items() if recipe.model_copy(update=size) == architecture]
    exact = [name for name in alike if named[name] == architecture]
    return exact[0] if exact else f"{next(iter(alike), architecture.model)}-{architecture.image_size}"


def _origin(
    suite: Suite, method: str, before: Sequence[PlannedRun], wanted_by: str = ""
) -> tuple[PlannedRun | None, dict[str, Any]]:
    """Return the run (of any seed) that makes the encoder of a method, if there is one, and the ``encoder`` of a task's recipe.

    The run is one of those planned ``before`` the task ``wanted_by``.
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
        raise unknown(
            f"method.{method}.pretrain: there is no [pretrain.{row.pretrain}] in the suite file",
            row.pretrain,
            suite.pretrain,
        )
    made_by = next(run for run in before if (run.stage, run.task) == ("pretrain", row.pretrain))
    pretraining: PretrainRecipe = made_by.recipe  # type: ignore[assignment]
    if row.teacher and not pretraining.has_context:
        raise UserError(
            f"method.{method}.teacher: pretrain.{row.pretrain} has no teacher, because it has no context loss (context_weight = 0). "
            "Use another run, or remove teacher."
        )
    export = "teacher" if row.teacher else "encoder"
    return made_by, {"architecture": pretraining.encoder, "kind": "run", "export": export}


def _finetuning(suite: Suite, method: str, named: str, before: Sequence[PlannedRun], wanted_by: str) -> PlannedRun:
    """Return the fine-tuning (of any seed) that a method names as ``TASK/METHOD``."""
    where, (task, row) = f"method.{method}.finetuned", named.split("/")
    tunings = [name for name, table in suite.downstream.items() if table.kind == "finetune"]
    if task not in tunings:
        found = f"; downstream.{task} is of kind {suite.downstream[task].kind}" if task in suite.downstream else ""
        raise unknown(f"{where}: there is no fine-tuning {task!r}{found}", task, tunings)
    rows = methods_of(suite, table_of(suite, "downstream", task, suite.downstream[task]))
    if row not in rows:
        raise unknown(f"{where}: {task} is not run for {row!r}", row, rows)
    made_by = next((run for run in before if (run.stage, run.task, run.method) == ("downstream", task, row)), None)
    if made_by is None:
        raise UserError(
            f"{where}: {wanted_by} needs {method}, which downstream.{task} makes, but comes before it in the suite file. "
            f"Remove {method} from the methods of {wanted_by}, or move [{wanted_by}] below [downstream.{task}]."
        )
    return made_by
