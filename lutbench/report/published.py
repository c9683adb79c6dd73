"""The literature's numbers from ``published.toml``, each with its source. Nothing here was measured by this suite."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from lutbench.errors import UserError, nearest
from lutbench.recipes.reading import read_recipe

PUBLISHED = Path(__file__).with_name("published.toml")

Text = Annotated[str, Field(min_length=1)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Task(_Closed):
    """What was measured."""

    title: Text
    metric: Text
    """``top-1``, ``mIoU``, ``mCE`` ..."""
    unit: str = "%"
    better: Literal["higher", "lower"] = "higher"


class Reported(_Closed):
    """One method on one task in one source: an entry of the file."""

    method: Text
    task: str
    source: str
    values: dict[str, FiniteFloat] = Field(min_length=1)
    """By encoder, in the task's unit."""
    secondary: bool = False
    """Not the method's own report under its own recipe: kept for readers, not printed by tables."""
    setting: str = ""
    """How the run differs from the method's own recipe."""
    note: str = ""
    """What else a reader has to know."""


@dataclass(frozen=True)
class PublishedValue:
    """One number, as tables print it."""

    value: float
    """In the task's unit."""
    source: str
    """Paper and table, or repository@commit:path."""
    setting: str
    note: str


class Published(_Closed):
    """The whole file; :func:`load_published` checks that its parts fit together."""

    task: dict[str, Task]
    source: dict[str, Text]
    reported: list[Reported]

    def value(self, method: str, task: str, encoder: str) -> PublishedValue | None:
        """Return the primary value, or None: the method's own report was not read, or there is none."""
        for entry in self.reported:
            if (entry.method, entry.task) == (method, task) and encoder in entry.values and not entry.secondary:
                return PublishedValue(entry.values[encoder], self.source[entry.source], entry.setting, entry.note)
        return None


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


def _check(published: Published) -> None:
    defined: dict[str, Mapping[str, object]] = {"task": published.task, "source": published.source}
    primary: dict[tuple[str, str, str], Reported] = {}
    for entry in published.reported:
        name = _name(entry.model_dump())
        for kind, named in (("task", entry.task), ("source", entry.source)):
            if named not in defined[kind]:
                hint = nearest(named, defined[kind])
                raise UserError(f"{name}: there is no such {kind}.{hint} Define it, or mend the name.")
        for encoder, value in entry.values.items():
            if published.task[entry.task].unit == "%" and not 0 <= value <= 100:
                raise UserError(
                    f"{name}: {encoder} has {value}, expected percent between 0 and 100. "
                    "Mend the value, or the task's unit."
                )
            if entry.secondary:
                continue
            first = primary.setdefault((entry.method, entry.task, encoder), entry)
            if first is not entry:
                raise UserError(
                    f"{name}: a second primary value for {encoder}, {value}; {first.source} has "
                    f"{first.values[encoder]}. Mark all but the method's own report `secondary = true`."
                )
    for kind, names in defined.items():
        if unused := sorted(set(names) - {getattr(entry, kind) for entry in published.reported}):
            raise UserError(
                f"no entry uses the {kind} {', '.join(unused)}. Remove it, or add the entry that was meant."
            )


def _name(entry: Any) -> str:
    """Return ``MAE on imagenet-1k/finetune/top-1 in mae-table-3``."""
    given = entry if isinstance(entry, dict) else {}
    return f"{given.get('method', '?')} on {given.get('task', '?')} in {given.get('source', '?')}"
