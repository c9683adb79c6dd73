"""Parameters, gradients, the optimiser's state and the teacher shared out over the processes, by torch's FSDP2 (``shard = true``).

Every block of a model is gathered whole just before it computes and let go again afterwards; what is outside of blocks is one
group more. Each process keeps and updates its own part of every parameter, so the memory that a model takes falls with the number
of processes. What is computed does not change: with sharding, without it, or on another number of processes a run is the same but
for the order in which floats are added, and its checkpoints are the same files.

torch's ``fully_shard`` is called here, and not accelerate's FSDP2 plugin: that makes the optimiser anew from the sharded
parameters, which loses the groups of layer decay that were given to it, and hands back a model and an optimiser of its own to go
through. Here the model stays the one that it was, parameter by parameter under its own name, and its optimiser is made after it was
sharded. Nor does mixed precision change: it is autocast's, over float32 parameters, as in a run that is not sharded.
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
    """A model that trains, and how to have it whole: for evaluation, pictures and export."""

    model: nn.Module
    outline: nn.Module | None = None
    """A copy of a sharded model whose parameters are on the meta device; None if the model is whole."""

    def whole(self) -> nn.Module:
        """Return the model itself or, of a sharded one, a copy that no training changes, whole; to be called on every process."""
        if self.outline is None:
            return self.model
        made = copy.deepcopy(self.outline)
        made.load_state_dict(
            {name: whole(tensor).clone() for name, tensor in self.model.state_dict().items()}, assign=True
        )
        return made.train(self.model.training)


def share(models: Mapping[str, nn.Module], shard: bool) -> dict[str, Shared]:
    """Return ``models`` by their names, their parameters shared out over the processes if ``shard`` says so and there are several.

    To be called before there is an optimiser. A model's own forward gathers what it needs; a part of it other than a block cannot be
    called alone.
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
    """Return whether the parameters of ``model`` are shared out over the processes."""
    return any(_is_shard(parameter) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole, of one that is sharded gathered from all processes; to be called on every one of them."""
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
