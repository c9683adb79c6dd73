"""``lutbench add``: write a short suite file that adds an encoder, given by its weights, as a row to the tables of another suite."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import timm
import torch

from lutbench.errors import UserError, listed
from lutbench.files import whole_file
from lutbench.models.architectures import architecture_of
from lutbench.models.configurations import check_configuration, configuration_beside
from lutbench.models.encoders import create_encoder, encode, geometry_of, has_class_token, is_plain
from lutbench.models.export import export_of
from lutbench.models.formats import encoder_in
from lutbench.models.licences import licence_of, timms_licence
from lutbench.models.meta import shapes_only
from lutbench.models.preprocessing import preprocessing_of
from lutbench.models.pretrained import check_pretrained, fitted, load_encoder
from lutbench.models.weights import read_shapes
from lutbench.progress import console
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.downstream import EncoderSource
from lutbench.recipes.loading import load_draft, load_suite
from lutbench.recipes.suite import LoadedSuite
from lutbench.run import open_run
from lutbench.run_status import weights_problem
from lutbench.smoke.mark import refuse_smoke_weights
from lutbench.workspace import Workspace


class Choices(NamedTuple):
    """The user's choices for an encoder, where the weights do not decide or the user wants something else."""

    label: str = ""
    model: str = ""
    """timm name of the architecture."""
    part: str = ""
    """Which of several encoders in the file."""
    image_size: int | None = None
    like: str = ""
    """The row of the base suite whose settings it takes."""
    heads: int | None = None
    """Attention heads of a plain ViT, which its weights do not show."""


class Tried(NamedTuple):
    """An encoder whose weights were read and loaded, and which has encoded an image."""

    source: EncoderSource
    said: list[str]
    """What was read and what was assumed, in sentences."""
    class_token: bool


def add_row(given: str, base: str, choices: Choices, file: Path | None = None) -> None:
    """Load the weights ``given``, a file, a folder or a timm name, and write a suite file that extends ``base`` by a row for them.

    The file is ``file``, or is named after the label or the weights, in the current folder. Prints what was read, what was assumed,
    the tasks of the row, and the next command.

    Raises:
        UserError: if the suite or the weights do not exist, the weights cannot be read, the file exists already or is no suite file,
            or the row does not fit the base suite.
    """
    suite = load_suite(base)
    name = _free_name(choices.label or _stem(given), suite)
    path = (file or Path(f"{name}.toml")).expanduser()
    if path.suffix != ".toml":
        raise UserError(f"--file {path}: expected the name of a suite file, which ends in .toml. Give another one.")
    if path.exists():
        raise UserError(f"{path} exists already. Choose another name with --file FILE.toml or --label.")
    tried = try_weights(given, choices)
    text = suite_text(given, base, name, suite, tried, choices)
    refused = _refused(load_draft(text, path), name)
    text += "".join(f"\n{_table(table, {'methods': _rows(suite, table)})}\n" for table in refused)
    left_out = [f"{why} So {path.name} leaves it out of {table}" for table, why in refused.items()]
    for index, table in enumerate(refused):
        if table.startswith("analysis."):
            apart = text + _table_apart(suite, table, name, choices.label or name)
            if f"{table}-{name}" not in _refused(load_draft(apart, path), name):  # a grid of another size is no fault
                text = apart
                left_out[index] += f", and adds the table [{table}-{name}] for it"
    tasks = _tasks_of(load_draft(text, path), name)
    if rivals := _pretrained_beside(tasks, suite):
        pairs = _toml([[name, rival] for rival in rivals])
        text = text.replace("\n\n", f"\ncompare = {pairs}\n\n", 1)  # after the settings that come before the tables
    load_draft(text, path)
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    for sentence in [*tried.said, *_other_sizes(suite, tried.source.architecture), *(f"{one}." for one in left_out)]:
        console.print(sentence, soft_wrap=True)
    console.print(f"\n{path}:\n\n{text}", soft_wrap=True, highlight=False, markup=False)
    names = [f"{stage}/{task}" for stage, task in tasks]
    console.print(f"Tasks of the row: {listed(names, 30)}. Finished runs of {base} are reused.")
    console.print(
        f"Next: lutbench run {quote(str(path))} --only {name} --data-root DIR\nWithout --only, it also does the runs of {base} that "
        "have not finished.",
        soft_wrap=True,
    )


def try_weights(given: str, choices: Choices) -> Tried:
    """Read weights, load them into the timm model they belong to, and encode an image.

    Raises:
        UserError: if one of these steps fails.
    """
    path = Path(given).expanduser()
    if path.exists():
        refuse_smoke_weights(path)
        source, said = _of_file(path, choices)
    elif len(path.parts) > 1 or (path.suffix and not timm.is_model(given.partition(".")[0])):  # timm's may end in .TAG
        raise UserError(
            f"There is no file or folder of weights {given}. Check the path, or give the name of a timm model."
        )
    else:
        source, said = _of_timm(given, choices)
    side = source.architecture.image_size
    model = load_encoder(source, path if path.exists() else None).eval()
    if path.exists():
        check_configuration(configuration_beside(path), model, source.architecture.model)
    with torch.no_grad():
        features = encode(model, torch.zeros(1, 3, side, side), "mean")
    if not features.isfinite().all():
        raise UserError(
            f"{given}: the features of a constant image are not finite, so the weights are not usable. Give other weights."
        )
    prepared = preprocessing_of(source, path if path.exists() else None)
    said.append(f"Image size: {side} x {side} pixels, {prepared}.")
    return Tried(source, said, has_class_token(model))


