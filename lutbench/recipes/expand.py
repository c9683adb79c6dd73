"""From the tables of a suite file to the runs that they make. What a stage's runs start from decides the form of its tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lutbench.errors import UserError, listed, nearest
from lutbench.kinds import KINDS, STAGES, StartsFrom, kinds_of
from lutbench.recipes.base import DataRecipe, Recipe, read_recipe
from lutbench.recipes.robustness import RobustnessTable
from lutbench.recipes.segmentation import SegmentationDataRecipe
from lutbench.recipes.suite import PlannedRun, Suite, TaskTable

AnyData = DataRecipe | SegmentationDataRecipe


def expand(name: str, suite: Suite, data: Mapping[str, AnyData], known_sets: Mapping[str, Recipe]) -> list[PlannedRun]:
    """Return the runs of all stages, each after the one it needs.

    ``data`` are the suite's datasets, ``known_sets`` the robustness datasets of the literature.

    Raises:
        UserError: for every setting that is unknown, mistyped, out of range or contradictory.
    """
    forms: dict[StartsFrom, Callable[[str, list[PlannedRun]], list[PlannedRun]]] = {
        "nothing": lambda stage, _: _from_nothing(name, suite, data, stage),
        "encoder": lambda stage, _: _from_encoders(name, suite, data, stage),
        "classifier": lambda stage, runs: _from_classifiers(name, suite, runs, known_sets, stage),
    }
    runs: list[PlannedRun] = []
    for stage in STAGES:
        runs += forms[next(iter(kinds_of(stage).values())).starts_from](stage, runs)
    return runs


def resolve(settings: Mapping[str, Any], key: str, known: Mapping[str, Recipe], where: str) -> dict[str, Any]:
    """Return ``settings`` with the name under ``key`` replaced by what it names."""
    name = settings.get(key)
    if not isinstance(name, str):
        return dict(settings)
    if name not in known:
        raise UserError(
            f"{where}.{key}: there is no [{key}.{name}] in the suite file.{nearest(name, known)} "
            f"Known: {listed(known, 20) or 'none'}."
        )
    return {**settings, key: {**known[name].model_dump(), "label": known[name].label or name}}  # type: ignore[attr-defined]


def _from_nothing(name: str, suite: Suite, data: Mapping[str, AnyData], stage: str) -> list[PlannedRun]:
    """Return the runs of a stage whose tables are a run each: pre-training."""
    ((key, kind),) = kinds_of(stage).items()
    runs = []
    for task, table in getattr(suite, stage).items():
        where = f"{stage}.{task}"
        settings = _with_encoder(suite, {**suite.defaults.get(key, {}), **table}, where)
        recipe = read_recipe(kind.recipe, _with_data(settings, kind.recipe, data, where), where)
        runs += [PlannedRun(name, kind, task, "", seed, recipe) for seed in suite.seeds]
    return runs


def _from_encoders(name: str, suite: Suite, data: Mapping[str, AnyData], stage: str) -> list[PlannedRun]:
    """Return the runs of a stage whose tables are tasks, each run for the encoder of every method or of those it lists."""
    kinds, runs = kinds_of(stage), []
    for task, table in getattr(suite, stage).items():
        where = f"{stage}.{task}"
        if table.kind not in kinds:
            raise UserError(
                f"{where}.kind: no such task {table.kind!r}.{nearest(table.kind, kinds)} Known: {', '.join(kinds)}."
            )
        kind = kinds[table.kind]
        settings = {**suite.defaults.get(table.kind, {}), "kind": table.kind, **(table.model_extra or {})}
        if "encoder" in settings:
            raise UserError(f"{where}.encoder: a task is run for the encoder of every method; set it in [method.NAME].")
        settings = _with_data(settings, kind.recipe, data, where)
        for method in table.methods if table.methods is not None else suite.method:
            if method not in suite.method:
                raise UserError(f"{where}.methods: no such method {method!r}.{nearest(method, suite.method)}")
            source, pretrain = _encoder_source(suite, method)
            recipe = read_recipe(kind.recipe, {**settings, "encoder": source}, where, also=TaskTable.model_fields)
            for seed in suite.seeds:
                needs = f"pretrain/{pretrain}/seed{seed}" if pretrain else None
                runs.append(PlannedRun(name, kind, task, method, seed, recipe, needs))
    return runs


def _from_classifiers(
    name: str, suite: Suite, tasks: Sequence[PlannedRun], known_sets: Mapping[str, Recipe], stage: str
) -> list[PlannedRun]:
    """Return the runs of a stage whose tables name datasets, on each of which finished classifiers are measured."""
    ((key, kind),) = kinds_of(stage).items()
    runs = []
    for table, given in getattr(suite, stage).items():
        where = f"{stage}.{table}"
        measured = _measured(suite, given, tasks, where)
        rows = suite.classifier if given.classifiers is None else given.classifiers
        shared = {**suite.defaults.get(key, {}), **(given.model_extra or {})}
        for dataset in given.sets:
            settings = {**shared, "set": _robustness_dataset(suite, dataset, known_sets, where)}
            task = f"{table}/{dataset}"
            for run in measured:  # its images are seen as in fine-tuning, unless the table says otherwise
                as_tuned = {"image_size": run.recipe.side, "eval_crop": run.recipe.eval_crop}  # type: ignore[attr-defined]
                source = {"kind": "run", "encoder": run.recipe.encoder_label}
                values = {**as_tuned, **settings, "classifier": source}
                recipe = read_recipe(kind.recipe, values, where, also=RobustnessTable.model_fields)
                runs.append(PlannedRun(name, kind, task, run.method, run.seed, recipe, run.name))
            for row in rows:  # no run of the suite made it, so it has no seed: it is under the suite's first
                values = {**settings, **_classifier_settings(suite, row)}
                recipe = read_recipe(kind.recipe, values, where, also=RobustnessTable.model_fields)
                runs.append(PlannedRun(name, kind, task, row, suite.seeds[0], recipe))
    return runs


def _measured(suite: Suite, given: RobustnessTable, tasks: Sequence[PlannedRun], where: str) -> list[PlannedRun]:
    """Return the runs whose classifiers a table is about; every name in it is checked."""
    fitting = {run.task for run in tasks if run.kind is KINDS["finetune"]}
    for task in given.tasks:
        if task not in fitting:
            raise UserError(
                f"{where}.tasks: expected fine-tunings, found {task!r}.{nearest(task, fitting)} "
                f"Fitting tasks: {listed(sorted(fitting), 20) or 'none'}."
            )
    measured = [run for run in tasks if run.task in given.tasks]
    methods = list(dict.fromkeys(run.method for run in measured))
    for key, rows, known, of in (
        ("methods", given.methods, methods, f"in its tasks, {listed(given.tasks) or 'none'}"),
        ("classifiers", given.classifiers, list(suite.classifier), "in the suite file"),
    ):
        for row in rows or ():
            if row not in known:
                raise UserError(f"{where}.{key}: there is no {row!r} {of}.{nearest(row, known)}")
    for method in methods if given.methods is None else given.methods:
        tunings = list(dict.fromkeys(run.task for run in measured if run.method == method))
        if len(tunings) > 1:
            raise UserError(
                f"{where}.tasks: {' and '.join(tunings)} each fine-tune {method}, and a table has one classifier of a "
                "method. Name one of these tasks in it, and the others in a [robustness.NAME] of their own."
            )
    return [run for run in measured if given.methods is None or run.method in given.methods]


def _classifier_settings(suite: Suite, row: str) -> dict[str, Any]:
    """Return what a ``[classifier.NAME]`` says of the classifier and its input."""
    given = suite.classifier[row]
    source = {
        "kind": "checkpoint" if given.checkpoint else "timm",
        "model": given.model,
        "path": given.checkpoint,
        "encoder": given.encoder or given.model,
    }
    return {"classifier": source} | ({} if given.image_size is None else {"image_size": given.image_size})


def _robustness_dataset(suite: Suite, name: str, known_sets: Mapping[str, Recipe], where: str) -> dict[str, Any]:
    """Return the settings of a robustness dataset, of the suite file or of the literature."""
    if name in suite.shifted:
        own = suite.shifted[name]
        return {**own.model_dump(), "label": own.label or name}
    if name in known_sets:
        return known_sets[name].model_dump()
    known = [*suite.shifted, *known_sets]
    raise UserError(
        f"{where}.sets: there is neither a [shifted.{name}] in the suite file nor a published set {name!r}."
        f"{nearest(name, known)} Known: {', '.join(known)}."
    )


def _with_encoder(suite: Suite, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    return resolve({"encoder": {}, **settings}, "encoder", suite.encoder, where)


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
    return resolve(settings, "data", data, where)


def _encoder_source(suite: Suite, method: str) -> tuple[dict[str, Any], str | None]:
    """Return the ``encoder`` of a task's recipe, and the pre-training run that it waits for."""
    row = suite.method[method]
    if row.pretrain is None:
        kind = "timm" if row.timm else "checkpoint" if row.checkpoint else "scratch"
        named = resolve({"encoder": row.encoder}, "encoder", suite.encoder, f"method.{method}")
        return {"architecture": named["encoder"], "kind": kind, "path": row.checkpoint or ""}, None
    if row.pretrain not in suite.pretrain:
        raise UserError(
            f"method.{method}.pretrain: no such run {row.pretrain!r}.{nearest(row.pretrain, suite.pretrain)} "
            f"Known: {', '.join(suite.pretrain)}."
        )
    settings = {**suite.defaults.get("pretrain", {}), **suite.pretrain[row.pretrain]}
    encoder = _with_encoder(suite, settings, f"pretrain.{row.pretrain}")["encoder"]
    return {"architecture": encoder, "kind": "run"}, row.pretrain
