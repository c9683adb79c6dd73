"""Synchronised BatchNorm over all processes, on CPU and GPU (PyTorch's SyncBatchNorm does not support CPU tensors)."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lutbench.errors import UserError


class SyncBatchNorm(_BatchNorm):
    """``nn.BatchNorm1d`` or ``2d`` whose training statistics are over the batches of all processes.

    Names of parameters and buffers are as in PyTorch; with one process or in evaluation the behaviour is too.
    Gradients are correct if they are averaged over processes afterwards, as DistributedDataParallel does.
    """

    views = 1
    """Parts of equal size, one after another in an input, that are normalised each by itself where processes share: what they say of
    all parts goes in one message."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input`` (B, C, ...); processes may hold unequal shares. Statistics are float32 in mixed precision."""
        if not (self.training and shared_by_processes()):
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return self._synchronised(input.float()).to(input.dtype)

    def _synchronised(self, x: Tensor) -> Tensor:
        parts = x.unflatten(0, (self.views, -1))  # (V, B, C, ...)
        others = [1, *range(3, parts.ndim)]
        shape = [self.views, 1, -1] + [1] * (x.ndim - 2)
        of_one = [1, 1, -1] + [1] * (x.ndim - 2)
        own_count = torch.full((1,), float(x.numel() // x.shape[1] // self.views), device=x.device)
        sums = _sum_over_processes(torch.cat([parts.sum(others).flatten(), own_count]))
        count = sums[-1].detach()
        mean = (sums[:-1] / count).view(self.views, -1)
        centred = parts - mean.view(shape)
        # A second sum over processes, of squares around the common mean, loses no digits to a large mean.
        variance = _sum_over_processes(centred.square().sum(others)) / count
        for of_view, spread in zip(mean.detach(), variance.detach() * count / (count - 1), strict=True):
            self._track(of_view, spread)
        scaled = centred * torch.rsqrt(variance + self.eps).view(shape) * self.weight.view(of_one)
        shifted: Tensor = scaled + self.bias.view(of_one)
        return shifted.flatten(0, 1)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C, ...), found {tuple(input.shape)}")

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)
        self.num_batches_tracked.add_(1)


def shared_by_processes() -> bool:
    """Return whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d)
"""torch's BatchNorm; a subclass of it may do more, such as an activation."""


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the layers of a model that normalise with statistics of the batch."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def synchronise(model: nn.Module) -> None:
    """Replace every BatchNorm of a model (also PyTorch's synchronised one) by :class:`SyncBatchNorm` with the same names and values.

    Call it before creating the optimiser, as the parameters are new objects.

    Raises:
        UserError: if a BatchNorm layer of the model does more than normalise.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if not isinstance(child, _BatchNorm) or isinstance(child, SyncBatchNorm):
                continue
            plain = type(child) in PLAIN or isinstance(child, nn.SyncBatchNorm)
            if plain and child.affine and child.momentum:
                norm = SyncBatchNorm(child.num_features, child.eps, child.momentum)
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm.to(child.weight.device))
            else:
                raise UserError(
                    f"{type(model).__name__} has layers of kind {type(child).__name__}, which compute statistics over the images of one "
                    "process only. Use one process to train it."
                )


def _sum_over_processes(x: Tensor) -> Tensor:
    total: Tensor = _AllReduce.apply(x)
    return total


class _AllReduce(torch.autograd.Function):
    """The sum over processes. Every process uses it, so its gradient is the sum over processes of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total
