"""The pages of every setting, from the recipes."""

import ast
import inspect
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from generate.markup import markdown, toml
from lutbench.kinds import KINDS
from lutbench.recipes.base import DataRecipe, EncoderRecipe, Recipe, Runtime
from lutbench.recipes.budget import BudgetRecipe
from lutbench.recipes.cluster import ClusterRecipe
from lutbench.recipes.decided import Decided, DecidedComparison
from lutbench.recipes.retrieval import RevisitedDataRecipe
from lutbench.recipes.robustness import ClassifierTable, RobustnessDatasetRecipe, RobustnessTable
from lutbench.recipes.segmentation import SegmentationDataRecipe
from lutbench.recipes.suite import AnalysisTable, MethodRecipe, Suite, SweepTable, TaskTable


class SettingsPage(NamedTuple):
    """A page of settings: of one table of a suite file, or of a few that belong together."""

    file: str
    title: str
    about: str
    tables: Mapping[str, type[Recipe]]
    """By the name that comes before that of a setting, the recipe."""


SUITE_PAGES = (
    SettingsPage(
        "suite",
        "The suite file",
        "The settings at the top of a suite file, and the names of its tables.",
        {"suite": Suite},
    ),
    SettingsPage(
        "rows",
        "Encoders and methods",
        "`[encoder.NAME]` is an architecture. `[method.NAME]` is a row of the tables and states where its encoder comes from.",
        {"encoder": EncoderRecipe, "method": MethodRecipe},
    ),
    SettingsPage(
        "tables",
        "Tasks, sweeps and decisions",
        "Settings that every task has in addition to those of its kind: `[downstream.NAME]`, `[analysis.NAME]`, `[robustness.NAME]`. "
        "`[sweep.NAME]` varies a setting, `budget` sets epochs by compute, `[decided]` states what will count as an answer.",
        {
            "task": TaskTable,
            "analysis-table": AnalysisTable,
            "robustness-table": RobustnessTable,
            "classifier": ClassifierTable,
            "sweep": SweepTable,
            "budget": BudgetRecipe,
            "decided": Decided,
            "decided.primary": DecidedComparison,
        },
    ),
    SettingsPage(
        "data",
        "Datasets",
        "`[data.NAME]` is a dataset for training and evaluation; its `source` decides which of the first three groups of settings "
        "applies. `[shifted.NAME]` is a shifted test set.",
        {
            "data": DataRecipe,
            "scenes": SegmentationDataRecipe,
            "revisited": RevisitedDataRecipe,
            "shifted": RobustnessDatasetRecipe,
        },
    ),
    SettingsPage(
        "jobs",
        "Jobs on a cluster",
        "`[cluster]` and `[cluster.PATTERN]`: the resources of SLURM jobs. No setting here changes a result. See {doc}`/cluster`.",
        {"cluster": ClusterRecipe},
    ),
)
"""Pages of settings beside one for each kind of run."""


def settings_pages() -> dict[str, str]:
    """Return the page of every table and of every kind of run, and their index."""
    kinds = [
        SettingsPage(
            f"kind-{kind.name}",
            f"Runs of kind {kind.name}",
            f"Settings of every run of kind `{kind.name}` (stage `{kind.stage}`). Set them for all runs of this kind in "
            f"`[defaults.{kind.name}]`. The code is `{kind.module_name.replace('.', '/')}.py`.",
            {kind.name: kind.recipe},
        )
        for kind in KINDS.values()
    ]
    pages = [*SUITE_PAGES, *kinds]
    written = {f"settings/{page.file}.md": _settings_page(page) for page in pages}
    entries = "\n".join(page.file for page in pages)
    written["settings/index.md"] = (
        "# Every setting\n\n"
        "These pages are generated from the code that checks a suite file, so they list every setting. Any other key in a suite "
        "file is an error; the message suggests the nearest known name.\n\n"
        "Each entry gives the type, the default, and whether the setting **changes results**. A setting that does is part of the "
        "identity of a run (see {doc}`/records`): another value makes another run. You can change the other settings, such as the "
        "number of loader processes, at any time. The source of a default is in brackets: *(paper)* is the LUT paper or its "
        "release, and *our choice* is a decision of this suite.\n\n"
        "To change a setting for one command: `lutbench run tiny --set pretrain.lut.epochs=4`; for all runs of a kind: "
        "`--set defaults.pretrain.epochs=4`.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"
    )
    return written


