"""Records: the measurements of a finished run, with everything needed to trace and repeat it.

There is one JSON file per run. Next to it, named with their hashes, are the per-image outcomes (``.npz``), so that two methods can be
compared on the same images, and arrays (``.npy``) and pictures (``.png``) where a number is not enough. Tables are built from
these files only.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, NonNegativeFloat, PrivateAttr

from lutbench.arrays import MAX_BYTES, read_array, read_arrays
from lutbench.errors import UserError
from lutbench.evaluate import statistics
from lutbench.evaluate.outcomes import Measurement, PerImage
from lutbench.files import below, content_sha256, read_sealed
from lutbench.kinds import KINDS, Kind
from lutbench.losses import LossCurve
from lutbench.provenance import Code, Hardware
from lutbench.recipes.base import SEED_BOUND, Name, check_name
from lutbench.recipes.suite import run_name


class _Closed(BaseModel):
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True)


class KeptFile(_Closed):
    """A file that belongs to a record."""

    file: str = Field(pattern=r"^[^/\\]+\.(npz|npy|png)$")
    """File name in the record's folder."""
    sha256: str


class Attachment(KeptFile):
    """An array or a picture that belongs to a record, such as a spectrum."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    kind: Literal["array", "picture"]


def _names(text: str) -> str:
    for name in text.split("/"):
        check_name(name)
    return text


class _Weights(BaseModel):
    """The weights that a run started from: the run that made them, their hash, the description of an exported classifier, and the
    preprocessing if it is not ImageNet's."""

    model_config = ConfigDict(extra="forbid")

    run: str | None = None
    sha256: str | None = None
    export: str | None = None
    preprocessing: dict[str, Any] | None = None


class _IdentityInputs(BaseModel):
    """The identity inputs of a run, besides stage and seed, which are compared with the record's."""

    model_config = ConfigDict(extra="allow")

    revision: int
    recipe: dict[str, Any]
    data: dict[str, str] = {}
    encoder: _Weights | None = None
    classifier: _Weights | None = None


def _checked_inputs(values: dict[str, Any]) -> dict[str, Any]:
    _IdentityInputs.model_validate(values)
    return values


