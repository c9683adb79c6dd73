"""Estimated speeds of GPUs that were not measured: a share of the peak in the data sheet, see ``gpus.toml``."""

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from lutbench.errors import unknown

TABLE = Path(__file__).with_name("gpus.toml")


class Gpu(NamedTuple):
    """A GPU as its vendor describes it."""

    model: str
    tflops: float
    """TFLOP/s of dense bf16 matrix products, the peak."""
    source: str
    """The vendor's document."""
    share: float
    """The share of the peak that a run is assumed to reach."""

    @property
    def flops(self) -> float:
        """FLOP/s that a run is assumed to reach."""
        return self.share * self.tflops * 1e12

    def __str__(self) -> str:
        return (
            f"estimated, not measured: {self.share * 100:g} % of the peak in the data sheet "
            f"({self.model}: {self.tflops:g} TFLOP/s, dense bf16)"
        )


def known_gpus() -> dict[str, Gpu]:
    """Return the GPUs of the table, by their names for ``--gpu``."""
    table: dict[str, Any] = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {name: Gpu(**gpu, share=table["share"]) for name, gpu in table["gpu"].items()}


def find_gpu(name: str) -> Gpu:
    """Return a GPU by its name, in upper or lower case.

    Raises:
        UserError: if the table does not have it.
    """
    known = known_gpus()
    if (gpu := known.get(name.lower())) is None:
        raise unknown(
            f"--gpu {name}: unknown GPU; give its sustained FLOP/s with --flops, or choose another one", name, known
        )
    return gpu
