"""BatchNorm over the images of all processes, on CPU and GPU alike (torch's SyncBatchNorm refuses CPU tensors)."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncBatchNorm1d(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` whose statistics, in training, are those of the concatenated batches of all processes.

    Names of parameters and buffers are those of ``nn.BatchNorm1d``, and with one process or in evaluation it is that.
    Gradients are right where they are averaged over processes afterwards, as DistributedDataParallel does.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input`` (B, C); processes may hold unequal shares. Statistics are float32 in mixed precision."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return self._synchronised(input.float()).to(input.dtype)

    def _synchronised(self, x: Tensor) -> Tensor:
        own_count = torch.full((1,), float(len(x)), device=x.device)
        sums = _sum_over_processes(torch.cat([x.sum(0), own_count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        # A second sum over processes, of squares around the common mean, loses no digits to a large mean.
        variance = _sum_over_processes((x - mean).square().sum(0)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)
        self.num_batches_tracked.add_(1)


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
