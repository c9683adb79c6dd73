"""Build and call modules only for their shapes, on PyTorch's meta device, whose tensors have no values.

Initialisation and normalisation have no effect there but take most of the time: without them a timm model is built six times as
fast.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

IN_PLACE = frozenset(
    {
        Tensor.add_,
        Tensor.clamp_,
        Tensor.div_,
        Tensor.erfinv_,
        Tensor.fill_,
        Tensor.mul_,
        Tensor.normal_,
        Tensor.uniform_,
        Tensor.zero_,
    }
)
"""What initial values are made with: of a tensor without values it leaves what it finds."""

SAME_SHAPE = frozenset({functional.gelu, functional.layer_norm})
"""What returns the shape of its first argument."""


@contextmanager
def shapes_only() -> Iterator[None]:
    """Make tensors inside the block on the meta device, and leave out what changes values and no shape."""
    with torch.device("meta"), _WithoutValues():
        yield


class _WithoutValues(TorchFunctionMode):
    """Leaves out :data:`IN_PLACE` and :data:`SAME_SHAPE` for tensors on the meta device; others, such as counters, change."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in IN_PLACE and args and args[0].is_meta:
            return args[0]
        if func in SAME_SHAPE and args and args[0].is_meta:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))
