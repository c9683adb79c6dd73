"""Where a number comes from: the chain of runs that led to it, with their data, as far as the records show."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lutbench.recipes.shares import at_share
from lutbench.record import Record, record_path
from lutbench.record_search import record_of


class Link(NamedTuple):
    """A step from data and weights to a number."""

    kind: str
    """The kind of the run; ``weights`` for weights from outside the suite; ``missing`` for a run without a record."""
    name: str
    """``SUITE/RUN``, or a description of the weights."""
    facts: dict[str, str]
    """Its details, by name."""


def lineage(record: Record, results: Iterable[Path], known: Mapping[str, Record] | None = None) -> list[Link]:
    """Return the steps that lead to a record, in order, the record itself last; runs are found by identity in any of ``results``.

    ``known`` has records that were read already, by identity; they are searched first.
    """
    links, roots, step = [_link(record)], list(results), record
    while run := started_from(step).get("run"):
        before = (known or {}).get(run) or next((found for root in roots if (found := record_of(run, root))), None)
        if before is None:
            where = " or ".join(str(root / "records") for root in roots)
            missing = {
                "identity": run,
                **_weights_of(step),
                "record": f"missing: no record of this identity in {where}",
            }
            return [Link("missing", f"the run that the {step.kind.name} run started from", missing), *links]
        kept = _weights_of(step)
        if expected := other_weights(step, before):
            kept["but"] = f"its record now has other weights, {expected}: the run was repeated since then"
        links.insert(0, _link(before, kept))
        step = before
    return ([] if step.kind.starts_from == "nothing" else [_outside(step)]) + links


def roots_of(record: Record, results: Path) -> list[Path]:
    """Return the results folders in which to search the runs of a record: the given one, and the one it was read from."""
    parents = record.folder.parents
    depth = record.run.count("/") + 1
    own = parents[depth] if len(parents) > depth else record.folder
    is_own = record_path(own, record.suite, record.run).parent == record.folder
    return list(dict.fromkeys([results, *([own] if is_own else [])]))


def described(value: Any) -> str:
    """Return the name of a recipe's dataset, as in the tables."""
    data = value.get("data") or value.get("set") or {}
    return str(data.get("label") or data.get("path") or data.get("source", ""))


def started_from(record: Record) -> dict[str, Any]:
    """Return the identity inputs of a record about the weights that its run started from; empty if it started from none."""
    found: dict[str, Any] = record.identity_inputs.get(record.kind.starts_from) or {}
    return found


def other_weights(record: Record, before: Record) -> str:
    """Return the sha256 of the weights that ``before``, the run that a record started from, has now; empty if they are those it took.

    Empty too of a teacher, whose hash no record has.
    """
    made = {"teacher": None, **_snapshots(before)}
    expected = next((made[name] for name in _weights_of(record) if name in made), before.checkpoint)
    return "" if expected in (None, started_from(record).get("sha256")) else str(expected)


def _source(record: Record) -> dict[str, Any]:
    """Return the settings of a record about the weights that its run started from."""
    found: dict[str, Any] = record.recipe.get(record.kind.starts_from) or {}
    return found


def _weights_of(record: Record) -> dict[str, str]:
    """Return the sha256 of the weights that a run started from, under their name: encoder, teacher, classifier or a snapshot."""
    sha256, source = started_from(record).get("sha256"), _source(record)
    return {at_share(source.get("export", record.kind.starts_from), source.get("at", 1)): sha256} if sha256 else {}


def _snapshots(record: Record) -> dict[str, Any]:
    """Return the sha256 of the snapshots of a pre-training, by name."""
    found = record.extra.get("snapshots")
    return found if isinstance(found, dict) else {}


def _link(record: Record, weights: Mapping[str, str] | None = None) -> Link:
    """Return the step of a run; ``weights`` are those that the next step took from it."""
    splits = ", ".join(f"{split} {digest[:12]}" for split, digest in record.identity_inputs.get("data", {}).items())
    facts = {"identity": record.identity, "data": f"{described(record.recipe)}: {splits}", **(weights or {})}
    return Link(record.kind.name, f"{record.suite}/{record.run}", facts)


def _outside(record: Record) -> Link:
    """Return the step of weights from outside the suite."""
    source = _source(record)
    model = source.get("model") or (source.get("architecture") or {}).get("model", "")
    of = {"scratch": "random weights", "timm": "timm's weights", "checkpoint": f"{source.get('path')}, weights"}
    sha256 = started_from(record).get("sha256")
    return Link(
        "weights", f"{of.get(source.get('kind', ''), 'weights')} of {model}", {"sha256": sha256} if sha256 else {}
    )
