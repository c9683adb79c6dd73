"""Numbers from the literature, from ``published.toml``, each with its source. Nothing here was measured by this suite.

A published number can be compared with a run if both have the same recipe. So values name their recipes, as far as these are known,
and a run is compared with them setting by setting: see :meth:`Published.value`.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from lutbench.changes import changes
from lutbench.errors import UserError, listed, nearest
from lutbench.kinds import KINDS
from lutbench.recipes.base import EncoderRecipe, RunRecipe
from lutbench.recipes.downstream import EncoderSource
from lutbench.recipes.reading import read_recipe
from lutbench.recipes.suite import PlannedRun

PUBLISHED = Path(__file__).with_name("published.toml")

NOT_KNOWN = "Its recipe is different or unknown."

PROTOCOLS = {
    "pretrain": "pre-trained for {0} epochs",
    "finetune": "fine-tuned for {0} epochs at {1} px",
    "linear": "linear probe of {0} epochs at {1} px",
    "segmentation": "UPerNet for {0} iterations on crops of {1} px",
    "robustness": "images preprocessed as in timm for these weights",
}
"""How tables name what recipes do, by kind: its length, and the side of the images, which is in the encoder's name where it is not 224."""

Text = Annotated[str, Field(min_length=1)]


class _Closed(BaseModel):
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, strict=True)


class Task(_Closed):
    """What was measured."""

    title: Text
    metric: Text
    """``top-1``, ``mIoU``, ``mCE`` ..."""
    unit: str = "%"
    better: Literal["higher", "lower"] = "higher"


class ReportedRecipe(_Closed, extra="allow"):
    """How something was pre-trained, fine-tuned or measured; its other keys are settings that are no defaults of the kind of run."""

    kind: Text
    data: str = ""
    """Name or label of the dataset in a suite file, in lower case; any if empty."""

    def protocol(self, encoder: str) -> str:
        """Return in a few words what was done by it, such as ``fine-tuned for 100 epochs at 224 px``."""
        fields, settings = KINDS[self.kind].recipe.model_fields, self.model_extra or {}
        name = "iterations" if self.kind == "segmentation" else "epochs"
        length = settings.get(name, fields[name].default) if name in fields else ""
        side = (
            settings.get("crop", fields["crop"].default)
            if self.kind == "segmentation"
            else encoder.partition("@")[2] or 224
        )
        return PROTOCOLS[self.kind].format(length, side)

    def differences(self, run: PlannedRun) -> list[str]:
        """Return the settings of ``run``, a run of this kind, that are others: ``finetune.epochs changed from 100 to 50``.

        Not compared are precision, threads, and which library resizes and changes colours, and what the suite file itself says to be the same: the encoder by its label, and
        the dataset where none is named here.
        """
        model, settings = type(run.recipe), self.model_extra or {}
        given = {name: value for name, value in settings.items() if not isinstance(value, dict)}
        for name, field in model.model_fields.items():
            value = getattr(run.recipe, name)
            if isinstance(value, EncoderRecipe):
                given[name] = EncoderRecipe(label=value.label, model=value.model)
            elif field.is_required():
                given[name] = value
        expected = read_recipe(model, given, f"recipe of kind {self.kind}")
        there, here = _compared(expected), _compared(run.recipe)
        there |= {name: {**there[name], **value} for name, value in settings.items() if isinstance(value, dict)}
        if self.data and run.recipe.dataset.label.lower() != self.data:
            there["data"], here["data"] = self.data, run.recipe.dataset.label
        return changes({self.kind: there}, {self.kind: here})


class Reported(_Closed):
    """One method on one task in one source: an entry of the file."""

    method: Text
    task: str
    source: str
    values: dict[str, FiniteFloat] = Field(min_length=1)
    """By encoder, in the task's unit."""
    recipe: dict[str, list[str]] = Field(default_factory=dict)
    """The recipes that a value is by, by encoder; of other values it is another than this suite has, or was not read."""
    secondary: bool = False
    """Not the method's own report under its own recipe: kept for readers; tables print it only beside a run by its recipe."""
    setting: str = ""
    """How the run differs from the method's own recipe."""
    note: str = ""
    """Further information for readers."""

    @property
    def recipe_names(self) -> list[str]:
        """The names of the recipes of all values."""
        return [name for names in self.recipe.values() for name in names]


@dataclass(frozen=True)
class PublishedValue:
    """One number, as tables print it."""

    value: float
    """In the task's unit."""
    source: str
    """Paper and table, or repository@commit:path."""
    setting: str
    note: str
    other_recipe: str = ""
    """Why the recipe is not known to be the run's, a sentence; empty if it is, and a difference says something."""
    protocol: str = ""
    """How it was measured: the task's title."""
    by_recipes: str = ""
    """The lengths of training of the recipes that it is by; empty of a value without any."""

    @property
    def settings(self) -> str:
        """What is known of the settings behind it."""
        return self.by_recipes or " ".join(filter(None, (self.setting, self.note))).rstrip(".") or "settings unknown"