class Record(_Closed):
    """A finished run."""

    format: Literal[1] = 1
    suite: Name
    stage: Name
    task: Annotated[str, AfterValidator(_names)]
    """A name, or two with a slash between them."""
    method: Name | Literal[""]
    """Empty for pre-training runs."""
    seed: int = Field(ge=0, lt=SEED_BOUND)
    draw: int = Field(default=0, ge=0)
    """Number of the draw, for a task with several draws of its training images."""
    run: str
    """The run's name, unique in the suite."""
    made_as: Annotated[str, AfterValidator(_names)] | None = None
    """``SUITE/RUN`` of the run that was reused: another suite, or another name, had finished a run of this identity."""
    identity: str = Field(pattern="^[0-9a-f]{64}$")
    """sha256 of the identity inputs."""
    identity_inputs: Annotated[dict[str, Any], AfterValidator(_checked_inputs)] = Field(alias="document")
    """What determines the result: the kind of run (under ``stage``) and its revision, the settings that affect results,
    the seed, the fingerprints of the data, and the identity and sha256 of the encoder or classifier that went in."""
    recipe: dict[str, Any]
    """Every setting, including those that cannot affect results; absolute paths are cut to their last part."""
    measurements: list[Measurement] = Field(min_length=1)
    """The first one is printed in the tables."""
    outcomes_file: KeptFile | None = Field(default=None, alias="outcomes")
    attachments: list[Attachment] = []
    checkpoint: str | None = None
    """sha256 of the final weights; None if the run has none."""
    code: Code
    packages: dict[str, str]
    hardware: Hardware
    wall_seconds: NonNegativeFloat
    """Seconds of training, encoding and the final evaluation, summed over all starts of the run, without loading weights. If its
    features came from the cache, the time of reading them counts instead of encoding."""
    images_per_second: NonNegativeFloat | None = None
    """None if it encoded no image because its features came from the cache (``features_kept`` in :attr:`extra`): ``plan`` needs a
    measured rate."""
    created: str
    """When the run finished, UTC."""
    curve: LossCurve | None = None
    """The training losses, at most 200 points; None if it trained nothing, and in records of earlier versions."""
    extra: dict[str, JsonValue] = {}
    """Further values, such as how many images were skipped."""

    _folder: Path | None = PrivateAttr(None)

    @property
    def kind(self) -> Kind:
        """The kind of run."""
        return KINDS[str(self.identity_inputs["stage"])]

    def measured(self, metric: str) -> Measurement | None:
        """Return the measurement of ``metric``, if there is one."""
        return next((m for m in self.measurements if m.metric == metric), None)

    @cached_property
    def outcomes(self) -> Any:
        """The per-image outcomes, of the type of its kind (:class:`PerImage`); read on first access.

        Raises:
            UserError: if there are none, the file is missing or damaged, or its contents are not outcomes of this kind.
        """
        if self.outcomes_file is None:
            raise UserError(f"{self.run}: the record has no per-image outcomes.")
        content, kind = self.content(self.outcomes_file), self.kind.outcomes
        try:
            return kind.from_arrays(read_arrays(content, kind.layout))
        except (KeyError, ValueError) as error:
            found = f"no array {error}" if isinstance(error, KeyError) else error
            raise UserError(
                f"{self._path(self.outcomes_file)}: expected the {kind.__name__.lower()} of a run of kind {self.kind.name}, found {found}. "
                f"{_remedy(self.run)}"
            ) from error

    def array(self, name: str) -> NDArray[Any]:
        """Read an attached array.

        Raises:
            UserError: if there is no array of this name, or the file is missing, damaged or not an array.
        """
        content = self._attached(name, "array")
        try:
            return read_array(content)
        except ValueError as error:
            raise UserError(
                f"{self.run}: expected an array of numbers as {name!r}, found {error}. {_remedy(self.run)}"
            ) from error

    def picture(self, name: str) -> bytes:
        """Read an attached picture, as PNG; raises as :meth:`array` does."""
        return self._attached(name, "picture")

    @property
    def files(self) -> list[KeptFile]:
        """All files that belong to the record."""
        return [*([self.outcomes_file] if self.outcomes_file else []), *self.attachments]

    def content(self, kept: KeptFile) -> bytes:
        """Read one of its files.

        Raises:
            UserError: if it is missing, damaged, or too large for a file of a record.
        """
        path = self._path(kept)
        try:
            if (size := path.stat().st_size) > MAX_BYTES:
                raise UserError(f"{path}: damaged or changed: {size:,} bytes is too large. {_remedy(self.run)}")
            content = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError) as error:  # perhaps a run is replacing it
            what = "per-image outcomes" if kept == self.outcomes_file else "files"
            raise UserError(f"{path}: the {what} of {self.run} are missing. {_remedy(self.run)}") from error
        found = hashlib.sha256(content).hexdigest()
        if found != kept.sha256:
            raise UserError(
                f"{path}: damaged or changed: expected sha256 {kept.sha256[:12]}, found {found[:12]}. {_remedy(self.run)}"
            )
        return content

    def _attached(self, name: str, kind: str) -> bytes:
        found = next((one for one in self.attachments if (one.name, one.kind) == (name, kind)), None)
        if found is None:
            raise UserError(f"{self.run}: the record has no {kind} {name!r}.")
        return self.content(found)

    @property
    def folder(self) -> Path:
        """The folder of the record and its files."""
        assert self._folder is not None, "a record that was not read has no files yet"
        return self._folder

    def _path(self, kept: KeptFile) -> Path:
        return self.folder / kept.file


def identity_of(identity_inputs: Mapping[str, Any]) -> str:
    """Return the hexadecimal sha256 of the identity inputs, independent of the order of their keys."""
    return content_sha256(identity_inputs)


KEPT_BYTES = 2**25
"""Bytes that the resamples of a number of images may take in a command that reads records. A run needs them once; tables need those of
the same few datasets for every record and pair, and drawing them takes longer than all else: 10,000 images are 20 MB."""


def record_path(results_dir: Path, suite: str, run: str) -> Path:
    """Return the path of a run's record: ``records/SUITE/RUN.json``, such as ``.../downstream/TASK/METHOD/seed0.json``.

    Raises:
        UserError: if that is not below ``records``.
    """
    return below(results_dir / "records", suite, f"{run}.json")


def read_records(results_dir: Path, suite: str) -> dict[str, Record]:
    """Read all records of a suite, by run name; each is checked for consistency with its seal, identity and outcomes.

    Raises:
        UserError: with the file that is damaged, edited, misplaced or missing.
    """
    records = {}
    for path in sorted((results_dir / "records" / suite).rglob("*.json")):
        record = read_whole(path, results_dir, suite)
        records[record.run] = record
    return records


