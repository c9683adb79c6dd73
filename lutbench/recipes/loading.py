"""From a suite file to the runs it makes: names resolved, every recipe checked."""

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from lutbench.data.literature import LITERATURE
from lutbench.errors import UserError, listed, nearest
from lutbench.recipes.base import DataRecipe, Recipe, read_recipe
from lutbench.recipes.downstream import FinetuneRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.robustness import RobustnessRecipe, RobustnessTable
from lutbench.recipes.segmentation import SegmentationDataRecipe
from lutbench.recipes.suite import LoadedSuite, PlannedRun, Suite, TaskTable
from lutbench.recipes.tasks import TASKS
from robustness.published_sets import PUBLISHED

SOURCES: dict[str, type[DataRecipe | SegmentationDataRecipe]] = {
    **dict.fromkeys(get_args(DataRecipe.model_fields["source"].annotation), DataRecipe),
    **dict.fromkeys(("scenes", "ade20k", "mosaics"), SegmentationDataRecipe),
}
"""What a data set is described by: images with or without labels, or images with masks."""

SUITES = Path(str(files("suites")))
"""Where ``lutbench run tiny`` finds ``tiny.toml``."""


def load_suite(name_or_path: str, overrides: Sequence[str] = ()) -> LoadedSuite:
    """Read ``suites/NAME.toml`` or the file given, apply ``PATH=VALUE`` overrides and check every recipe.

    Raises:
        UserError: for a missing or malformed file, and for every setting that is unknown, mistyped, out of range
            or contradictory, before anything is run.
    """
    path = Path(name_or_path) if name_or_path.endswith(".toml") else SUITES / f"{name_or_path}.toml"
    if not path.is_file():
        known = sorted(p.stem for p in SUITES.glob("*.toml"))
        raise UserError(
            f"There is no suite {name_or_path!r}.{nearest(name_or_path, known)} Suites here: {', '.join(known)}; or give the path of a .toml file."
        )
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}.") from error
    for override in overrides:
        _override(tables, override)
    return _expand(name_or_path, path, tables)


def _expand(given: str, path: Path, tables: dict[str, Any]) -> LoadedSuite:
    suite = read_recipe(Suite, tables, "")
    recipes: dict[str, type[Recipe]] = {"pretrain": PretrainRecipe, "robustness": RobustnessRecipe, **TASKS}
    for key, settings in suite.defaults.items():
        if key not in recipes:
            raise UserError(f"defaults.{key}: no such stage or task.{nearest(key, recipes)}")
        for setting in settings:
            if setting not in recipes[key].model_fields:
                raise UserError(
                    f"defaults.{key}.{setting}: no such setting.{nearest(setting, recipes[key].model_fields)}"
                )
    for pair in suite.compare:
        rows = [*suite.method, *suite.classifier]
        if len(pair) != 2 or len(set(pair)) != 2 or not set(pair) <= set(rows):
            raise UserError(
                f"compare: expected pairs of methods such as ['lut', 'mae'], found {pair}. Methods: {', '.join(rows)}."
            )
    if both := sorted(set(suite.method) & set(suite.classifier)):
        raise UserError(
            f"classifier.{both[0]}: there is a method of this name. Rename one: both are rows of the tables."
        )
    data = {name: _data(name, values) for name, values in suite.data.items()}
    runs = _pretrain_runs(path.stem, suite, data)
    tasks = _downstream_runs(path.stem, suite, data)
    runs += [*tasks, *_robustness_runs(path.stem, suite, tasks)]
    for run, times in Counter(run.name for run in runs).items():
        if times > 1:
            raise UserError(f"{run} would be run {times} times: name every seed, and every method of a task, once.")
    return LoadedSuite(path.stem, suite, tuple(runs), given)


AnyData = DataRecipe | SegmentationDataRecipe

BUILT_HERE = ("photographs", "photograph-tiles", "mosaics")
"""The known sets that the suite builds itself: each is a source of its own name, and has no other setting."""


def _data(name: str, values: dict[str, Any]) -> AnyData:
    """The recipe of ``[data.NAME]``; with ``known`` that of a known set, and what else is given changes it."""
    if "known" in values:
        known = values["known"]
        names = [*BUILT_HERE, *LITERATURE]
        if known not in names:
            shifted = isinstance(known, str) and known in PUBLISHED
            hint = " It is a shifted set: name it in the sets of a [robustness.NAME]." if shifted else ""
            raise UserError(
                f"data.{name}.known: there is no set {known!r} to train on.{hint or nearest(str(known), names)} "
                f"Known: {', '.join(names)}."
            )
        built = {"label": known, "source": known}
        recipe = built if known in BUILT_HERE else LITERATURE[known].recipe.model_dump(exclude_defaults=True)
        values = {**recipe, **{key: value for key, value in values.items() if key != "known"}}
    source = values.get("source", "folder")
    if not isinstance(source, str) or source not in SOURCES:
        raise UserError(
            f"data.{name}.source: there is no {source!r}.{nearest(str(source), SOURCES)} Known: {', '.join(SOURCES)}."
        )
    return read_recipe(SOURCES[source], values, f"data.{name}")


