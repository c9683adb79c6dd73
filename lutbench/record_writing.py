"""Make the record of a run that has just finished, and write it with all its files, atomically."""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from lutbench.evaluate.outcomes import Measurement, PerImage
from lutbench.files import whole_file, write_sealed
from lutbench.losses import LossCurve
from lutbench.provenance import code, hardware, packages
from lutbench.recipes.suite import PlannedRun
from lutbench.record import Attachment, KeptFile, Record, identity_of, is_file_of, record_path


def make_record(
    planned: PlannedRun,
    identity_inputs: Mapping[str, Any],
    measurements: Sequence[Measurement],
    *,
    wall_seconds: float,
    images_per_second: float | None = None,
    checkpoint: str | None = None,
    processes: int = 1,
    sources: Mapping[str, str] | None = None,
    extra: Mapping[str, JsonValue] | None = None,
    curve: LossCurve | None = None,
) -> Record:
    """Make the record of a run that has just finished on this machine; ``sources`` are those of :func:`lutbench.sources.sources_of`."""
    return Record(
        **_names(planned),
        identity=identity_of(identity_inputs),
        document=dict(identity_inputs),
        recipe=without_machine_paths(planned.recipe.model_dump(mode="json")),
        measurements=list(measurements),
        checkpoint=checkpoint,
        code=code().model_copy(update={"sources": dict(sources or {})}),
        packages=packages(),
        hardware=hardware(processes),
        wall_seconds=wall_seconds,
        images_per_second=images_per_second,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        extra=dict(extra or {}),
        curve=curve,
    )


def write_record(
    record: Record,
    outcomes: PerImage | None,
    results_dir: Path,
    *,
    arrays: Mapping[str, NDArray[Any]] | None = None,
    pictures: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a record with its per-image outcomes, arrays and pictures (PNG), and return the record's path.

    An earlier record is replaced atomically: files are named by their hash, so the old ones stay intact until the new JSON is in
    place.

    Raises:
        UserError: on a full disk.
    """
    stem = record_path(results_dir, record.suite, record.run).stem
    contents: dict[str, bytes] = {}

    def keep(content: bytes, ending: str, name: str = "") -> dict[str, str]:
        sha256 = hashlib.sha256(content).hexdigest()
        file = f"{'-'.join(filter(None, (stem, name, sha256[:12])))}.{ending}"
        contents[file] = content
        return {"file": file, "sha256": sha256}

    kept: dict[str, Any] = {"attachments": []}
    if outcomes is not None:
        kept["outcomes_file"] = KeptFile(**keep(_packed(outcomes), "npz"))
    for name, array in (arrays or {}).items():
        kept["attachments"].append(Attachment(name=name, kind="array", **keep(_array_bytes(array), "npy", name)))
    for name, picture in (pictures or {}).items():
        kept["attachments"].append(Attachment(name=name, kind="picture", **keep(picture, "png", name)))
    return _write(record.model_copy(update=kept), contents, results_dir)


def renamed_record(record: Record, planned: PlannedRun) -> Record:
    """Return the record of a run of the same identity under the name of ``planned``, with its original name in ``made_as``."""
    made_as = record.made_as or f"{record.suite}/{record.run}"
    return record.model_copy(update={**_names(planned), "made_as": made_as})


def _names(planned: PlannedRun) -> dict[str, Any]:
    """Return the fields of a record that say which run of a suite it is of."""
    names = ("suite", "stage", "task", "method", "seed", "draw")
    return {**{name: getattr(planned, name) for name in names}, "run": planned.name}


def copy_record(record: Record, results_dir: Path) -> Path:
    """Write a record that was read, with all its files, to another results folder or under its new name.

    Raises:
        UserError: on a full disk, or if one of its files is damaged.
    """
    stem = record_path(results_dir, record.suite, record.run).stem
    names = {kept.file: re.sub(r"^seed\d+(-draw\d+)?-", f"{stem}-", kept.file) for kept in record.files}
    contents = {names[kept.file]: record.content(kept) for kept in record.files}
    kept: dict[str, Any] = {
        "attachments": [one.model_copy(update={"file": names[one.file]}) for one in record.attachments]
    }
    if outcomes := record.outcomes_file:
        kept["outcomes_file"] = outcomes.model_copy(update={"file": names[outcomes.file]})
    return _write(record.model_copy(update=kept), contents, results_dir)


def _write(record: Record, contents: Mapping[str, bytes], results_dir: Path) -> Path:
    path = record_path(results_dir, record.suite, record.run)
    for file, content in contents.items():
        with whole_file(path.with_name(file)) as partial:
            partial.write_bytes(content)
    not_said = {
        name for name in ("made_as", "draw", "curve") if not getattr(record, name)
    }  # as records were before there was any
    write_sealed(path, record.model_dump(mode="json", by_alias=True, exclude=not_said))
    for old in path.parent.glob(f"{path.stem}-*.*"):
        if old.name not in contents and old.suffix in (".npz", ".npy", ".png") and is_file_of(old.name, path.stem):
            old.unlink()
    return path


def _packed(outcomes: PerImage) -> bytes:
    """Return outcomes as ``.npz``; equal outcomes give equal bytes, because NumPy writes no timestamps."""
    content = io.BytesIO()
    np.savez_compressed(content, **outcomes.arrays())  # type: ignore[arg-type]
    return content.getvalue()


def _array_bytes(array: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def without_machine_paths(value: Any) -> Any:
    """Return settings with absolute paths, which depend on the machine, cut to file or folder names."""
    if isinstance(value, dict):
        return {key: without_machine_paths(inner) for key, inner in value.items()}
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith("~")):
        return PurePath(value).name
    return value
