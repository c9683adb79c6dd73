"""Pages of the documentation that follow from the code: every setting, command, dataset and module; and the notebooks.

Settings are read from the recipes, as they check a suite file; commands from the command line itself; modules from their sources,
without importing them. What is written is MyST Markdown.
"""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from lutbench.data.catalogue import CATALOGUE, KnownDataset
from lutbench.kinds import KINDS
from lutbench.recipes.base import DataRecipe, EncoderRecipe, Recipe, Runtime
from lutbench.recipes.budget import BudgetRecipe
from lutbench.recipes.cluster import ClusterRecipe
from lutbench.recipes.decided import Decided, DecidedComparison
from lutbench.recipes.retrieval import RevisitedDataRecipe
from lutbench.recipes.robustness import ClassifierTable, RobustnessDatasetRecipe, RobustnessTable
from lutbench.recipes.segmentation import SegmentationDataRecipe
from lutbench.recipes.suite import AnalysisTable, MethodRecipe, Suite, SweepTable, TaskTable

ROOT = Path(__file__).parents[1]
PACKAGES = ("lutbench", "pretrain", "downstream", "robustness", "analysis")


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


def write_pages(folder: Path) -> None:
    """Write all generated pages into ``folder``, anew; a page that is already as it should be keeps its time, so that it isn't built again."""
    pages = {**_settings_pages(), **_command_pages(), **_dataset_pages(), **_module_pages(), **_notebooks()}
    for path in [path for kind in ("*.md", "*.ipynb") for path in folder.rglob(kind)]:
        if path.relative_to(folder).as_posix() not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _notebooks() -> dict[str, str]:
    """Return the notebooks, which lie beside the documentation, and are run when it is built."""
    found = sorted((ROOT / "notebooks").glob("*.ipynb"))
    return {f"notebooks/{path.name}": path.read_text(encoding="utf-8") for path in found}


# Settings


def _settings_pages() -> dict[str, str]:
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
        elif names_a_table(shape):
            text = f"The name of {names_a_table(shape)}."
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


def names_a_table(schema: Mapping[str, Any]) -> str:
    """Return which table of a suite file a setting names; the empty string if it is none of those."""
    referred = str(schema.get("$ref", "")).rpartition("/")[2]
    if referred == EncoderRecipe.__name__:
        return "an `[encoder.NAME]`"
    return "a `[data.NAME]`" if referred.endswith("DataRecipe") else ""


