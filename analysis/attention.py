"""Attention of every block of an encoder, captured during one forward pass, and its statistics."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lutbench.errors import UserError
from lutbench.train.processes import full_precision

T = TypeVar("T")

SMALLEST = 1e-32
"""Added to attention before rows are normalised, so that a row of zeros becomes uniform (value of cl-vs-mim, Park et al. 2023)."""


class Blocks(NamedTuple, Generic[T]):
    """What one pass of B images through L blocks gave; P prefix tokens (class token, registers) come before the N patches."""

    tokens: list[Tensor]
    """L + 1 tensors (B, P + N, D): after every block, and after the encoder's last norm."""
    attention: list[T]
    """L values: what was made of the attention of every block; empty if it was not asked for."""


@torch.no_grad()
def through_blocks(encoder: nn.Module, images: Tensor, reduce: Callable[[Tensor], T] | None = None) -> Blocks[T]:
    """Return the tokens of ``images`` (B, 3, S, S) after every block, and what ``reduce`` makes of every block's attention.

    ``reduce`` is called once a block with the attention (B, H, P + N, P + N), float32 whatever the network's precision, whose
    rows, the queries, sum to 1. It comes from the very queries, keys, mask and scale that the block gives to PyTorch's
    attention, so norms, rotary positions and relative terms are in it; the network goes on with PyTorch's own result. Of
    one block's attention nothing is kept but what ``reduce`` returns. The encoder is taken as it is: in evaluation mode.

    Raises:
        UserError: if the encoder has no blocks, or, where attention is asked for, see :func:`check_readable`.
    """
    blocks = getattr(encoder, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise UserError(
            f"Expected a Vision Transformer, found {type(encoder).__name__}, which has no sequence of blocks. "
            "Analyse another encoder."
        )
    tokens: list[Tensor] = []
    reading = None if reduce is None else _Reading(type(encoder).__name__, len(images), reduce)

    def after(block: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        tokens.append(output)
        if reading is not None:
            reading.end_block()

    hooks = [block.register_forward_hook(after) for block in blocks]
    if reading is not None:
        hooks += [block.register_forward_pre_hook(reading.begin_block) for block in blocks]
    try:
        with _fused(encoder), reading or nullcontext():
            output: Tensor = encoder.forward_features(images)  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
    return Blocks([*tokens, output], [] if reading is None else reading.reduced)


def check_readable(encoder: nn.Module, side: int) -> None:
    """Check that the attention of every block can be read, by a pass of two images (3, side, side); the meta device will do.

    Raises:
        UserError: if a block does not call PyTorch's attention exactly once, with all tokens of an image as queries and keys:
            there is no attention in it, or it is in windows, of several parts, or of differences.
    """
    weight = next(encoder.parameters())
    through_blocks(encoder, weight.new_zeros(2, 3, side, side), lambda attention: None)


def attention_statistics(attention: Tensor, prefix: int, distances: Tensor, *, class_token: bool = True) -> Tensor:
    """Return distance, entropy, NMI and the shares for the class token and for itself (B, H, 5), as ``ATTENTION`` names them.

    ``attention`` (B, H, P + N, P + N) with ``prefix`` = P tokens before the patches; ``distances`` (N, N) between patches, on the
    same device; ``class_token`` says whether the first prefix token is one (else it is a register, and the share is 0). For
    the first three only patches count, as queries and as keys, and rows are divided by their sums (cl-vs-mim, Park et al.
    2023); all are means over the patch queries.

    - Distance, in the unit of ``distances``: of the keys, weighted by attention (ViT, Dosovitskiy et al. 2021, figure 7).
    - Entropy of a query's attention, in nats: 0 to log N.
    - Normalised mutual information I(q; k) / sqrt(H(q) H(k)) of queries and keys, all queries equally likely; 0 where all
      look at the same patch.
    - Share of a patch's attention that goes to the class token, and to the patch itself, of all its attention.
    """
    patches = attention[..., prefix:, prefix:] + SMALLEST
    patches /= patches.sum(-1, keepdim=True)
    count = patches.shape[-1]
    distance = patches.flatten(-2) @ distances.to(patches).flatten() / count
    entropy = _entropies(patches).mean(-1)  # H(k | q)
    key = _entropies(patches.mean(-2)).clamp(min=0)  # H(k)
    query = torch.full_like(key, count).log()  # H(q)
    shared = torch.minimum((key - entropy).clamp(min=0), key)  # rounding may take it out of its bounds
    nmi = torch.where(key > 0, shared / (query * key).sqrt(), 0)
    itself = attention.diagonal(dim1=-2, dim2=-1)[..., prefix:].mean(-1)
    to_class = attention[..., prefix:, 0].mean(-1) if prefix and class_token else torch.zeros_like(itself)
    return torch.stack([distance, entropy, nmi, to_class, itself], -1)


def attention_maps(attention: Tensor, prefix: int, marked: int, *, class_token: bool = True) -> Tensor:
    """Return where the class token and the patch of index ``marked`` look (B, 2, G, G), means over the heads that sum to 1.

    ``attention`` (B, H, P + N, P + N), N = G^2. Without a ``class_token``, the mean over all patches takes its place.
    """
    heads = attention.mean(1)[..., prefix:]
    first = heads[:, 0] if prefix and class_token else heads[:, prefix:].mean(1)
    maps = torch.stack([first, heads[:, prefix + marked]], 1) + SMALLEST
    maps /= maps.sum(-1, keepdim=True)
    side = round(maps.shape[-1] ** 0.5)
    return maps.reshape(*maps.shape[:2], side, side)


def _entropies(shares: Tensor) -> Tensor:
    """Return the entropies in nats over the last axis, of shares above zero (so without ``torch.special.entr``, twice as slow)."""
    return -shares.log().mul_(shares).sum(-1)


class _Reading(TorchFunctionMode, Generic[T]):
    """Computes attention beside PyTorch's own, which returns none, and reduces it at once."""

    def __init__(self, model: str, images: int, reduce: Callable[[Tensor], T]) -> None:
        super().__init__()
        self.model, self.images, self.reduce = model, images, reduce
        self.reduced: list[T] = []
        self.block: nn.Module | None = None
        self.tokens = 0
        self.begun = 0

    def begin_block(self, block: nn.Module, inputs: tuple[Tensor]) -> None:
        self.block, self.tokens = block, inputs[0].shape[1]
        self.begun += 1

    def end_block(self) -> None:
        if len(self.reduced) < self.begun:
            raise self._refused("none")
        self.block = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention and self.block is not None:
            self._read(*args, **kwargs)
        return result

    def _read(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        """Take the arguments of PyTorch's attention: ``query`` and ``key`` (B, H, P + N, d)."""
        if len(self.reduced) == self.begun:
            raise self._refused("more than one")
        expected = (self.images, query.shape[1], self.tokens)
        if not query.shape[:-1] == key.shape[:-1] == expected:
            raise self._refused(f"queries of shape {tuple(query.shape)} and keys of shape {tuple(key.shape)}")
        with full_precision(query.device):
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            scores = (query.float() * scale) @ key.float().mT
            if is_causal:
                attn_mask = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
            if attn_mask is not None and attn_mask.dtype == torch.bool:
                scores.masked_fill_(~attn_mask, -torch.inf)
            elif attn_mask is not None:
                scores += attn_mask
            self.reduced.append(self.reduce(scores.softmax(-1)))

    def _refused(self, found: str) -> UserError:
        return UserError(
            f"{self.model}: expected one attention over all {self.tokens} tokens of an image in block {self.begun} "
            f"({type(self.block).__name__}), found {found}. Analyse another encoder."
        )


@contextmanager
def _fused(encoder: nn.Module) -> Iterator[None]:
    """Have timm's modules call PyTorch's attention, in whatever way they are set to compute their own."""
    modules = [module for module in encoder.modules() if hasattr(module, "fused_attn")]
    before = [module.fused_attn for module in modules]
    try:
        for module in modules:
            module.fused_attn = True  # type: ignore[assignment]
        yield
    finally:
        for module, fused in zip(modules, before, strict=True):
            module.fused_attn = fused
