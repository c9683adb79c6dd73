"""What a check found of a dataset, kept at ``ROOT/.lutbench/NAME.json``, so that a later check can say what changed.

The fingerprint of a split is the one that goes into the identity of every run on it and into the run's record. So a record
and a manifest with the same fingerprint are about the same images: whether those could all be decoded, and what was
in both splits, stands in the manifest; records repeat none of it.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lutbench import __version__
from lutbench.errors import UserError
from lutbench.files import read_model, write_json

NAMED = 1000
"""At most so many names of each kind are kept; the numbers are whole."""


class SplitMetadata(BaseModel):
    """What a check found of one split, or of one condition of a robustness dataset."""

    model_config = ConfigDict(extra="forbid")

    images: int
    classes: int
    bytes: int
    """Size of all encoded images; masks are not counted."""
    fingerprint: str
    """The same as in records."""
    looked_at: int
    """Images that the check tried to decode."""
    undecodable: int
    undecodable_names: list[str]
    duplicates: int = 0
    """Images that are in train too, byte for byte, as far as was compared."""
    duplicate_names: list[tuple[str, str]] = []
    """Their names in this split, and in train."""


class Manifest(BaseModel):
    """A dataset, as one check found it."""

    model_config = ConfigDict(extra="forbid")

    set: str
    date: str
    """Time of the check, UTC, in ISO 8601."""
    lutbench: str
    """Version of this package that made the check."""
    fingerprint: str = ""
    """Of a robustness dataset as a whole, as in records; empty for others, which have one for each split."""
    splits: dict[str, SplitMetadata]

    @property
    def looked_at(self) -> int:
        """Number of images that the check tried to decode, of all splits."""
        return sum(metadata.looked_at for metadata in self.splits.values())

    @property
    def content(self) -> dict[str, str]:
        """The fingerprint of each split."""
        return {split: metadata.fingerprint for split, metadata in self.splits.items()}


@dataclass
class IntegrityReport:
    """Findings of a check, or of a part of it."""

    lines: list[str] = field(default_factory=list)
    """What was counted and compared."""
    notes: list[str] = field(default_factory=list)
    """What is unusual and no fault."""
    problems: list[str] = field(default_factory=list)


def manifest_path(name: str, root: Path) -> Path:
    """Return the path of a dataset's manifest, present or not."""
    return (root / ".lutbench" / f"{name}.json").absolute()


def keep_manifest(
    name: str, splits: dict[str, SplitMetadata], fingerprint: str, root: Path, report: IntegrityReport
) -> None:
    """Compare what a check found with the manifest that is kept, report on it, and replace it.

    A manifest of the same content, made by a check that decoded more images, stays, and what it found undecodable counts.
    """
    date = datetime.now(UTC).isoformat(timespec="seconds")
    new = Manifest(set=name, date=date, lutbench=__version__, fingerprint=fingerprint, splits=splits)
    path = manifest_path(name, root)
    old = read_model(path, Manifest)
    same = old is not None and old.content == new.content
    if old is None and path.exists():
        report.notes.append(
            f"The manifest {path} could not be read, and is made anew: what earlier checks found is lost."
        )
    if old and not same:
        report.notes.append(f"Changed since the check of {old.date[:10]}: {'; '.join(_changes(old, new))}.")
    elif old and old.looked_at > new.looked_at:
        report.lines.append(f"equals its manifest of {old.date[:10]}, which stays: more images were looked at, {path}")
        report.problems += [
            f"{split}: {metadata.undecodable:,} images could not be decoded in the check of {old.date[:10]}: "
            f"{', '.join(metadata.undecodable_names[:5])}. If they were mended, check again with --full."
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
    report.lines.append(f"equals its manifest of {old.date[:10]}: {path}" if old and same else f"manifest: {path}")


def _changes(old: Manifest, new: Manifest) -> list[str]:
    changes = []
    for split in dict.fromkeys([*old.splits, *new.splits]):
        before, now = old.splits.get(split), new.splits.get(split)
        if before is None or now is None:
            changes.append(f"{split or 'its images'} {'was added' if now else 'cannot be opened any more'}")
        elif before.fingerprint != now.fingerprint:
            parts = [
                f"{getattr(now, what):,} {what} ({getattr(now, what) - getattr(before, what):+,})"
                for what in ("images", "classes", "bytes")
                if getattr(now, what) != getattr(before, what)
            ]
            what = ", ".join(parts) or "as many images, classes and bytes, with other names, classes or masks"
            changes.append(f"{split}: {what}, fingerprint {before.fingerprint[:12]} is now {now.fingerprint[:12]}")
    return changes
