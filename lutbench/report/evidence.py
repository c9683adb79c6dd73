"""The records about the weights of a run: how they were trained, and the results that were measured with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from lutbench.errors import UserError, listed
from lutbench.lineage import started_from
from lutbench.recipes.base import RunRecipe
from lutbench.recipes.loading import load_suite
from lutbench.recipes.suite import Suite
from lutbench.record import Record, read_record, read_whole
from lutbench.run_files import read_finished, read_started

MEASURED = ("downstream", "robustness")
"""The stages whose runs say how good weights are."""


class Evidence(NamedTuple):
    """The records about the weights of one run."""

    own: Record
    before: Record | None
    """Of the run whose weights it started from; None if it started from none, or the results have no record of that."""
    results: list[Record]
    """What was measured with the weights: by the run itself, and by all that started from them."""

    @property
    def suites(self) -> list[str]:
        """The names of the suites that the records are of."""
        records = [self.own, *([self.before] if self.before else []), *self.results]
        return list(dict.fromkeys(record.suite for record in records))


def evidence(folder: Path, results_dir: Path) -> Evidence:
    """Return the records about the weights that the finished run in ``folder`` left, each checked with all its files.

    Records of other runs are found by what they started from, whatever suite they are of: these very weights, or a classifier
    that was fine-tuned from them.

    Raises:
        UserError: if a record is damaged, or there is none of the run itself.
    """
    records, identity = _records(results_dir), read_started(folder).identity
    own = _kept(folder, identity) or next((record for record, _ in records if record.identity == identity), None)
    if own is None or own.checkpoint != read_finished(folder).checkpoint:
        raise UserError(
            f"{folder}: expected a record of the run's weights, found none in this folder and none in {results_dir / 'records'}. "
            "Give the results folder that has it (--results), or restore it from a backup."
        )
    before = next((record for record, _ in records if _starts_from(own, record)), None)
    made = [own, *(record for record, _ in records if _starts_from(record, own))]  # of these, some are classifiers
    measured = {
        record.identity: read_whole(path, results_dir, record.suite)
        for record, path in records
        if record.stage in MEASURED and (record.identity == identity or any(_starts_from(record, one) for one in made))
    }
    if own.stage in MEASURED:
        measured.setdefault(identity, own)
    return Evidence(own, before, list(measured.values()))


def recipe_of(record: Record) -> RunRecipe:
    """Return the settings in a record, as its kind of run has them.

    Raises:
        UserError: if they are those of another version of the suite.
    """
    try:
        recipe: RunRecipe = record.kind.recipe.model_validate(record.recipe)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(
            f"{record.suite}/{record.run}: the record has settings of another version of lutbench "
            f"({'.'.join(map(str, problem['loc']))}: {problem['msg']}). Export the run with the version that made it, {record.code}."
        ) from error
    return recipe


def unlike_defaults(record: Record) -> dict[str, tuple[Any, Any]]:
    """Return the settings that affect the result of a run and are not the suite's defaults: ``{"epochs": (2, 1600)}``.

    Data and encoder, which are told elsewhere, are left out.
    """
    recipe = recipe_of(record)
    model = type(recipe)
    required = {name: getattr(recipe, name) for name, field in model.model_fields.items() if field.is_required()}
    given = {"encoder": getattr(recipe, "encoder", None)} if "encoder" in model.model_fields else {}
    defaults = model.model_validate(required | given).model_dump(mode="json")
    chosen = recipe.affecting_results()
    differing = {name: (value, defaults[name]) for name, value in chosen.items() if value != defaults[name]}
    return {name: pair for name, pair in differing.items() if name not in ("data", "encoder", "set", "classifier")}


def load_suites(names: Sequence[str], given: Sequence[str], results: Path) -> dict[str, Suite]:
    """Return suites by name: of the files ``given``, of this suite's own, or ``NAME.toml`` in the folder that the command is given in.

    Raises:
        UserError: if one is none of them, or its file is not well-formed.
    """
    loaded = [load_suite(suite, results=results) for suite in given]
    found = {suite.name: suite.config for suite in loaded}
    for name in names:
        if name not in found:
            try:
                found[name] = load_suite(name, results=results).config
            except UserError:
                if not Path(f"{name}.toml").is_file():
                    raise UserError(
                        f"There are records of suite {name!r}, but its file was not found. The model card needs it to state whether the suite is "
                        f"evidence or a pipeline check. Give it: --suite PATH/{name}.toml. Suites with records: {listed(names)}."
                    ) from None
                found[name] = load_suite(f"{name}.toml", results=results).config
    return {name: found[name] for name in names}


def _records(results_dir: Path) -> list[tuple[Record, Path]]:
    """Return the records of all suites, with their paths; their files are not read. Of a run that several have, its maker's."""
    found: dict[tuple[str, str | None], tuple[Record, Path]] = {}
    for path in sorted((results_dir / "records").rglob("*.json")):
        record = read_record(path, path.stem)
        key = record.identity, record.checkpoint
        if key not in found or record.made_as is None:
            found[key] = record, path
    return list(found.values())


def _kept(folder: Path, identity: str) -> Record | None:
    """Return the copy of its record that a run keeps in its own folder."""
    kept = (
        read_whole(path, folder, path.relative_to(folder / "records").parts[0])
        for path in (folder / "records").rglob("*.json")
    )
    return next((record for record in kept if record.identity == identity), None)


def _starts_from(record: Record, maker: Record) -> bool:
    """Return whether a run started from the weights that the run of ``maker`` ended with."""
    weights = started_from(record)
    return weights.get("run") == maker.identity and weights.get("sha256") == maker.checkpoint
