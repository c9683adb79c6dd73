"""Speeds measured on GPUs: ``measured.json``, written by ``benchmarks/gpu/measure.py --keep`` and read by ``lutbench plan``.

``docs/benchmarks.md`` shows the same numbers.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt

from lutbench.errors import UserError, listed, unknown
from lutbench.files import read_json
from lutbench.recipes.base import EncoderRecipe
from lutbench.run import Run

TABLE = Path(__file__).with_name("measured.json")

WHOLE_RUN = "a whole run"
"""How the variant of a speed begins that is a run's with real loading, not that of steps on the same data; `` from files`` or `` from cache``
follows."""


class Speed(BaseModel):
    """The measured speed of one model in one kind of step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    """The kind of run that has such steps, see :mod:`lutbench.kinds`."""
    variant: str = ""
    """How the step differed from that of a run, such as ``eager``; empty if it did not."""
    model: str
    """timm's name of the encoder, at its own sizes and 224 pixels."""
    batch: PositiveInt
    images_per_second: PositiveFloat
    flop_per_image: PositiveFloat
    first_step_s: NonNegativeFloat | None = None
    """Seconds of the first step, compiling included."""
    memory_gib: PositiveFloat | None = None
    """Peak of the memory allocated on the GPU."""
    waiting_for_data: NonNegativeFloat | None = None
    """Share of a whole run's time in which it waited for data."""


class Card(BaseModel):
    """A measured GPU: its speeds, and the versions they were measured with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    card: str
    """Its name in CUDA."""
    memory_gib: PositiveFloat
    machine: str
    """The machine that it was in."""
    cuda: str
    versions: dict[str, str]
    code: str
    """Version and commit of this suite."""
    date: str
    command: str
    matrix_flops: PositiveFloat | None = None
    """FLOP/s of large bf16 matrix products."""
    speeds: tuple[Speed, ...]

    def flops(self, run: Run[Any]) -> float | None:
        """Return its sustained FLOP/s in the steps of a run; None if no steps of this kind and model were measured.

        With several batch sizes, the slowest one counts. Runs of one kind and model have the same kind of FLOP, but not the same number:
        MAE's images are cheaper than LUT's.
        """
        if (architecture := run.architecture) is None:
            return None
        found = [
            speed.images_per_second * speed.flop_per_image
            for speed in self.speeds
            if (speed.kind, speed.variant) == (run.planned.kind.name, "")
            and EncoderRecipe(model=speed.model).affecting_results() == architecture.affecting_results()
        ]
        return min(found, default=None)

    def __str__(self) -> str:
        return f"{self.card} ({self.date}, torch {self.versions.get('torch')}, CUDA {self.cuda})"


class _Cards(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    cards: tuple[Card, ...]


def measured_cards(table: Path = TABLE) -> tuple[Card, ...]:
    """Return the measured GPUs."""
    return _Cards.model_validate(read_json(table)).cards


def choose_card(cards: Sequence[Card], card: str | None, gpu: str | None, flops: float | None) -> Card | None:
    """Return the measured GPU whose speeds a plan uses: ``--card``; else ``--gpu``, if it was measured; else the only measured one.

    With ``--flops``, which gives the speed itself, none is used.

    Raises:
        UserError: if ``card`` was not measured, or names several.
    """
    named = [one for one in cards if (name := card or gpu) and _is_named(one.card, name)]
    if card is None:
        candidates = [] if flops is not None else named if gpu else cards
        return candidates[0] if len(candidates) == 1 else None
    if len(named) == 1:
        return named[0]
    if named:
        raise UserError(
            f"--card {card} matches several GPUs: {listed(one.card for one in named)}. Give more of the name."
        )
    if not cards:
        raise UserError(
            f"--card {card}: no GPU has been measured yet. For an estimate, give --gpu NAME or --flops NUMBER; "
            "benchmarks/gpu/measure.py --keep measures a GPU."
        )
    raise unknown(f"--card {card}: this GPU was not measured", card, [one.card for one in cards])


def _is_named(card: str, name: str) -> bool:
    """Return whether a name is that of a GPU or a part of it: ``h100`` and ``rtx4090`` match ``NVIDIA H100 PCIe`` and ``... RTX 4090``."""
    parts = map(re.escape, re.findall(r"[a-z]+|\d+|\S", name.lower()))
    return re.search(rf"\b{' ?'.join(parts)}\b", card.lower()) is not None
