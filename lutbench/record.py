"""Records: what a finished run measured, with everything that is needed to trace and repeat it.

One JSON per run and, for downstream tasks, every image's outcome beside it as ``.npz``, so that two methods can be
compared on the same images. Tables are made from these files alone.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from downstream.segmentation.confusions import Confusions
from lutbench.errors import UserError
from lutbench.evaluate.outcomes import Measurement, Outcomes
from lutbench.files import read_json, whole_file, write_json
from lutbench.provenance import Code, Hardware, code, hardware, packages
from lutbench.recipes.segmentation import SegmentationRecipe
from lutbench.recipes.suite import PlannedRun, run_name
from lutbench.recipes.tasks import TASKS
from robustness.condition_outcomes import RobustnessOutcomes

PerImage = Outcomes | Confusions | RobustnessOutcomes
"""What a downstream or robustness run did on every image, from which its measurements follow."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class OutcomesFile(_Closed):
    """The per-image outcomes that belong to a record."""

    file: str = Field(pattern=r"^[^/\\]+\.npz$")
    """Name, in the record's folder."""
    sha256: str


class Record(_Closed):
    """A finished run."""

    format: Literal[1] = 1
    suite: str
    stage: str
    task: str
    method: str
    """Empty for pre-training runs."""
    seed: int
    run: str
    """The run's name, unique in the suite."""
    identity: str = Field(pattern="^[0-9a-f]{64}$")
    """sha256 of ``document``."""
    document: dict[str, Any]
    """What determines the result: stage and revision, the settings that affect results, the seed, the fingerprints
    of the data, and the identity and sha256 of the encoder that went in."""
    recipe: dict[str, Any]
    """Every setting, those that cannot affect results included; of absolute paths the last part only."""
    measurements: list[Measurement] = Field(min_length=1)
    """The first is the one that tables print."""
    outcomes: OutcomesFile | None = None
    checkpoint: str | None = None
    """sha256 of the weights that the run ended with; None if it made none."""
    code: Code
    packages: dict[str, str]
    hardware: Hardware
    wall_seconds: float
    images_per_second: float | None = None
    created: str
    """When the run finished, UTC."""
    extra: dict[str, JsonValue] = {}
    """Further facts, such as how many images were skipped."""

    def measured(self, metric: str) -> Measurement | None:
        """The measurement of ``metric``."""
        return next((m for m in self.measurements if m.metric == metric), None)