def toml(value: object) -> str:
    """Return a value as a suite file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml(item) for item in value)}]"
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else str(value)


PLAIN = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "object": "table"}


def _type(schema: Mapping[str, Any]) -> str:
    """Return in words what a JSON schema allows."""
    if "$ref" in schema:
        return "text" if names_a_table(schema) else "a table of its own"
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


def markdown(text: str) -> str:
    """Return the Markdown of a docstring: roles and double backticks become code, and its lines one paragraph for each."""
    text = re.sub(r":\w+(?::\w+)?:`~?\.?([^`]+)`", r"`\1`", text)
    text = text.replace("``", "`")
    return "\n\n".join(re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text) if part.strip())


# Commands


def _command_pages() -> dict[str, str]:
    from typer.main import get_command

    from lutbench.cli import app

    root: Any = get_command(app)
    parts = [
        "# Every command",
        "Generated from the command line; `lutbench COMMAND -h` prints the same. How the commands work together: {doc}`/running`.",
        *_command(root, "lutbench"),
    ]
    return {"commands.md": "\n\n".join(parts) + "\n"}


def _command(command: Any, name: str) -> Iterator[str]:
    """Yield the section of a command, and those of the commands below it."""
    if name != "lutbench":
        yield f"## {name}"
    yield markdown(command.help or "")
    arguments = [
        one for one in command.params if one.param_type_name == "argument" and not getattr(one, "hidden", False)
    ]
    options = [one for one in command.params if one.param_type_name == "option" and not getattr(one, "hidden", False)]
    below = getattr(command, "commands", {})
    if name != "lutbench" and not below:
        given = [_metavar(one) if one.required else f"[{_metavar(one)}]" for one in arguments]
        yield f"```sh\n{' '.join([name, *given, *(['[OPTIONS]'] if options else [])])}\n```"
    rows = [_definition(f"`{_metavar(one)}`", one) for one in arguments]
    rows += [_definition(", ".join(f"`{flag}`" for flag in [*one.opts, *one.secondary_opts]), one) for one in options]
    yield from rows
    for name_below, one in below.items():
        if not one.hidden:
            yield from _command(one, f"{name} {name_below}")


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _definition(term: str, parameter: Any) -> str:
    """Return one argument or option as a term and its definition."""
    takes = getattr(parameter, "metavar", None) if parameter.param_type_name == "option" else None
    annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    choices = (
        get_args(annotation)
        if get_origin(annotation) is Literal
        else getattr(getattr(parameter, "type", None), "choices", ())
    )
    value = f" `{takes or '|'.join(map(str, choices))}`" if takes or choices else ""
    default = parameter.default
    said = [markdown(parameter.help or "")]
    if isinstance(default, int | float | str | Path) and not isinstance(default, bool) and str(default):
        said.append(f"Default: `{default}`.")
    if variable := getattr(parameter, "envvar", None):
        said.append(f"Environment variable: `{variable}`.")
    return f"{term}{value}\n: {' '.join(said)}"


# Datasets


def _dataset_pages() -> dict[str, str]:
    """Return the page of the known datasets, from the catalogue: those to train on and to search in, then the shifted test sets."""
    known = list(CATALOGUE.values())
    shifted = [one for one in known if isinstance(one.recipe, RobustnessDatasetRecipe)]
    parts = [
        "# Every dataset",
        "Generated from `lutbench/data/sets.toml`, which the code reads; `lutbench data list NAME` prints the same, and whether a "
        "dataset is on your disk. DIR is the folder of the dataset below the data root. To use one in a suite file, write "
        '`known = "NAME"` in its `[data.NAME]` table ({doc}`/own-data`), or list the name in the `sets` of a `[robustness.NAME]` '
        "({doc}`/tasks`).",
        "## Datasets for training and evaluation",
        *(_dataset(one) for one in known if one not in shifted),
        "## Shifted test sets",
        "How each protocol is computed: {doc}`/protocols`.",
        *(_dataset(one) for one in shifted),
    ]
    return {"datasets.md": "\n\n".join(parts) + "\n"}


def _dataset(known: KnownDataset) -> str:
    """Return the section of one dataset: a list of its properties, without those that are not known."""
    counts = ", ".join(f"{count:,} {split}" for split, count in known.images.items())
    metric, scoring = known.recipe.printed_metric, ""
    if isinstance(known.recipe, RobustnessDatasetRecipe):
        counts = known.recipe.image_counts
        scoring = f"logits: {', '.join(known.recipe.logits)}; preprocessing: {', '.join(known.recipe.preprocessing)}"
    rows = {
        "Source": known.paper,
        "Images": counts,
        "Classes": f"{known.classes:,}" if known.classes else "",
        "Splits and metric": known.split,
        "Printed metric": metric,
        "Protocol": known.protocol,
        "Scored with": scoring,
        "Files": f"`{known.layout}`",
        "Size on disk": f"{known.gigabytes:g} GB" if known.gigabytes else "",
        "Licence": known.terms,
    }
    listed = "\n".join(f"- **{name}**: {_plain(' '.join(text.split()))}" for name, text in rows.items() if text)
    steps = "\n\n".join(
        f"```sh\n{inspect.cleandoc(text)}\n```" if command else _plain(text)  # as lutbench.data.describe prints them
        for command, lines in groupby(known.get.strip("\n").splitlines(), lambda line: line.startswith(" "))
        for text in ["\n".join(lines)]
        if text.strip()
    )
    return f"### {known.name}\n\n{known.title}\n\n{listed}\n\n**How to get it**\n\n{steps}"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is: an asterisk, as in ``*.jpg``, begins no emphasis; code keeps its own."""
    return "`".join(part if place % 2 else part.replace("*", r"\*") for place, part in enumerate(text.split("`")))


# Modules


def _module_pages() -> dict[str, str]:
    """Return a page for each package that lists its modules, from their sources."""
    pages = {}
    for package in PACKAGES:
        parts = [f"# {package}"]
        for path in sorted((ROOT / package).rglob("*.py"), key=lambda path: (path.parent, path.name)):
            if path.name != "__main__.py":
                parts += _module(path)
        pages[f"modules/{package}.md"] = "\n\n".join(parts) + "\n"
    entries = "\n".join(PACKAGES)
    pages["modules/index.md"] = (
        "# Every module\n\n"
        "Each file of the code, with its public functions and classes and the first sentence of their docstrings. Generated from "
        "the sources. Where to start reading: {doc}`/reading`. What you can use from your own code: {doc}`/python`.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"
    )
    return pages


def _module(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name = path.relative_to(ROOT).as_posix()
    said = ast.get_docstring(tree)
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node)
    ]
    if not said and not public:
        return
    yield f"## {name}"
    if said:
        yield markdown(re.split(r"::\n|\n\s*\n(?=>>>|- )", said)[0])
    for node in public:
        signature = node.name if isinstance(node, ast.ClassDef) else f"{node.name}({_arguments(node.args)})"
        first = markdown(ast.get_docstring(node) or "").split("\n\n")[0]
        yield f"`{signature}`\n: {first}"


def _arguments(arguments: ast.arguments) -> str:
    names = [one.arg for one in [*arguments.posonlyargs, *arguments.args]]
    if arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        names.append("*")
    names += [one.arg for one in arguments.kwonlyargs]
    return ", ".join(names + ([f"**{arguments.kwarg.arg}"] if arguments.kwarg else []))
