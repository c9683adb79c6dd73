"""The FLOP per image and the number of weights of a model, counted on the meta device without training or memory.

Matrix products, convolutions and attention are counted; the rest is small. Each kind of run has its own ``cost(run, classes)``, which
uses these numbers, see :mod:`lutbench.kinds`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from lutbench.models.encoders import create_encoder, feature_width
from lutbench.models.meta import shapes_only
from lutbench.plan.cost import NotCountedError
from lutbench.recipes.base import EncoderRecipe

STEP = 3
"""FLOP of forward and backward pass over those of the forward pass: the backward pass has two matrix products for each of the forward pass."""

COUNTED = 2
"""Images in the batch that is counted: a batch norm takes no single one."""


class Counted(NamedTuple):
    """The size of a model."""

    flop: float
    """FLOP of the forward pass of one image."""
    values: int
    """Numbers in its weights."""


def counted(call: Callable[[], object]) -> int:
    """Return the FLOP of a call on meta tensors: of matrix products, convolutions and attention, two per multiplication."""
    # Attention as plain products: fused kernels have no formula on every device, and the same FLOP.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, _ByShape() as own:
        call()
    return int(counter.get_total_flops() + own.flop)


class _ByShape(TorchFunctionMode):
    """Counts linear layers and attention by their shapes in place of calling them.

    They are nearly all that a transformer computes, and torch's counter, which counts the rest, takes half a second for each model.
    """

    flop: int = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func is functional.linear:
            inputs, weight = _first(("input", "weight"), args, named)  # (..., a) and (b, a)
            self.flop += 2 * inputs.numel() * weight.shape[0]
            return inputs.new_empty(*inputs.shape[:-1], weight.shape[0])
        if func is functional.scaled_dot_product_attention:
            query, key, value = _first(
                ("query", "key", "value"), args, named
            )  # (..., n, d), (..., m, d) and (..., m, e)
            rows, keys = query.numel() // query.shape[-1], key.shape[-2]
            self.flop += 2 * rows * keys * (query.shape[-1] + value.shape[-1])
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **named)


def _first(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the arguments of these names, the first of a call, given by place or by name."""
    return [args[place] if place < len(args) else kwargs[name] for place, name in enumerate(names)]


def count(model: nn.Module, side: int) -> Counted:
    """Return what a model on the meta device takes for images (3, side, side)."""
    pixels = torch.empty(COUNTED, 3, side, side, device="meta")
    return Counted(counted(lambda: model(pixels)) / COUNTED, values(model))


def values(model: nn.Module) -> int:
    """Return how many numbers the weights and statistics of a model are."""
    return sum(tensor.numel() for tensor in model.state_dict().values())


def transformer(architecture: EncoderRecipe, side: int, classes: int = 0) -> Counted:
    """Return what an encoder takes, of any architecture, with, for ``classes`` above 0, a linear layer on its mean.

    Raises:
        UserError: if it cannot be built, or counted (:class:`NotCountedError`).
    """
    encoder = _encoder(architecture, side)
    if not classes:
        return encoder
    width = feature_width(architecture, side)
    return Counted(encoder.flop + 2 * width * classes, encoder.values + (width + 1) * classes)


@cache
def _encoder(architecture: EncoderRecipe, side: int) -> Counted:
    with shapes_only():
        encoder = create_encoder(architecture, side).eval()
        try:
            return count(encoder, side)
        except Exception as error:  # whatever a model of timm does that torch's counter trips over
            raise NotCountedError(
                f"model = {architecture.model!r}: its FLOP cannot be counted ({type(error).__name__}: {error})."
            ) from error
