"""The dialects in which encoders are written, and timm's names for each."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor


class Dialect(NamedTuple):
    """A way to name the parameters of an encoder."""

    name: str
    patch_embedding: str
    """What the name of its patch embedding's weight ends in."""
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    """Returns timm's names; the encoder's prefix is removed before, and a name that it does not know stays as it is."""
    left_out: re.Pattern[str]
    """What may lie beside the encoder under the same prefix."""


DIALECTS: tuple[Dialect, ...] = (Dialect("timm", "patch_embed.proj.weight", dict, re.compile(r"(?!)")),)