def _of_file(path: Path, choices: Choices) -> tuple[EncoderSource, list[str]]:
    shapes, names = read_shapes(path), []
    if choices.model:
        with shapes_only():
            names = list(create_encoder(EncoderRecipe(model=choices.model)).state_dict())
    found = encoder_in(shapes, str(path), choices.part, names)
    licence = licence_of(path)
    said: list[str] = []
    export = export_of(path) if path.is_file() else None
    if choices.model:
        recipe = _named(choices.model, choices)
    elif export:
        recipe = export.recipe.model_copy(update={"image_size": choices.image_size or export.side})
        _check_heads(recipe, choices)
        said.append(
            f"Architecture: timm's {recipe.model}{_sizes(recipe)}, according to {path.with_suffix('.json').name} next to the weights."
        )
    else:
        heads = {"num_attention_heads": choices.heads} if choices.heads else {}
        recipe, assumed = architecture_of(found.tensors, configuration_beside(path) | heads, found.read_as)
        _check_heads(recipe, choices)
        recipe = recipe.model_copy(update={"image_size": choices.image_size or recipe.image_size})
        said += [f"Architecture: timm's {recipe.model}{_sizes(recipe)}.", *assumed]
    with shapes_only():
        found = fitted(found, str(path), recipe)[1]
    said.insert(0, f"{path}, {found}{f', licence: {licence}' if licence else ''}.")
    source = {"architecture": recipe, "kind": "checkpoint", "path": str(path), "part": choices.part}
    return EncoderSource.model_validate(source), said


def _of_timm(name: str, choices: Choices) -> tuple[EncoderSource, list[str]]:
    check_pretrained(name)
    licence = timms_licence(name)
    recipe = _named(name, choices)
    said = [f"Weights: timm's {name}{f', licence: {licence}' if licence else ''}."]
    return EncoderSource(architecture=recipe, kind="timm"), said


def _named(model: str, choices: Choices) -> EncoderRecipe:
    """Return the architecture of the timm ``model``, with the chosen number of heads and image size."""
    recipe = EncoderRecipe(model=model, image_size=choices.image_size or _own_size(model))
    if choices.heads and not (is_plain(recipe) and geometry_of(recipe).heads == choices.heads):
        recipe = recipe.model_copy(update={"heads": choices.heads})
    _check_heads(recipe, choices)
    return recipe


def _check_heads(recipe: EncoderRecipe, choices: Choices) -> None:
    """Raise UserError if an architecture cannot have the chosen number of heads."""
    if not choices.heads:
        return
    if not is_plain(recipe):
        raise UserError(
            f"--heads is for plain Vision Transformers, but these are the weights of a {recipe.model}. Leave it out."
        )
    sizes = geometry_of(recipe)
    if sizes.width % choices.heads:
        raise UserError(
            f"--heads {choices.heads}: expected a divisor of the width, {sizes.width}. Give another number."
        )
    if sizes.heads != choices.heads:
        raise UserError(f"--heads {choices.heads}: the weights have {sizes.heads} heads. Leave --heads out.")


def suite_text(given: str, base: str, name: str, suite: LoadedSuite, tried: Tried, choices: Choices) -> str:
    """Return the text of the suite file: its base, its title, the architecture if the base does not have it, and the row."""
    recipe = tried.source.architecture
    same = (key for key, known in suite.config.encoder.items() if is_same(known, recipe))
    encoder = next(same, "")
    label = choices.label or name
    row = {
        "label": label,
        "checkpoint": given if tried.source.kind == "checkpoint" else "",
        "timm": tried.source.kind == "timm",
        "part": choices.part,
        "encoder": encoder or name,
        "pool": "" if tried.class_token else "mean",
        "like": choices.like,
    }
    tables: dict[str, Any] = {f"method.{name}": {key: value for key, value in row.items() if value}}
    if not encoder:
        named = {"label": f"{recipe.model}{_sizes(recipe)}"}
        tables = {f"encoder.{name}": named | recipe.model_dump(exclude_none=True, exclude={"label"})} | tables
    head = f"extends = {_toml(base)}\ntitle = {_toml(f'{suite.config.title}, with {label}')}"
    parts = [head, *(_table(title, values) for title, values in tables.items())]
    return "\n\n".join(parts) + "\n"


def _tasks_of(loaded: LoadedSuite, name: str) -> list[tuple[str, str]]:
    """Return the stage and name of every task that has the row, in the order of the suite."""
    return list(dict.fromkeys((run.stage, run.task) for run in loaded.runs if run.method == name))


