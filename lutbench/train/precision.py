"""The meaning of ``precision = "auto"``: decided when a run starts, from the machine, and kept when it resumes."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lutbench.errors import UserError
from lutbench.models.encoders import geometry_of, is_plain
from lutbench.train.processes import greatest, precision_of

if TYPE_CHECKING:
    from lutbench.run import Run

Precision = Literal["bf16", "fp32"]

WIDTH = 192
"""Width of the narrowest ViT that computes in bf16 on processors which multiply it (our measurement on one with avx512_bf16: a step took
1.3 to 1.6 times as long in float32 at width 192 and above, and narrower ones were no faster)."""

MULTIPLIES_BF16 = frozenset({"avx512_bf16", "amx_bf16"})
"""CPU flags in Linux's /proc/cpuinfo for native bf16 multiplication; other CPUs convert, which is slower than float32."""


def precision_at_start(run: "Run[Any]") -> Precision:
    """Return the precision of a run that starts on this machine.

    ``auto`` is bf16 if the GPU supports it or, for a plain ViT of width :data:`WIDTH` or more, if the CPUs of all processes do;
    else float32. With several processes, all must call it at the same time.
    """
    setting = run.recipe.precision
    if setting == "auto" and processors_multiply_bf16() and (_width(run) or 0) >= WIDTH:
        return "bf16"
    return "bf16" if precision_of(setting) == "bf16" else "fp32"


@lru_cache(maxsize=1)
def processors_multiply_bf16() -> bool:
    """Return whether the processors of all processes do; the first call is made by all of them at once."""
    return greatest(not flags_of(Path("/proc/cpuinfo")) & MULTIPLIES_BF16) == 0


def flags_of(info: Path) -> frozenset[str]:
    """Return the flags of a processor, as Linux lists them in ``info``; none where there is no such file."""
    if not info.is_file():
        return frozenset()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def _width(run: "Run[Any]") -> int | None:
    """Return the width of the plain ViT that a run computes with; None of other models, and of classifiers that no run made."""
    architecture = run.architecture
    try:
        return geometry_of(architecture).width if architecture is not None and is_plain(architecture) else None
    except UserError:  # the run's own check says so
        return None
