"""What a check found of a set, kept at ``ROOT/.lutbench/NAME.json``, so that a later check can say what changed.

The fingerprint of a split is the one that goes into the identity of every run on it and into the run's record. So a record
and a manifest with the same fingerprint are about the same images: whether those could all be decoded, and what was
in both splits, stands in the manifest; records repeat none of it.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lutbench import __version__
from lutbench.errors import UserError
from lutbench.files import NotJsonError, read_json, write_json

NAMED = 1000
"""At most so many names of each kind are kept; the numbers are whole."""


class SplitMetadata(BaseModel):
    """One split, or one part of a shifted set."""

    model_config = ConfigDict(extra="forbid")

    images: int
    classes: int
    bytes: int
    """Of all encoded images, masks not counted."""
    fingerprint: str
    """As in records."""
    looked_at: int
    """Images that the check tried to decode."""
    undecodable: int
    undecodable_names: list[str]
    duplicates: int = 0
    """Images that are in train too, byte for byte, as far as was compared."""
    duplicate_names: list[tuple[str, str]] = []
    """Here, and in train."""


class Manifest(BaseModel):
    """One set, as one check found it."""

    model_config = ConfigDict(extra="forbid")

    set: str
    date: str
    """Of the check, UTC, as ISO 8601 has it."""
    lutbench: str
    """Version of this package."""
    fingerprint: str = ""
    """Of a shifted set as a whole, as in records; empty for others, which have one for each split."""
    splits: dict[str, SplitMetadata]

    @property
    def looked_at(self) -> int:
        """Images of all splits."""
        return sum(metadata.looked_at for metadata in self.splits.values())

    @property
    def content(self) -> dict[str, str]:
        """The fingerprint of every split."""
        return {split: metadata.fingerprint for split, metadata in self.splits.items()}


@dataclass
class IntegrityReport:
    """What a check, or a part of it, found."""

    lines: list[str] = field(default_factory=list)
    """What was seen."""
    notes: list[str] = field(default_factory=list)
    """What is unusual and no fault."""
    problems: list[str] = field(default_factory=list)

    def add(self, other: "IntegrityReport") -> None:
        """Take up what another part found."""
        self.lines += other.lines
        self.notes += other.notes
        self.problems += other.problems


def new_manifest(name: str, splits: dict[str, SplitMetadata], fingerprint: str = "") -> Manifest:
    """A manifest of now."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Manifest(set=name, date=date, lutbench=__version__, fingerprint=fingerprint, splits=splits)


def manifest_path(name: str, root: Path) -> Path:
    """Where a set's manifest is."""
    return (root / ".lutbench" / f"{name}.json").absolute()


def read_manifest(path: Path) -> Manifest | None:
    """The manifest there; None if there is none that this version can read."""
    try:
        return Manifest.model_validate(read_json(path))
    except (OSError, NotJsonError, ValidationError):
        return None


def keep_manifest(new: Manifest, root: Path) -> IntegrityReport:
    """Compare ``new`` with the manifest that is there, and put it in its place.

    One of the same content that looked at more images stays, and what it found undecodable counts.
    """
    path, kept = manifest_path(new.set, root), IntegrityReport()
    old = read_manifest(path)
    if old is None and path.exists():
        kept.notes.append(
            f"The manifest {path} could not be read, and is made anew: what earlier checks found is lost."
        )
    if old and old.content != new.content:
        kept.notes.append(f"Changed since the check of {old.date[:10]}: {'; '.join(_changes(old, new))}.")
    elif old and old.looked_at > new.looked_at:
        kept.lines.append(f"equals its manifest of {old.date[:10]}, which stays: more images were looked at, {path}")
        kept.problems = [
            f"{split}: {metadata.undecodable:,} images could not be decoded in the check of {old.date[:10]}: "
            f"{', '.join(metadata.undecodable_names[:5])}. If they were mended, check again with --full."
            for split, metadata in old.splits.items()
            if metadata.undecodable > new.splits[split].undecodable
        ]
        return kept
    try:
        write_json(path, new.model_dump(mode="json"))
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        kept.notes.append(f"The manifest {path} could not be written: {reason}.")
        return kept
    same = old is not None and old.content == new.content
    kept.lines.append(f"equals its manifest of {old.date[:10]}: {path}" if old and same else f"manifest: {path}")
    return kept


def _changes(old: Manifest, new: Manifest) -> list[str]:
    told = []
    for split in dict.fromkeys([*old.splits, *new.splits]):
        before, now = old.splits.get(split), new.splits.get(split)
        if before is None or now is None:
            told.append(f"{split or 'its images'} {'was added' if now else 'cannot be opened any more'}")
        elif before.fingerprint != now.fingerprint:
            parts = [
                f"{getattr(now, what):,} {what} ({getattr(now, what) - getattr(before, what):+,})"
                for what in ("images", "classes", "bytes")
                if getattr(now, what) != getattr(before, what)
            ]
            what = ", ".join(parts) or "as many images, classes and bytes, with other names, classes or masks"
            told.append(f"{split}: {what}, fingerprint {before.fingerprint[:12]} is now {now.fingerprint[:12]}")
    return told
