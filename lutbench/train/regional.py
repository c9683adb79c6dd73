"""Block by block: compiling a network, and keeping no more of it for the backward pass than its blocks' inputs.

All blocks of a network are alike, so that a compiler compiles one: seconds, where a whole network takes minutes. Between them
DistributedDataParallel averages gradients while others are computed. Neither changes modules, nor names of parameters.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lutbench.errors import UserError
from lutbench.recipes.base import Compile
from lutbench.train.batchnorm import batch_norms
from lutbench.train.processes import accelerator


def compiles(setting: Compile) -> bool:
    """Return what a recipe's ``compile`` means here: ``auto`` compiles for a GPU, and not for a CPU, where it wins less than it takes."""
    return accelerator().device.type == "cuda" if setting == "auto" else setting


def compile_blocks(*networks: nn.Module, whole: bool = False) -> None:
    """Compile the blocks of networks in place; a network that has no row of blocks stays as it is, or is compiled as a ``whole``."""
    for network in networks:
        blocks = blocks_of(network)
        for module in ((network,) if whole else ()) if blocks is None else blocks:
            module.compile(dynamic=False)


def checkpoint_blocks(*networks: nn.Module) -> None:
    """Let the blocks of networks keep their input alone for the backward pass, in place, and compute the rest again there.

    Call it before :func:`compile_blocks`. The bits stay: a block has nothing random but paths that are drawn before the pass.

    Raises:
        UserError: if a network has no row of blocks, or BatchNorm, which would count every batch twice.
    """
    for network in networks:
        blocks = blocks_of(network)
        if blocks is None or batch_norms(network):
            raise UserError(
                f"checkpointing = true: expected blocks in a row without BatchNorm, as a Vision Transformer has them, found {type(network).__name__}. "
                "Set checkpointing = false, and a smaller micro_batch if the memory does not suffice."
            )
        for block in blocks:
            block.forward = partial(_checkpointed, block.forward)


def blocks_of(network: nn.Module) -> nn.Sequential | None:
    """Return the row of blocks of a network, of a framework's decoder too; None if it has none."""
    blocks = getattr(network, "blocks", None)
    return blocks if isinstance(blocks, nn.Sequential) else None


def _checkpointed(forward: Any, *inputs: Any, **options: Any) -> Tensor:
    """Return ``forward(*inputs, **options)``. What is random is none of its own, so that no generator has to be put back."""
    if not torch.is_grad_enabled():
        result: Tensor = forward(*inputs, **options)
        return result
    again: Tensor = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
    return again
