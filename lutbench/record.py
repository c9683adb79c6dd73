"""Records: what a finished run measured, with everything that is needed to trace and repeat it.

One JSON per run. Beside it, each named with its hash, lie every image's outcome (``.npz``), so that two methods can be
compared on the same images, and arrays (``.npy``) and pictures (``.png``) where a number is not enough. Tables are made
from these files alone.
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
    """Name, in the record's folder."""
    sha256: str


class Attachment(KeptFile):
    """An array or a picture that a run leaves where a number is not enough, such as a spectrum."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    kind: Literal["array", "picture"]


def _names(text: str) -> str:
    for name in text.split("/"):
        check_name(name)
    return text


class _Weights(BaseModel):
    """What a run started from: the run that made it, its hash, the content of a classifier's export beside it, and how images
    are prepared for it if not as ImageNet's."""

    model_config = ConfigDict(extra="forbid")

    run: str | None = None
    sha256: str | None = None
    export: str | None = None
    preprocessing: dict[str, Any] | None = None


class _IdentityInputs(BaseModel):
    """What runs have among their identity inputs, besides stage and seed, which are compared with the record's."""

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
    """Of a task that is run for several draws of its training images, which of them."""
    run: str
    """The run's name, unique in the suite."""
    made_as: Annotated[str, AfterValidator(_names)] | None = None
    """``SUITE/RUN``, where another suite or under another name made it: the run of this identity was found, and not repeated."""
    identity: str = Field(pattern="^[0-9a-f]{64}$")
    """sha256 of the identity inputs."""
    identity_inputs: Annotated[dict[str, Any], AfterValidator(_checked_inputs)] = Field(alias="document")
    """What determines the result: the kind of run (under ``stage``) and its revision, the settings that affect results,
    the seed, the fingerprints of the data, and the identity and sha256 of the encoder or classifier that went in."""
    recipe: dict[str, Any]
    """Every setting, those that cannot affect results included; of absolute paths the last part only."""
    measurements: list[Measurement] = Field(min_length=1)
    """The first is the one that tables print."""
    outcomes_file: KeptFile | None = Field(default=None, alias="outcomes")
    attachments: list[Attachment] = []
    checkpoint: str | None = None
    """sha256 of the weights that the run ended with; None if it made none."""
    code: Code
    packages: dict[str, str]
    hardware: Hardware
    wall_seconds: NonNegativeFloat
    """Seconds of training, encoding and the evaluation at the end, over all starts of the run; without loading weights. Of
    features that another run had left, those of reading them."""
    images_per_second: NonNegativeFloat | None = None
    """None where it encoded no image, as its features were kept already (``features_kept`` in :attr:`extra`): a plan needs a rate that
    was measured."""
    created: str
    """When the run finished, UTC."""
    curve: LossCurve | None = None
    """The losses of its training, at most 200 points; None if it trained nothing, and in records of before there were curves."""
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
        """The per-image outcomes, of the type that its kind has (:class:`PerImage`); read once, when first asked for.

        Raises:
            UserError: if there are none, the file is missing, its hash is not the record's, or it holds anything but outcomes of
                its kind.
        """
        if self.outcomes_file is None:
            raise UserError(f"{self.run}: its record has no per-image outcomes.")
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
            UserError: if there is none of this name, the file is missing, its hash is not the record's, or it holds no array.
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
            UserError: if it is missing, larger than any file of a record is, or its hash is not the record's.
        """
        path = self._path(kept)
        try:
            if (size := path.stat().st_size) > MAX_BYTES:
                raise UserError(f"{path}: damaged or changed: it has {size:,} bytes. {_remedy(self.run)}")
            content = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError) as error:  # also one that a run replaces just now
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
            raise UserError(f"{self.run}: its record has no {kind} {name!r}.")
        return self.content(found)

    @property
    def folder(self) -> Path:
        """Where it was read, and its files are."""
        assert self._folder is not None, "a record that was not read has no files yet"
        return self._folder

    def _path(self, kept: KeptFile) -> Path:
        return self.folder / kept.file


def identity_of(identity_inputs: Mapping[str, Any]) -> str:
    """Return the sha256, hexadecimal, of what determines a run's result, whatever the order of its keys."""
    return content_sha256(identity_inputs)


def record_path(results_dir: Path, suite: str, run: str) -> Path:
    """Return where the record of a run lies: ``records/SUITE/RUN.json``, such as ``.../downstream/TASK/METHOD/seed0.json``.

    Raises:
        UserError: if that is not below ``records``.
    """
    return below(results_dir / "records", suite, f"{run}.json")


