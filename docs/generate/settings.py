"""The pages of every setting, from the recipes.

The docstring below a setting says what it is. The source of its default is the docstring's last sentence, ``Source: MAE, table 1.``;
without one, the paragraph ``Source of the defaults: ...`` of the class that sets the default.
"""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from generate.markup import markdown, toml
from lutbench.kinds import KINDS
from lutbench.recipes.base import DataRecipe, EncoderRecipe, Recipe, Runtime, default_workers
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
        'applies. `known = "NAME"` starts from the settings of a dataset of {doc}`/generated/datasets`. `[shifted.NAME]` is a shifted '
        "test set.",
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

CHANGES = "*Changes results.*"
CHANGES_NONE = "*Changes no result.*"
CHOOSES = "*Chooses which runs there are; changes the result of none.*"
TABLE = "*A table: see its settings.*"

EFFECTS: Mapping[type[Recipe], Mapping[str, str]] = {
    Suite: {
        **dict.fromkeys(("title", "about", "kind", "decided", "compare", "cluster"), CHANGES_NONE),
        "seeds": CHOOSES,
        **dict.fromkeys(
            ("data", "encoder", "method", "defaults", "pretrain", "downstream", "classifier", "shifted", "robustness", "analysis", "sweep"),
            TABLE,
        ),
    },
    MethodRecipe: {**dict.fromkeys(("label", "published"), CHANGES_NONE), "like": CHOOSES},
    TaskTable: {**dict.fromkeys(("title", "published"), CHANGES_NONE), **dict.fromkeys(("methods", "draws", "at"), CHOOSES)},
    RobustnessTable: {"title": CHANGES_NONE, **dict.fromkeys(("sets", "tasks", "methods", "classifiers"), CHOOSES)},
    ClassifierTable: dict.fromkeys(("label", "encoder", "published"), CHANGES_NONE),
    SweepTable: {**dict.fromkeys(("title", "label"), CHANGES_NONE), **dict.fromkeys(("tasks", "methods"), CHOOSES)},
    Decided: dict.fromkeys(Decided.model_fields, CHANGES_NONE),
    DecidedComparison: dict.fromkeys(DecidedComparison.model_fields, CHANGES_NONE),
}  # fmt: skip
"""What the settings of tables do that are not settings of a run; those not listed change results."""


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
        "Each entry gives the type, the default, the source of the default, and what the setting **changes**. A setting that changes "
        "results is part of the identity of a run (see {doc}`/records`): another value makes another run. You can change the other "
        "settings, such as the number of loader processes, at any time. *Our choice* is a decision of this suite. On the page of "
        "pre-training, *(paper)* is LUT with its released code and documents.\n\n"
        "To change a setting for one command: `lutbench run tiny --set pretrain.lut.epochs=4`; for all runs of a kind: "
        "`--set defaults.pretrain.epochs=4`.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"
    )
    return written


def _settings_page(page: SettingsPage) -> str:
    parts = [f"# {page.title}", page.about]
    for name, recipe in page.tables.items():
        parts += [f"## {name}"] if len(page.tables) > 1 else []
        parts += [markdown(recipe.__doc__ or ""), *_settings(name, recipe)]
    return "\n\n".join(parts) + "\n"


def _settings(table: str, recipe: type[Recipe]) -> Iterator[str]:
    """Yield an entry for every setting of a recipe, in the order of its source."""
    schema, described = recipe.model_json_schema(), _descriptions(recipe)
    for name, field in recipe.model_fields.items():
        shape, (text, source) = schema["properties"][name], described[name]
        default = "required" if field.is_required() else _default(field)
        effect = _effect(recipe, name)
        cited = f" Source: {'you set it' if field.is_required() else markdown(source)}." if effect == CHANGES else ""
        yield (
            f"::::{{confval}} {table}.{name}\n:type: {_type(shape)}\n:default: {default}\n\n"
            f"{markdown(text)} {effect}{cited}\n::::"
        )


def _effect(recipe: type[Recipe], name: str) -> str:
    """Return what a setting changes."""
    if Runtime in recipe.model_fields[name].metadata:
        return CHANGES_NONE
    listed = next((EFFECTS[one] for one in recipe.__mro__ if one in EFFECTS), {})
    return listed.get(name, CHANGES)


def _descriptions(recipe: type[Recipe]) -> dict[str, tuple[str, str]]:
    """Return by setting its docstring without the source, and the source of its default, without full stop.

    Both are of the last of the recipe and those that it extends that has them. pydantic can read docstrings too, but then does so
    whenever a command starts.
    """
    texts: dict[str, str] = {}
    sources: dict[str, str] = {}
    for one in reversed(recipe.__mro__):
        if issubclass(one, Recipe):
            (body,) = ast.parse(inspect.getsource(one)).body
            assert isinstance(body, ast.ClassDef)
            of_class = _source(SOURCE_OF_DEFAULTS, one.__doc__ or "")
            for setting, below in zip(body.body, [*body.body[1:], None], strict=True):
                if isinstance(setting, ast.AnnAssign) and isinstance(setting.target, ast.Name):
                    name, text = setting.target.id, _text(below)
                    sources[name] = _source(SOURCE, text) or of_class
                    texts[name] = SOURCE.sub("", text) or texts.get(name, "")
    return {name: (texts[name], sources[name]) for name in recipe.model_fields}


SOURCE = re.compile(r"(?:^|\s+)Source: (.+?)\.?\s*$", re.DOTALL)
SOURCE_OF_DEFAULTS = re.compile(r"^\s*Source of the defaults: (.+?)\.?\s*$", re.DOTALL | re.MULTILINE)


def _source(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return re.sub(r"\s+", " ", found[1]) if found else ""


def _text(below: ast.stmt | None) -> str:
    """Return the docstring that a statement is; empty if it is none."""
    match below:
        case ast.Expr(value=ast.Constant(value=str(docstring))):
            return inspect.cleandoc(docstring)
    return ""


def _default(field: Any) -> str:
    if field.default_factory is default_workers:
        return "depends on the machine"
    if field.default_factory_takes_validated_data:
        return "depends on other settings"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "not given"
    if isinstance(value, Recipe):
        return "the defaults of its table"
    return "no table" if value == {} else f"`{toml(value)}`"


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