def _refused(loaded: LoadedSuite, name: str) -> dict[str, str]:
    """Return the tables of a suite that cannot have the row, with the reason: its own, or that it does not fit the other rows."""
    nowhere = Workspace(Path("data"), Path("runs"), Path("results"), download=False)
    tasks = _tasks_of(loaded, name)
    found: dict[str, str] = {}
    for planned in loaded.runs:
        if (planned.stage, planned.task) in tasks and planned.kind.starts_from == "encoder":
            with console.capture():  # what was read is printed once only
                problem = weights_problem(open_run(loaded, planned, nowhere))
            if problem and planned.method == name:
                found.setdefault(f"{planned.stage}.{planned.task}", problem)
    return found


def _table_apart(suite: LoadedSuite, table: str, name: str, label: str) -> str:
    """Return a copy of one of the base's analysis tables, for one row only."""
    task = table.partition(".")[2]
    given = suite.config.analysis[task].model_dump(exclude_unset=True, exclude={"kind", "methods"})
    title = f"{given.get('title') or task}: {label}"
    return f"\n{_table(f'{table}-{name}', {**given, 'title': title, 'methods': [name]})}\n"


def _rows(base: LoadedSuite, table: str) -> list[str]:
    """Return the rows of a table of the base, without those that a study adds."""
    runs = (run for run in base.runs if f"{run.stage}.{run.task}" == table and run.row not in base.study_rows)
    return list(dict.fromkeys(run.method for run in runs if run.method in base.config.method))


def _pretrained_beside(tasks: Collection[tuple[str, str]], base: LoadedSuite) -> list[str]:
    """Return the rows of the base that a suite pre-trains and that have one of the ``tasks``."""
    beside = {run.method for run in base.runs if (run.stage, run.task) in tasks and run.row not in base.study_rows}
    rows = base.config.method.items()
    return [method for method, row in rows if method in beside and row.pretrain and not row.teacher]


def _other_sizes(base: LoadedSuite, own: EncoderRecipe) -> list[str]:
    """Return a sentence about cost if the image size of the base's encoders differs from that of a new plain ViT."""
    seen = sorted({recipe.image_size for recipe in base.config.encoder.values()})
    if not seen or own.image_size in seen or not is_plain(own):
        return []
    patch = geometry_of(own).patch_size
    side = max(patch, patch * round(min(seen, key=lambda size: abs(size - own.image_size)) / patch))
    if side == own.image_size:
        return []
    ratio = (own.image_size // patch) ** 2 / (side // patch) ** 2
    costs = f"{ratio:.3g} times cheaper" if ratio > 1 else f"{1 / ratio:.3g} times as expensive"
    sizes = listed([f"{size} x {size}" for size in seen])
    return [
        f"The encoders of {base.name} use {sizes} pixels: --image-size {side} is about {costs}, by the number of patches."
    ]


def is_same(one: EncoderRecipe, other: EncoderRecipe) -> bool:
    """Return whether two recipes build the same encoder, even under different timm names."""
    if one.image_size != other.image_size or not (is_plain(one) and is_plain(other)):
        return one.affecting_results() == other.affecting_results()
    with shapes_only():
        states = [create_encoder(recipe).state_dict() for recipe in (one, other)]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    return geometry_of(one) == geometry_of(other) and shapes[0] == shapes[1]


def _table(title: str, values: Mapping[str, Any]) -> str:
    return "\n".join([f"[{title}]", *(f"{key} = {_toml(value)}" for key, value in values.items())])


def _toml(value: Any) -> str:
    """Return a plain value as TOML; for strings, numbers and booleans that is the same as JSON."""
    return json.dumps(value, ensure_ascii=False)


def _stem(given: str) -> str:
    """Return a name for weights: the file's name, or the folder's if the file has a generic name."""
    path = Path(given).expanduser()
    if not path.exists():
        return given.partition(".")[0]
    path = path.absolute()
    stem = path.name.partition(".")[0]
    return path.parent.name if stem in ("model", "pytorch_model", "checkpoint", "encoder", "weights") else stem


def _free_name(text: str, suite: LoadedSuite) -> str:
    """Return a folder name made from a text, which neither a row of the suite nor the suite itself has."""
    name = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:48] or "mine"
    taken = {*suite.config.method, *suite.config.classifier, *suite.config.encoder, suite.name, *suite.config.extends}
    numbered = (f"{name}-{number}" for number in range(2, 1000))
    return name if name not in taken else next(one for one in numbered if one not in taken)


def _own_size(model: str) -> int:
    """Return the image size of timm's weights of a model, or the default size if there are none."""
    known = timm.get_pretrained_cfg(model)
    return int(known.input_size[-1]) if known else EncoderRecipe().image_size


def _sizes(recipe: EncoderRecipe) -> str:
    """Return the sizes that a recipe changes in a timm model, in brackets."""
    changed = recipe.model_dump(include={"patch_size", "width", "depth", "heads"}, exclude_none=True)
    sizes = ", ".join(f"{key.removesuffix('_size')} {value}" for key, value in changed.items())
    return f" ({sizes})" if sizes else ""