def _settings_page(page: SettingsPage) -> str:
    parts = [f"# {page.title}", page.about]
    for name, recipe in page.tables.items():
        if len(page.tables) > 1:
            parts += [f"## {name}", markdown(recipe.__doc__ or "")]
        parts += _settings(name, recipe)
    return "\n\n".join(parts) + "\n"


def _settings(table: str, recipe: type[Recipe]) -> Iterator[str]:
    """Yield an entry for every setting of a recipe, in the order of its source."""
    schema, described = recipe.model_json_schema(), _descriptions(recipe)
    names = list(recipe.model_fields)
    for place, (name, field) in enumerate(recipe.model_fields.items()):
        shape = schema["properties"][name]
        if name in described:
            text = markdown(described[name])
        elif _names_a_table(shape):
            text = f"The name of {_names_a_table(shape)}."
        else:  # one docstring stands below a few settings that it is about
            after = (other for other in names[place + 1 :] if other in described)
            before = (other for other in reversed(names[:place]) if other in described)
            near = next(after, None) or next(before, None)
            text = f"See `{near}`." if near else ""
        default = "required" if field.is_required() else _default(field)
        effect = "*Changes no result.*" if Runtime in field.metadata else "*Changes results.*"
        yield (f"::::{{confval}} {table}.{name}\n:type: {_type(shape)}\n:default: {default}\n\n{text} {effect}\n::::")


def _descriptions(recipe: type[Recipe]) -> dict[str, str]:
    """Return the docstrings below the settings of a recipe and of those that it extends, by the settings' names.

    pydantic can read them too, but then does so whenever a command starts.
    """
    found: dict[str, str] = {}
    for one in reversed(recipe.__mro__):
        if issubclass(one, Recipe):
            (body,) = ast.parse(inspect.getsource(one)).body
            assert isinstance(body, ast.ClassDef)
            for setting, text in pairwise(body.body):
                match setting, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                        found[name] = inspect.cleandoc(docstring)
    return found


def _default(field: Any) -> str:
    if field.default_factory is not None:
        made = field.default_factory.__name__
        return {"list": "`[]`", "dict": "no table"}.get(made, "depends on other settings or on the machine")
    if field.default is None:
        return "not given"
    if isinstance(field.default, Recipe):
        return "the defaults of its table"
    return f"`{toml(field.default)}`"


def _names_a_table(schema: Mapping[str, Any]) -> str:
    """Return which table of a suite file a setting names; the empty string if it is none of those."""
    referred = str(schema.get("$ref", "")).rpartition("/")[2]
    if referred == EncoderRecipe.__name__:
        return "an `[encoder.NAME]`"
    return "a `[data.NAME]`" if referred.endswith("DataRecipe") else ""


PLAIN = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "object": "table"}


def _type(schema: Mapping[str, Any]) -> str:
    """Return in words what a JSON schema allows."""
    if "$ref" in schema:
        return "text" if _names_a_table(schema) else "a table of its own"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(part) for part in schema["anyOf"] if part.get("type") != "null"))
    if "enum" in schema:
        return " or ".join(f"`{toml(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{toml(schema['const'])}`"
    if schema.get("type") == "array":
        return f"list of: {_type(schema.get('items', {}))}"
    words = PLAIN.get(schema.get("type", ""), "any")
    bounds = [
        f"{word} {schema[key]:,}"
        for key, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if key in schema
    ]
    return ", ".join([words, *bounds])
