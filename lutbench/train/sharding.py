"""Shard parameters, gradients, optimiser state and the teacher over the processes, with PyTorch's FSDP2 (``shard = true``).

The parameters of a block are gathered just before it computes and freed afterwards; everything outside blocks is one more group. Each
process stores and updates its own part of every parameter, so memory decreases with the number of processes. Results do not change: with
or without sharding, or on another number of processes, a run is the same except for the order of floating-point sums, and its checkpoints
are the same files.

This calls PyTorch's ``fully_shard`` and not accelerate's FSDP2 plugin, which creates the optimiser again from the sharded parameters (and
so loses the groups of layer decay) and returns its own model and optimiser. Here the model and its parameter names stay the same, and the
optimiser is created after sharding. Mixed precision is autocast over float32 parameters, as in a run without sharding.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from lutbench.train.processes import accelerator

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Shared:
    """A model in training, and how to get it unsharded, for evaluation, pictures and export."""

    model: nn.Module
    outline: nn.Module | None = None
    """A copy of a sharded model whose parameters are on the meta device; None if the model is whole."""

    def whole(self) -> nn.Module:
        """Return the model itself or, if it is sharded, an unsharded copy; call it on every process."""
        if self.outline is None:
            return self.model
        made = copy.deepcopy(self.outline)
        made.load_state_dict(
            {name: whole(tensor).clone() for name, tensor in self.model.state_dict().items()}, assign=True
        )
        return made.train(self.model.training)


def share(models: Mapping[str, nn.Module], shard: bool) -> dict[str, Shared]:
    """Return ``models`` by name, with parameters sharded over the processes if ``shard`` is set and there are several.

    Call it before creating an optimiser. A model's forward gathers what it needs; parts of it, except blocks, cannot be called alone.
    """
    processes = accelerator()
    if not shard or processes.num_processes == 1:
        return {name: Shared(model) for name, model in models.items()}
    # Here, because they take a second to import, and every command would wait for it.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    absent: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        for model in models.values()
        for parameter in model.parameters()
    }
    # Before any is sharded: a sharded module cannot be copied, and a teacher holds on to its student's framework.
    shared = {name: Shared(model, copy.deepcopy(model, dict(absent))) for name, model in models.items()}
    mesh = init_device_mesh(processes.device.type, (processes.num_processes,))
    for model in models.values():
        for block in blocks(model):
            fully_shard(block, mesh=mesh)
        # Also what is outside of blocks is let go after a forward pass: a teacher is updated then, part by part.
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return shared


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of timm's models: the members of every ``blocks`` of ``model``; none of a model that has no such list."""
    lists = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "blocks"]
    return [block for found in lists for block in found.children()]


def parallel(model: nn.Module) -> nn.Module:
    """Return ``model`` as it is trained: its gradients are averaged over the processes, by accelerate unless it is sharded."""
    if is_sharded(model):
        return model
    made: nn.Module = accelerator().prepare_model(model)
    return made


def is_sharded(model: nn.Module) -> bool:
    """Return whether the parameters of ``model`` are sharded over the processes."""
    return any(_is_shard(parameter) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor, gathered from all processes if it is sharded; call it on every process."""
    return tensor.full_tensor() if _is_shard(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, which is the memory of it; any other itself."""
    return tensor.to_local() if _is_shard(tensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole ``tensor`` sharded as a ``parameter`` of its shape is, if it is; without a word to other processes."""
    if not _is_shard(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load whole ``tensors`` strictly, each process its part of them.

    Raises:
        RuntimeError: if a name is missing or too many, or a shape is another.
    """
    expected = model.state_dict()
    model.load_state_dict({name: like(t, expected[name]) if name in expected else t for name, t in tensors.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Load the ``state`` of an optimiser, whole, by the numbers of its parameters; each process its part of it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shared = {
        number: {entry: like(tensor, parameters[number]) for entry, tensor in entries.items()}
        for number, entries in state.items()
    }
    optimizer.load_state_dict(optimizer.state_dict() | {"state": shared})


def _is_shard(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Return whether a tensor is sharded, which is to be asked without importing what sharded tensors are of."""
    return hasattr(tensor, "full_tensor")