def _pretrain_runs(name: str, suite: Suite, data: Mapping[str, AnyData]) -> list[PlannedRun]:
    runs = []
    for task in suite.pretrain:
        settings = _pretrain_settings(suite, task)
        settings = _with_data(settings, PretrainRecipe, data, f"pretrain.{task}")
        recipe = read_recipe(PretrainRecipe, settings, f"pretrain.{task}")
        runs += [PlannedRun(name, "pretrain", task, "", seed, recipe) for seed in suite.seeds]
    return runs


def _pretrain_settings(suite: Suite, task: str) -> dict[str, Any]:
    """What the recipe of a pre-training run is read from."""
    merged = {"encoder": {}, **suite.defaults.get("pretrain", {}), **suite.pretrain[task]}
    return _resolve(merged, "encoder", suite.encoder, f"pretrain.{task}")


def _with_data(
    settings: Mapping[str, Any], model: type[Recipe], data: Mapping[str, AnyData], where: str
) -> dict[str, Any]:
    """``settings`` with the name of a data set replaced by what it names, which must be what ``model`` works on."""
    name = settings.get("data")
    wanted = SegmentationDataRecipe if model.model_fields["data"].annotation is SegmentationDataRecipe else DataRecipe
    if isinstance(name, str) and name in data and not isinstance(data[name], wanted):
        needs = "images with masks" if wanted is SegmentationDataRecipe else "images"
        fitting = [other for other, recipe in data.items() if isinstance(recipe, wanted)]
        raise UserError(
            f"{where}.data: expected a set of {needs}, found {name}, whose source is {data[name].source}. "
            f"Fitting sets: {listed(fitting, 20) or 'none'}."
        )
    return _resolve(settings, "data", data, where)


def _downstream_runs(name: str, suite: Suite, data: Mapping[str, AnyData]) -> list[PlannedRun]:
    runs = []
    for task, table in suite.downstream.items():
        where = f"downstream.{task}"
        if table.kind not in TASKS:
            raise UserError(
                f"{where}.kind: no such task {table.kind!r}.{nearest(table.kind, TASKS)} Known: {', '.join(TASKS)}."
            )
        merged = {**suite.defaults.get(table.kind, {}), "kind": table.kind, **(table.model_extra or {})}
        if "encoder" in merged:
            raise UserError(f"{where}.encoder: a task is run for the encoder of every method; set it in [method.NAME].")
        merged = _with_data(merged, TASKS[table.kind], data, where)
        for method in table.methods if table.methods is not None else suite.method:
            if method not in suite.method:
                raise UserError(f"{where}.methods: no such method {method!r}.{nearest(method, suite.method)}")
            source, needed = _encoder_source(suite, method)
            recipe = read_recipe(TASKS[table.kind], {**merged, "encoder": source}, where, also=TaskTable.model_fields)
            runs += [
                PlannedRun(
                    name, "downstream", task, method, seed, recipe, f"pretrain/{needed}/seed{seed}" if needed else None
                )
                for seed in suite.seeds
            ]
    return runs


def _robustness_runs(name: str, suite: Suite, tasks: list[PlannedRun]) -> list[PlannedRun]:
    runs = []
    for table, given in suite.robustness.items():
        where = f"robustness.{table}"
        fitting = {run.task for run in tasks if isinstance(run.recipe, FinetuneRecipe)}
        for task in given.tasks:
            if task not in fitting:
                raise UserError(
                    f"{where}.tasks: expected fine-tunings, found {task!r}.{nearest(task, fitting)} "
                    f"Fitting tasks: {listed(sorted(fitting), 20) or 'none'}."
                )
        measured = [run for run in tasks if run.task in given.tasks]
        methods = list(dict.fromkeys(run.method for run in measured))
        for key, rows, known in (
            ("methods", given.methods, methods),
            ("classifiers", given.classifiers, list(suite.classifier)),
        ):
            for row in rows or ():
                if row not in known:
                    told = f"in its tasks, {listed(given.tasks) or 'none'}" if key == "methods" else "in the suite file"
                    raise UserError(f"{where}.{key}: there is no {row!r} {told}.{nearest(row, known)}")
        for method in methods if given.methods is None else given.methods:
            tunings = list(dict.fromkeys(run.task for run in measured if run.method == method))
            if len(tunings) > 1:
                raise UserError(
                    f"{where}.tasks: {' and '.join(tunings)} each fine-tune {method}, and a table has one classifier of a "
                    "method. Name one of these tasks in it, and the others in a [robustness.NAME] of their own."
                )
        settings = {**suite.defaults.get("robustness", {}), **(given.model_extra or {})}
        for shifted in given.sets:
            settings["set"] = _shifted(suite, shifted, where)
            for run in measured:
                if given.methods is None or run.method in given.methods:
                    runs.append(_of_run(name, table, shifted, run, settings, where))
            chosen = suite.classifier if given.classifiers is None else given.classifiers
            runs += [_of_classifier(name, table, shifted, row, suite, settings, where) for row in chosen]
    return runs


