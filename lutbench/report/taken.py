"""Records that stand in these results under another name than a suite's own: of a suite that it extends, or of its own by another name.

A run has one result, whatever it is called (see :mod:`lutbench.run_lookup`), and `lutbench run` brings the record of one that
has finished elsewhere under the name that it has in the suite. Tables need not wait for that: they take such a record where it is.

Data and weights are not here to be hashed. So all that a recipe and the chain of runs say of an identity has to be equal, the images
have to lie in the same place, and what a record says of the content of data and weights must be what the suite's own records say of
them. Of a suite that is not extended, which may be of other images of the same name, nothing is taken that these do not confirm.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lutbench.files import content_sha256
from lutbench.kinds import KINDS
from lutbench.recipes.base import RunRecipe
from lutbench.recipes.differences import recipe_of
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.record import Record, read_whole
from lutbench.record_writing import renamed_record, without_machine_paths
from lutbench.report.entries import outdated

Contents = Mapping[str, Any]
"""Hashes of what a run read, by what its recipe says of where that is."""


class _Candidate(NamedTuple):
    """A record of the results that may be that of a run by another name."""

    name: str
    """``SUITE/RUN``"""
    path: Path | None
    """None of a record of the suite itself, which has been read."""
    inputs: Mapping[str, Any]
    """Its identity inputs."""
    recipe: RunRecipe

    @property
    def suite(self) -> str:
        """The suite that has the record."""
        return self.name.split("/")[0]


def with_taken(
    suite: LoadedSuite, own: Mapping[str, Record], results_dir: Path
) -> tuple[dict[str, Record], dict[str, str]]:
    """Return the records of a suite with those that are taken for runs without one that counts, and of these where each lies.

    The latter by run name, as ``SUITE/RUN``. Suites that are extended come first, the nearest first of all.

    Raises:
        UserError: if a record that is taken is damaged.
    """
    records, taken = dict(own), dict[str, str]()
    missing = {run.name for run in suite.runs if run.name not in own or outdated(suite, run, own)}
    if not missing:
        return records, taken
    candidates = _candidates(suite, own, results_dir, {run.stage for run in suite.runs if run.name in missing})
    known = dict[str, Any]()
    for run in suite.runs:
        if run.name not in missing and (recipe := _located(run.recipe, run)):
            known |= _contents(recipe, own[run.name].identity_inputs)
    for run in suite.runs:  # each after the one that it starts from
        recipe = _located(run.recipe, run) if run.name in missing else None
        for one in candidates.get(_key(run), []) if recipe else []:
            if not _is_run(one, run, records) or not _agrees(one, recipe, known, suite):
                continue
            record = read_whole(one.path, results_dir, one.suite) if one.path else own[one.name.partition("/")[2]]
            records[run.name], taken[run.name] = renamed_record(record, run), one.name
            known |= _contents(one.recipe, one.inputs)
            break
    return records, taken


def _candidates(
    suite: LoadedSuite, own: Mapping[str, Record], results_dir: Path, stages: set[str]
) -> dict[str, list[_Candidate]]:
    """Return the records of all suites in these stages by what :func:`_key` says of theirs, those of the nearest suites first."""
    found = [
        _Candidate(f"{suite.name}/{name}", None, record.identity_inputs, recipe)
        for name, record in own.items()
        if (recipe := recipe_of(record.kind, record.recipe))
    ]
    root, near = results_dir / "records", suite.config.extends
    others = sorted({path.name for path in root.glob("*")} - {suite.name})
    for other in sorted(others, key=lambda name: near.index(name) if name in near else len(near)):
        for path in (path for stage in sorted(stages) for path in sorted((root / other / stage).rglob("*.json"))):
            name = path.relative_to(root).with_suffix("").as_posix()
            found += [_Candidate(name, path, inputs, recipe) for inputs, recipe in _read(path)]
    by_key: dict[str, list[_Candidate]] = {}
    for one in found:
        key = _hash(one.inputs["stage"], one.inputs["revision"], one.inputs["seed"], one.inputs["recipe"])
        by_key.setdefault(key, []).append(one)
    return by_key


def _read(path: Path) -> Iterator[tuple[Mapping[str, Any], RunRecipe]]:
    """Yield identity inputs and recipe of a record, unless it is none that this version reads; nothing of it is checked yet."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        inputs, kind = values["document"], KINDS[values["document"]["stage"]]
        recipe = recipe_of(kind, values["recipe"])
        if recipe is not None and {"revision", "seed", "recipe"} <= set(inputs):
            yield inputs, recipe
    except (OSError, ValueError, LookupError, TypeError):
        return


def _key(run: PlannedRun) -> str:
    """Return what of a run's identity is known without its data and weights."""
    return _hash(run.kind.name, run.recipe.revision, run.seed, run.recipe.affecting_results())


def _hash(kind: str, revision: int, seed: int, recipe: Mapping[str, Any]) -> str:
    return content_sha256({"stage": kind, "revision": revision, "seed": seed, "recipe": recipe})


def _located(recipe: RunRecipe, run: PlannedRun) -> RunRecipe | None:
    """Return a recipe with the paths of data and weights as records have them."""
    return recipe_of(run.kind, without_machine_paths(recipe.model_dump(mode="json")))


def _is_run(one: _Candidate, run: PlannedRun, records: Mapping[str, Record]) -> bool:
    """Return whether a record begins with what the run begins with that it needs."""
    start = (one.inputs.get(run.kind.starts_from) or {}).get("run")
    if run.needs is None:
        return start is None
    return run.needs in records and start == records[run.needs].identity


def _agrees(one: _Candidate, recipe: RunRecipe | None, known: Contents, suite: LoadedSuite) -> bool:
    """Return whether a record read data and weights that lie where the recipe says, and are those that are known."""
    if recipe is None or _places(one.recipe) != _places(recipe):
        return False
    contents = _contents(one.recipe, one.inputs)
    if any(known.get(place, content) != content for place, content in contents.items()):
        return False
    trusted = one.suite in (suite.name, *suite.config.extends)
    return trusted or (bool(contents) and all(place in known for place in contents))


def _places(recipe: RunRecipe) -> tuple[str, str, str]:
    """Return where data and weights lie."""
    source = recipe.source
    return recipe.dataset.source, str(recipe.dataset.folder), source.path if source else ""


def _contents(recipe: RunRecipe, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's inputs say of the content of what lies there: of every split, and of a file of weights."""
    source, folder, weights = _places(recipe)
    data = {
        f"{source} {folder} {split} {recipe.training_subset if split == 'train' else ''} {recipe.cache_side}": content
        for split, content in inputs.get("data", {}).items()
    }
    files = {part: inputs.get(part) or {} for part in ("encoder", "classifier")}
    return data | {f"weights {weights}": of["sha256"] for of in files.values() if weights and "sha256" in of}