def read_whole(path: Path, results_dir: Path, suite: str) -> Record:
    """Read a record and check it and all its files. If a run replaces them meanwhile, the new ones are read.

    Raises:
        UserError: with the file that is damaged, edited, misplaced or missing.
    """
    statistics.KEPT_BYTES = KEPT_BYTES
    while True:
        before = _version(path)
        try:
            record = read_record(path, path.relative_to(results_dir / "records" / suite).with_suffix("").as_posix())
            if record_path(results_dir, suite, record.run) != path or record.suite != suite:
                raise UserError(
                    f"{path}: this is the record of run {record.run} of suite {record.suite}, in the wrong folder. "
                    f"Move it to {record_path(results_dir, record.suite, record.run)}."
                )
            if record.outcomes_file is not None:
                _check_measurements(record, record.outcomes, path)
            for kept in record.attachments:
                record.content(kept)
            return record
        except UserError:
            if _version(path) == before:
                raise


def _version(path: Path) -> tuple[int, int]:
    """Return what distinguishes a file from one that replaces it."""
    state = path.stat()
    return state.st_ino, state.st_mtime_ns


def read_record(path: Path, run: str = "it") -> Record:
    """Read one record, checked against its own seal, identity and name; its outcomes are not read.

    Records of earlier versions have no seal; everything else is checked. ``run`` is its name, for messages.

    Raises:
        UserError: if it is damaged, was edited, or has another format.
    """
    record = read_sealed(path, Record, _remedy(run), older=lambda record: not record.code.sources)
    kind, seed = str(record.identity_inputs.get("stage")), record.identity_inputs.get("seed")
    name, wrong = run_name(record.stage, record.task, record.method, record.seed, record.draw), ""
    if identity_of(record.identity_inputs) != record.identity:
        wrong = "'document' was changed: its hash does not match the identity"
    elif record.run != name:
        wrong = f"its run name is {record.run}, but its stage, task, method, seed and draw are those of {name}"
    elif kind not in KINDS:
        wrong = f"unknown kind of run {kind!r}; this version knows {', '.join(KINDS)}"
    elif (seed, KINDS[kind].stage) != (record.seed, record.stage):
        wrong = (
            f"its stage is {record.stage} and its seed {record.seed}, but 'document' is that of a run of kind "
            f"{kind} with seed {seed}"
        )
    elif foreign := [
        kept.file for kept in record.files if not is_file_of(kept.file, run_name("", "", "", record.seed, record.draw))
    ]:
        wrong = f"it lists the file {foreign[0]}, which does not belong to a record {path.name}"
    elif KINDS[kind].outcomes_name and record.outcomes_file is None:
        wrong = f"it lists no per-image outcomes, but every {kind} run has them"
    if wrong:
        raise UserError(f"{path}: {wrong}. {_remedy(record.run)}")
    record._folder = path.parent
    return record


def is_file_of(file: str, stem: str) -> bool:
    """Return whether a file name belongs to the record ``STEM.json``, and not to that of another draw, ``STEM-draw1.json``."""
    return re.match(rf"{re.escape(stem)}-(?!draw\d+[-.])", file) is not None


def _check_measurements(record: Record, outcomes: PerImage, path: Path) -> None:
    """Check that the numbers in a record are exactly those that follow from its outcomes."""
    try:
        counts = outcomes.measurements()
    except (ArithmeticError, LookupError, ValueError) as error:  # no run writes such outcomes
        raise UserError(
            f"{path}: no numbers can be computed from its outcomes: {error}. {_remedy(record.run)}"
        ) from error
    for written, counted in zip_longest(record.measurements, counts):
        if written is None or counted is None or not same_number(written, counted):
            raise UserError(
                f"{path}: the record has {_label(written)}, but its outcomes give {_label(counted)}. {_remedy(record.run)}"
            )


def same_number(written: Measurement, counted: Measurement) -> bool:
    """Return whether two measurements are equal up to the last digits, which may differ between versions of SciPy."""
    found, expected = (np.array([m.value, m.low, m.high], float) for m in (written, counted))  # None becomes NaN
    rest = written.model_copy(update={name: getattr(counted, name) for name in ("value", "low", "high")})
    return rest == counted and np.allclose(found, expected, rtol=0, atol=1e-9, equal_nan=True)


def _label(m: Measurement | None) -> str:
    if m is None:
        return "nothing"
    return f"{m.metric} {m.value} {m.unit} over {m.n} images, interval {m.low} to {m.high} ({m.interval})"


def _remedy(run: str) -> str:
    return f"Restore it from a backup (git), or remove it together with its record and repeat run {run}."
