"""Regional compilation and activation checkpointing, block by block.

All blocks of a network are equal, so only one is compiled: this takes seconds, a whole network minutes. DistributedDataParallel can average
the gradients of a block while those of others are computed. Modules and parameter names do not change.

PyTorch keeps at most eight graphs of one function (``torch._dynamo.config.recompile_limit``) and runs what would need a ninth without
compiling. A block's function is the same in every network of a process, and a shape that differs takes another graph. So training alone is
compiled, see :func:`not_compiled`, and every run starts with no graphs.
"""

from contextlib import AbstractContextManager
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
    """Return the meaning of a recipe's ``compile``: ``auto`` compiles for a GPU, but not for a CPU, where compiling takes longer than it saves."""
    return accelerator().device.type == "cuda" if setting == "auto" else setting


def compile_blocks(*networks: nn.Module, whole: bool = False) -> None:
    """Compile the blocks of networks in place; a network without a sequence of blocks is not compiled, or as a ``whole``.

    Graphs of earlier runs in this process are removed, so call it once in a run.
    """
    torch.compiler.reset()
    for network in networks:
        blocks = blocks_of(network)
        for module in ((network,) if whole else ()) if blocks is None else blocks:
            module.compile(dynamic=False)


def not_compiled() -> AbstractContextManager[None]:
    """Return a context in which nothing is compiled, for passes beside the training: their batches would each take graphs of their own."""
    context: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return context


def checkpoint_blocks(*networks: nn.Module) -> None:
    """Activation checkpointing, in place: blocks keep only their input and are recomputed in the backward pass.

    Call it before :func:`compile_blocks`. Results keep the same bits: blocks have no randomness except drop path, which is drawn before the
    forward pass.

    Raises:
        UserError: if a network has no sequence of blocks, or has BatchNorm, which would count every batch twice.
    """
    for network in networks:
        blocks = blocks_of(network)
        if blocks is None or batch_norms(network):
            raise UserError(
                f"checkpointing = true: expected a sequence of blocks without BatchNorm, as in a Vision Transformer, found {type(network).__name__}. "
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
