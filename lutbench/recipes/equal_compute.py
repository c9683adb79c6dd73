"""The epochs that a budget gives a pre-training run; :mod:`lutbench.recipes.budget` reads budgets from the suite file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Budget:
    """The epochs of a pre-training run for the same compute as another run, see :mod:`lutbench.recipes.budget`."""

    like: str
    """The other run's name in the suite file."""
    unit: Literal["flop", "seconds"]
    epochs: int
    like_epochs: int
    """Epochs of the other run."""
    each: float
    """FLOP, or measured seconds, per training image."""
    like_each: float
    """FLOP or seconds per training image of the other run."""
    machine: str = ""
    """The machine on which seconds were measured."""
    kept: Path | None = None
    """The file with the measured speeds, if there is one."""
    poor: str = ""
    """A warning, without full stop, if a speed was measured over few steps; else empty."""

    @property
    def excess(self) -> float:
        """Relative difference in compute to the other run, which remains because epochs are whole numbers."""
        return self.epochs * self.each / (self.like_epochs * self.like_each) - 1

    def sentence(self, name: str, with_file: bool = False, labels: Mapping[str, str] | None = None) -> str:
        """Return a sentence with the epochs of run ``name`` and the compute per image of both runs.

        ``with_file`` adds the file with the speeds and a warning about inaccurate ones. Runs are named by ``labels``, or as in the
        suite file.
        """
        own, like = ((labels or {}).get(run, f"pretrain.{run}") for run in (name, self.like))
        what = "FLOP" if self.unit == "flop" else "seconds"
        machine = f" on {self.machine}" if self.machine else ""
        kept = f"; speeds from {self.kept} (remove the file to measure again)" if self.kept else ""
        return (
            f"{own}: {self.epochs:,} epochs, for the same {what} as {self.like_epochs:,} epochs of {like} "
            f"({100 * self.excess:+.2f} %): {self.each:.3g} and {self.like_each:.3g} {what} per image{machine}"
            f"{kept if with_file else ''}."
            f"{f' {self.poor}.' if with_file and self.poor else ''}"
        )