def identity_of(document: Mapping[str, Any]) -> str:
    """sha256 of a run's document, hexadecimal: equal documents, whatever the order of their keys, are one run."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields in which two documents or recipes differ: ``epochs changed from 10 to 20``."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return [
        f"{key} changed from {before.get(key, 'not set')} to {after.get(key, 'not set')}"
        for key in {**before, **after}
        if before.get(key, _flat) != after.get(key, _flat)
    ]


def make_record(
    planned: PlannedRun,
    document: Mapping[str, Any],
    measurements: list[Measurement],
    *,
    wall_seconds: float,
    images_per_second: float | None = None,
    checkpoint: str | None = None,
    processes: int = 1,
    extra: Mapping[str, JsonValue] | None = None,
) -> Record:
    """The record of a run that has just finished on this machine; ``document`` is what its identity hashes."""
    return Record(
        suite=planned.suite,
        stage=planned.stage,
        task=planned.task,
        method=planned.method,
        seed=planned.seed,
        run=planned.name,
        identity=identity_of(document),
        document=dict(document),
        recipe=_without_machine_paths(planned.recipe.model_dump(mode="json")),
        measurements=measurements,
        checkpoint=checkpoint,
        code=code(),
        packages=packages(),
        hardware=hardware(processes),
        wall_seconds=wall_seconds,
        images_per_second=images_per_second,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        extra=dict(extra or {}),
    )


def record_path(results_dir: Path, suite: str, run: str) -> Path:
    """Where the record of a run lies: ``records/SUITE/RUN.json``, such as ``.../downstream/TASK/METHOD/seed0.json``."""
    return results_dir / "records" / suite / f"{run}.json"


def write_record(record: Record, outcomes: PerImage | None, results_dir: Path) -> Path:
    """Write a record, and the outcomes beside it, and return the record's path.

    A record that stood there is replaced at once or not at all: outcomes are named by their hash, so the old pair
    stays whole until the new JSON is in place.

    Raises:
        UserError: on a full disk.
    """
    path = record_path(results_dir, record.suite, record.run)
    kept = None
    if outcomes is not None:
        content = _packed(outcomes)
        sha256 = hashlib.sha256(content).hexdigest()
        kept = path.with_name(f"{path.stem}-{sha256[:12]}.npz")
        with whole_file(kept) as partial:
            partial.write_bytes(content)
        record = record.model_copy(update={"outcomes": OutcomesFile(file=kept.name, sha256=sha256)})
    write_json(path, record.model_dump(mode="json"))
    for old in path.parent.glob(f"{path.stem}-*.npz"):
        if old != kept:
            old.unlink()
    return path


def read_records(results_dir: Path, suite: str) -> dict[str, Record]:
    """All records of a suite by run name, each checked against itself and its outcomes.

    Raises:
        UserError: naming the file that is damaged, edited, misplaced or missing.
    """
    folder = results_dir / "records" / suite
    records = {}
    for path in sorted(folder.rglob("*.json")):
        record = read_record(path)
        if record_path(results_dir, suite, record.run) != path or record.suite != suite:
            raise UserError(
                f"{path}: this is the record of {record.run} of suite {record.suite}, in the wrong place. "
                f"Move it to {record_path(results_dir, record.suite, record.run)}."
            )
        if record.outcomes is not None:
            _check_measurements(record, read_outcomes(record, results_dir), path)
        records[record.run] = record
    return records


def read_outcomes(record: Record, results_dir: Path) -> PerImage:
    """The per-image outcomes of a record: confusions of a segmentation, a classifier's on a set or on a shifted set.

    Raises:
        UserError: if the file is missing, its hash is not the record's, or it holds outcomes of the other kind.
    """
    if record.outcomes is None:
        raise UserError(f"{record.run}: its record has no per-image outcomes.")
    path = record_path(results_dir, record.suite, record.run).with_name(record.outcomes.file)
    if not path.is_file():
        raise UserError(f"{path}: the per-image outcomes of {record.run} are missing. {_remedy(record.run)}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != record.outcomes.sha256:
        raise UserError(
            f"{path}: damaged or changed: expected sha256 {record.outcomes.sha256[:12]}, found {found[:12]}. "
            f"{_remedy(record.run)}"
        )
    kind = str(record.document.get("stage"))
    expected: type[Confusions | RobustnessOutcomes | Outcomes] = Outcomes
    if kind == "robustness":
        expected = RobustnessOutcomes
    elif TASKS.get(kind) is SegmentationRecipe:
        expected = Confusions
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        try:
            return expected.from_arrays(arrays)
        except KeyError as error:
            raise UserError(
                f"{path}: expected the {expected.__name__.lower()} of a {kind} run, found arrays "
                f"{', '.join(arrays.files)}. {_remedy(record.run)}"
            ) from error


def read_record(path: Path) -> Record:
    """One record, checked against its own identity and name; its outcomes are not read.

    Raises:
        UserError: if it is damaged, was edited, or is of another format.
    """
    values = read_json(path)
    try:
        record = Record.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the whole file"
        raise UserError(
            f"{path}: not a record that this version reads: {where}: {problem['msg']}. {_remedy(path.stem)}"
        ) from error
    if identity_of(record.document) != record.identity:
        raise UserError(f"{path}: its document was changed: it does not hash to its identity. {_remedy(record.run)}")
    name = run_name(record.stage, record.task, record.method, record.seed)
    if record.run != name:
        raise UserError(
            f"{path}: it says that it is {record.run}, but its stage, task, method and seed are those of {name}. "
            f"{_remedy(record.run)}"
        )
    kind, seed = record.document.get("stage"), record.document.get("seed")
    if seed != record.seed or (kind == "pretrain") != (record.stage == "pretrain"):
        raise UserError(
            f"{path}: it says that it is a {record.stage} run with seed {record.seed}, but its document is that of a "
            f"{kind} run with seed {seed}. {_remedy(record.run)}"
        )
    if kind != "pretrain" and record.outcomes is None:
        raise UserError(f"{path}: it names no per-image outcomes, as every {kind} run has. {_remedy(record.run)}")
    return record


def _check_measurements(record: Record, outcomes: PerImage, path: Path) -> None:
    """A number in a record is what its outcomes say, not what somebody typed; none is left out or put in."""
    for written, counted in zip_longest(record.measurements, outcomes.measurements()):
        if written is None or counted is None or not _same(written, counted):
            raise UserError(
                f"{path}: it says {_told(written)} where its outcomes give {_told(counted)}. {_remedy(record.run)}"
            )


def _same(written: Measurement, counted: Measurement) -> bool:
    """Equal, but for the last digits of floating point, which another SciPy may change."""
    numbers = ("value", "low", "high")
    rest = [m.model_dump(exclude=set(numbers)) for m in (written, counted)]
    found, expected = (np.array([getattr(m, name) for name in numbers], float) for m in (written, counted))
    return rest[0] == rest[1] and bool(np.allclose(found, expected, rtol=0, atol=1e-9))


def _told(m: Measurement | None) -> str:
    if m is None:
        return "nothing"
    return f"{m.metric} {m.value} {m.unit} over {m.n} images, interval {m.low} to {m.high} ({m.interval})"


def _remedy(run: str) -> str:
    return f"Restore it from a copy (git), or remove it with its record and run {run} again."


def _packed(outcomes: PerImage) -> bytes:
    """The same outcomes always make the same bytes: NumPy writes no times into the archive."""
    arrays: dict[str, Any] = outcomes.arrays()
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def _without_machine_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_machine_paths(inner) for key, inner in value.items()}
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith("~")):
        return PurePath(value).name
    return value


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