class Published(_Closed):
    """The whole file; :func:`load_published` checks that its parts fit together."""

    task: dict[str, Task]
    source: dict[str, Text]
    recipe: dict[str, ReportedRecipe] = Field(default_factory=dict)
    reported: list[Reported]

    def value(self, method: str, task: str, encoder: str, runs: Sequence[PlannedRun] = ()) -> PublishedValue | None:
        """Return what to print beside a run, if anything: the method's own report, or a re-run by the run's own recipe.

        ``runs`` are the run and those that its weights come from. The own report is preferred where it is by their recipe,
        and where nothing is.
        """
        of_method = [e for e in self.reported if (e.method, e.task) == (method, task) and encoder in e.values]
        found = [
            PublishedValue(
                entry.values[encoder],
                self.source[entry.source],
                entry.setting,
                entry.note,
                self._other_recipe(entry.recipe.get(encoder, []), runs),
                self.task[entry.task].title,
                ", ".join(self.recipe[name].protocol(encoder) for name in entry.recipe.get(encoder, [])),
            )
            for entry in sorted(of_method, key=lambda entry: entry.secondary)
        ]
        own = found[0] if found and not all(entry.secondary for entry in of_method) else None
        return next((value for value in found if not value.other_recipe), own)

    def _other_recipe(self, names: Sequence[str], runs: Sequence[PlannedRun]) -> str:
        """Return why ``runs`` are not by the recipes of these names; empty if they are.

        Weights that come from elsewhere are what the suite file says they are. Where there are none nothing was pre-trained. What is
        published is of students, neither of their teachers nor of encoders that were fine-tuned before.
        """
        if not names or not runs:
            return NOT_KNOWN
        by_kind = {run.kind.name: run for run in runs}
        sources = [source for run in runs if isinstance(source := run.recipe.source, EncoderSource)]
        exports = [source.export for source in sources if source.export != "encoder"]
        found = [f"encoder.export changed from encoder to {export}" for export in exports]
        for recipe in (self.recipe[name] for name in names):
            source = runs[-1].recipe.source
            if recipe.kind in by_kind:
                found += recipe.differences(by_kind[recipe.kind])
            elif source and source.kind == "scratch":
                found.append(f"there is no {recipe.kind} run")
        return f"Its recipe differs (published to run): {listed(found)}." if found else ""


def load_published(path: Path = PUBLISHED) -> Published:
    """Read the file and check it.

    Raises:
        UserError: naming the entry that is malformed, names an unknown task or source, has a percentage outside
            0 to 100 or gives a second primary value; or the task or source that no entry uses.
    """
    try:
        published = _read(tomllib.loads(path.read_text(encoding="utf-8")))
        _check(published)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}.") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return published


def _read(tables: dict[str, Any]) -> Published:
    """Entries are read one by one, so that an error names the entry and not its place in the file."""
    entries = tables.get("reported")
    if isinstance(entries, list):
        tables = {**tables, "reported": [read_recipe(Reported, entry, f"[{_name(entry)}]") for entry in entries]}
    return read_recipe(Published, tables, "")


def _compared(recipe: RunRecipe) -> dict[str, Any]:
    """Return the settings that are compared, with the learning rate in the place of the rule by which it follows from the batch."""
    fields = recipe.affecting_results()
    rate = {"lr": recipe.lr} if "lr_rule" in fields else {}  # type: ignore[attr-defined]
    ignored = {
        "precision",
        "threads",
        "data",
        "resized_by",
        "photometrics_on",
        *(("base_lr", "lr_rule") if rate else ()),
    }
    return {name: value for name, value in fields.items() if name not in ignored} | rate


def _check(published: Published) -> None:
    defined: dict[str, Mapping[str, object]] = {"task": published.task, "source": published.source}
    primary: dict[tuple[str, str, str], Reported] = {}
    for name, recipe in published.recipe.items():
        if recipe.kind not in KINDS:
            raise UserError(f"recipe.{name}.kind: no such kind of run {recipe.kind!r}.{nearest(recipe.kind, KINDS)}")
        known = KINDS[recipe.kind].recipe.model_fields
        for setting in recipe.model_extra or {}:
            if setting not in known:
                raise UserError(f"recipe.{name}.{setting}: no setting of kind {recipe.kind}.{nearest(setting, known)}")
    for entry in published.reported:
        name = _name(entry.model_dump())
        for kind, named in (("task", entry.task), ("source", entry.source)):
            if named not in defined[kind]:
                hint = nearest(named, defined[kind])
                raise UserError(f"{name}: there is no such {kind}.{hint} Define it, or correct the name.")
        for named in entry.recipe_names:
            if named not in published.recipe:
                hint = nearest(named, published.recipe)
                raise UserError(f"{name}: there is no recipe {named!r}.{hint} Define it, or correct the name.")
        if unknown := sorted(set(entry.recipe) - set(entry.values)):
            raise UserError(f"{name}: a recipe for {listed(unknown)}, which has no value. Correct the encoder's name.")
        for encoder, value in entry.values.items():
            if published.task[entry.task].unit == "%" and not 0 <= value <= 100:
                raise UserError(
                    f"{name}: {encoder} has {value}, expected percent between 0 and 100. "
                    "Correct the value, or the task's unit."
                )
            if entry.secondary:
                continue
            first = primary.setdefault((entry.method, entry.task, encoder), entry)
            if first is not entry:
                raise UserError(
                    f"{name}: a second primary value for {encoder}, {value}; {first.source} has "
                    f"{first.values[encoder]}. Mark all except the method's own report with `secondary = true`."
                )
    used = {(kind, getattr(entry, kind)) for entry in published.reported for kind in defined}
    used |= {("recipe", name) for entry in published.reported for name in entry.recipe_names}
    for kind, names in {**defined, "recipe": published.recipe}.items():
        if unused := sorted(name for name in names if (kind, name) not in used):
            raise UserError(
                f"no entry uses the {kind} {', '.join(unused)}. Remove it, or add the entry that was meant."
            )


def _name(entry: Any) -> str:
    """Return ``MAE on imagenet-1k/finetune/top-1 in mae-table-3``."""
    given = entry if isinstance(entry, dict) else {}
    return f"{given.get('method', '?')} on {given.get('task', '?')} in {given.get('source', '?')}"