def read_records(results_dir: Path, suite: str) -> dict[str, Record]:
    """Read all records of a suite, by run name, each checked against itself and its outcomes.

    Raises:
        UserError: naming the file that is damaged, edited, misplaced or missing.
    """
    records = {}
    for path in sorted((results_dir / "records" / suite).rglob("*.json")):
        record = read_whole(path, results_dir, suite)
        records[record.run] = record
    return records


def read_whole(path: Path, results_dir: Path, suite: str) -> Record:
    """Read a record, checked against itself and all its files. A run may replace them meanwhile: then the new ones are read.

    Raises:
        UserError: naming the file that is damaged, edited, misplaced or missing.
    """
    while True:
        before = _version(path)
        try:
            record = read_record(path, path.relative_to(results_dir / "records" / suite).with_suffix("").as_posix())
            if record_path(results_dir, suite, record.run) != path or record.suite != suite:
                raise UserError(
                    f"{path}: this is the record of {record.run} of suite {record.suite}, in the wrong place. "
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
    """Return what tells a file from the one that takes its place."""
    state = path.stat()
    return state.st_ino, state.st_mtime_ns


def read_record(path: Path, run: str = "it") -> Record:
    """Read one record, checked against its own seal, identity and name; its outcomes are not read.

    A record of before there were seals has none, and is checked against the rest. ``run`` is its name, for messages.

    Raises:
        UserError: if it is damaged, was edited, or is of another format.
    """
    record = read_sealed(path, Record, _remedy(run), older=lambda record: not record.code.sources)
    kind, seed = str(record.identity_inputs.get("stage")), record.identity_inputs.get("seed")
    name, wrong = run_name(record.stage, record.task, record.method, record.seed, record.draw), ""
    if identity_of(record.identity_inputs) != record.identity:
        wrong = "its document was changed: it does not hash to its identity"
    elif record.run != name:
        wrong = f"it says that it is {record.run}, but its stage, task, method, seed and draw are those of {name}"
    elif kind not in KINDS:
        wrong = f"it is of kind {kind!r}, which this version does not know; it knows {', '.join(KINDS)}"
    elif (seed, KINDS[kind].stage) != (record.seed, record.stage):
        wrong = (
            f"it says that it is a run of {record.stage} with seed {record.seed}, but its document is that of a run of kind "
            f"{kind} with seed {seed}"
        )
    elif foreign := [
        kept.file for kept in record.files if not is_file_of(kept.file, run_name("", "", "", record.seed, record.draw))
    ]:
        wrong = f"it names {foreign[0]}, which is no file of a record {path.name}"
    elif KINDS[kind].outcomes_name and record.outcomes_file is None:
        wrong = f"it names no per-image outcomes, as every {kind} run has"
    if wrong:
        raise UserError(f"{path}: {wrong}. {_remedy(record.run)}")
    record._folder = path.parent
    return record


def is_file_of(file: str, stem: str) -> bool:
    """Return whether a file is named as those beside the record ``STEM.json``, and not as those of another draw's, ``STEM-draw1.json``."""
    return re.match(rf"{re.escape(stem)}-(?!draw\d+[-.])", file) is not None


def _check_measurements(record: Record, outcomes: PerImage, path: Path) -> None:
    """Check that every number in a record is what its outcomes say, and that none is left out or put in."""
    try:
        counts = outcomes.measurements()
    except (ArithmeticError, LookupError, ValueError) as error:  # outcomes that no run leaves
        raise UserError(f"{path}: its outcomes cannot be measured: {error}. {_remedy(record.run)}") from error
    for written, counted in zip_longest(record.measurements, counts):
        if written is None or counted is None or not same_number(written, counted):
            raise UserError(
                f"{path}: it says {_label(written)} where its outcomes give {_label(counted)}. {_remedy(record.run)}"
            )


def same_number(written: Measurement, counted: Measurement) -> bool:
    """Return whether they are equal, but for the last digits of floating point, which another SciPy may change."""
    found, expected = (np.array([m.value, m.low, m.high], float) for m in (written, counted))  # None becomes NaN
    rest = written.model_copy(update={name: getattr(counted, name) for name in ("value", "low", "high")})
    return rest == counted and np.allclose(found, expected, rtol=0, atol=1e-9, equal_nan=True)


def _label(m: Measurement | None) -> str:
    if m is None:
        return "nothing"
    return f"{m.metric} {m.value} {m.unit} over {m.n} images, interval {m.low} to {m.high} ({m.interval})"


def _remedy(run: str) -> str:
    return f"Restore it from a copy (git), or remove it with its record and run {run} again."
