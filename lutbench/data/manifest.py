"""Manifests: the findings of a dataset check, stored in ``ROOT/.lutbench/NAME.json``, so that a later check can report changes.

The fingerprint of a split is also part of the identity and the record of every run on it. So a record and a manifest with the same
fingerprint refer to the same images. Undecodable images and duplicates between splits are listed only in the manifest.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lutbench import __version__
from lutbench.errors import UserError
from lutbench.files import read_model, write_json

NAMED = 1000
"""Maximum number of names stored per kind; counts are complete."""


class SplitMetadata(BaseModel):
    """Findings in one split, or in one condition of a robustness dataset."""

    model_config = ConfigDict(extra="forbid")

    images: int
    classes: int
    bytes: int
    """Total size of the encoded images, without masks."""
    fingerprint: str
    """The same as in records."""
    looked_at: int
    """Images that the check tried to decode."""
    undecodable: int
    undecodable_names: list[str]
    duplicates: int = 0
    """Images that are also in train, byte for byte, among those compared."""
    duplicate_names: list[tuple[str, str]] = []
    """Names in this split and in train."""


class Manifest(BaseModel):
    """Findings of one check of a dataset."""

    model_config = ConfigDict(extra="forbid")

    set: str
    date: str
    """Time of the check: UTC, ISO 8601."""
    lutbench: str
    """Version of this package that made the check."""
    fingerprint: str = ""
    """Fingerprint of a whole robustness dataset, as in records; empty for other datasets, which have one per split."""
    splits: dict[str, SplitMetadata]

    @property
    def looked_at(self) -> int:
        """Number of images in all splits that the check tried to decode."""
        return sum(metadata.looked_at for metadata in self.splits.values())

    @property
    def content(self) -> dict[str, str]:
        """The fingerprint of each split."""
        return {split: metadata.fingerprint for split, metadata in self.splits.items()}


@dataclass
class IntegrityReport:
    """Findings of a check, or of a part of it."""

    lines: list[str] = field(default_factory=list)
    """Counts and comparisons."""
    notes: list[str] = field(default_factory=list)
    """Unusual findings that are not faults."""
    problems: list[str] = field(default_factory=list)


def manifest_path(name: str, root: Path) -> Path:
    """Return the path of a dataset's manifest, which need not exist."""
    return (root / ".lutbench" / f"{name}.json").absolute()


def keep_manifest(
    name: str, splits: dict[str, SplitMetadata], fingerprint: str, root: Path, report: IntegrityReport
) -> None:
    """Compare the findings of a check with the stored manifest, report changes, and replace the manifest.

    A manifest of the same content from a check that decoded more images is kept, and its undecodable images are reported.
    """
    date = datetime.now(UTC).isoformat(timespec="seconds")
    new = Manifest(set=name, date=date, lutbench=__version__, fingerprint=fingerprint, splits=splits)
    path = manifest_path(name, root)
    old = read_model(path, Manifest)
    same = old is not None and old.content == new.content
    if old is None and path.exists():
        report.notes.append(
            f"The manifest {path} could not be read and is written again: findings of earlier checks are lost."
        )
    if old and not same:
        report.notes.append(f"Changed since the check on {old.date[:10]}: {'; '.join(_changes(old, new))}.")
    elif old and old.looked_at > new.looked_at:
        report.lines.append(
            f"unchanged since {old.date[:10]}; the manifest of that check is kept, as it decoded more images: {path}"
        )
        report.problems += [
            f"{split}: {metadata.undecodable:,} images could not be decoded in the check on {old.date[:10]}: "
            f"{', '.join(metadata.undecodable_names[:5])}. If they were repaired, check again with --full."
            for split, metadata in old.splits.items()
            if metadata.undecodable > new.splits[split].undecodable
        ]
        return
    try:
        write_json(path, new.model_dump(mode="json"))
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        report.notes.append(f"The manifest {path} could not be written: {reason}.")
        return
    report.lines.append(f"unchanged since {old.date[:10]}: {path}" if old and same else f"manifest: {path}")


def _changes(old: Manifest, new: Manifest) -> list[str]:
    changes = []
    for split in dict.fromkeys([*old.splits, *new.splits]):
        before, now = old.splits.get(split), new.splits.get(split)
        if before is None or now is None:
            changes.append(f"{split or 'the dataset'} {'was added' if now else 'can no longer be opened'}")
        elif before.fingerprint != now.fingerprint:
            parts = [
                f"{getattr(now, what):,} {what} ({getattr(now, what) - getattr(before, what):+,})"
                for what in ("images", "classes", "bytes")
                if getattr(now, what) != getattr(before, what)
            ]
            what = ", ".join(parts) or "same number of images, classes and bytes, but other names, classes or masks"
            changes.append(f"{split}: {what}; fingerprint was {before.fingerprint[:12]}, now {now.fingerprint[:12]}")
    return changes
