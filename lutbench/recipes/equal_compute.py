"""What a budget gave a pre-training run, see :mod:`lutbench.recipes.budget`, which reads it from the suite file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Budget:
    """What gave a pre-training run its epochs: as much compute as another one's, see :mod:`lutbench.recipes.budget`."""

    like: str
    """The other run's name in the suite file."""
    unit: Literal["flop", "seconds"]
    epochs: int
    like_epochs: int
    """Those of the other run."""
    each: float
    """FLOP, or measured seconds, for one image that is trained on."""
    like_each: float
    """The same of the other run."""
    machine: str = ""
    """Where the seconds were measured."""
    kept: Path | None = None
    """The file that keeps the speeds, if one does."""
    poor: str = ""
    """A sentence on a speed that was measured over few steps, without its stop."""

    @property
    def excess(self) -> float:
        """What it takes more than the other run, as a share of that: what whole epochs cannot settle."""
        return self.epochs * self.each / (self.like_epochs * self.like_each) - 1

    def sentence(self, name: str, with_file: bool = False, labels: Mapping[str, str] | None = None) -> str:
        """Return what the run ``name`` was given, and on what grounds; ``with_file`` also where these are kept and whether
        they are poor.

        Runs are called by their ``labels``, or else as the suite file has them.
        """
        own, like = ((labels or {}).get(run, f"pretrain.{run}") for run in (name, self.like))
        what = "FLOP" if self.unit == "flop" else "seconds"
        machine = f" on {self.machine}" if self.machine else ""
        kept = f", kept in {self.kept}, which is to be removed before they are measured anew" if self.kept else ""
        return (
            f"{own}: {self.epochs:,} epochs, for the {what} of the {self.like_epochs:,} of {like} "
            f"({100 * self.excess:+.2f} %): {self.each:.3g} and {self.like_each:.3g} {what} for an image{machine}"
            f"{kept if with_file else ''}."
            f"{f' {self.poor}.' if with_file and self.poor else ''}"
        )