def _of_run(
    suite: str, table: str, shifted: str, run: PlannedRun, settings: Mapping[str, Any], where: str
) -> PlannedRun:
    """The classifier of a fine-tuning run on a shifted set, seen as that run saw its images."""
    task = run.recipe
    assert isinstance(task, FinetuneRecipe)
    encoder = task.encoder.architecture
    source = {"kind": "run", "encoder": encoder.label or encoder.model}
    values = {"image_size": task.side, "eval_crop": task.eval_crop, **settings, "classifier": source}
    recipe = read_recipe(RobustnessRecipe, values, where, also=RobustnessTable.model_fields)
    return PlannedRun(suite, "robustness", f"{table}/{shifted}", run.method, run.seed, recipe, run.name)


def _of_classifier(
    name: str, table: str, shifted: str, row: str, suite: Suite, settings: Mapping[str, Any], where: str
) -> PlannedRun:
    """A classifier that no run of the suite made, on a shifted set; under the suite's first seed, as it has none."""
    given = suite.classifier[row]
    source = {
        "kind": "checkpoint" if given.checkpoint else "timm", "model": given.model, "path": given.checkpoint,
        "encoder": given.encoder or given.model,
    }  # fmt: skip
    values = {**settings, "classifier": source}
    if given.image_size is not None:
        values["image_size"] = given.image_size
    recipe = read_recipe(RobustnessRecipe, values, where, also=RobustnessTable.model_fields)
    return PlannedRun(name, "robustness", f"{table}/{shifted}", row, suite.seeds[0], recipe)


def _shifted(suite: Suite, name: str, where: str) -> dict[str, Any]:
    """What the recipe of a shifted set is read from: of the suite file, or published."""
    if name in suite.shifted:
        own = suite.shifted[name]
        return {**own.model_dump(), "label": own.label or name}
    if name in PUBLISHED:
        return PUBLISHED[name].recipe.model_dump()
    known = [*suite.shifted, *PUBLISHED]
    raise UserError(
        f"{where}.sets: there is neither a [shifted.{name}] in the suite file nor a published set {name!r}."
        f"{nearest(name, known)} Known: {', '.join(known)}."
    )


def _encoder_source(suite: Suite, method: str) -> tuple[dict[str, Any], str | None]:
    """The ``encoder`` of a downstream recipe, and the pre-training run it waits for."""
    row = suite.method[method]
    if row.pretrain is None:
        kind = "timm" if row.timm else "checkpoint" if row.checkpoint else "scratch"
        named = _resolve({"encoder": row.encoder}, "encoder", suite.encoder, f"method.{method}")
        return {"architecture": named["encoder"], "kind": kind, "path": row.checkpoint or ""}, None
    if row.pretrain not in suite.pretrain:
        raise UserError(
            f"method.{method}.pretrain: no such run {row.pretrain!r}.{nearest(row.pretrain, suite.pretrain)} Known: {', '.join(suite.pretrain)}."
        )
    return {"architecture": _pretrain_settings(suite, row.pretrain)["encoder"], "kind": "run"}, row.pretrain


def _resolve(settings: Mapping[str, Any], key: str, known: Mapping[str, Recipe], where: str) -> dict[str, Any]:
    """``settings`` with the name under ``key`` replaced by what it names."""
    name = settings.get(key)
    if not isinstance(name, str):
        return dict(settings)
    if name not in known:
        raise UserError(
            f"{where}.{key}: there is no [{key}.{name}] in the suite file.{nearest(name, known)} Known: {listed(known, 20) or 'none'}."
        )
    return {**settings, key: {**known[name].model_dump(), "label": known[name].label or name}}  # type: ignore[attr-defined]


def _override(tables: dict[str, Any], assignment: str) -> None:
    """Apply one ``--set PATH=VALUE``; the value is read as TOML, and as plain text if it is not TOML."""
    path, equals, text = assignment.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {assignment}: expected PATH=VALUE, such as pretrain.lut.epochs=20.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = tables
    for depth, part in enumerate(parts[:-1]):
        inner = table.setdefault(part, {}) if parts[0] == "defaults" else table.get(part)
        if not isinstance(inner, dict):
            known = ", ".join(k for k, v in table.items() if isinstance(v, dict))
            raise UserError(
                f"--set {assignment}: the suite has no table {'.'.join(parts[: depth + 1])}.{nearest(part, table)} Tables there: {known or 'none'}."
            )
        table = inner
    table[parts[-1]] = value
