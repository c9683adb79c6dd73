"""Dropout and stochastic depth that are those of the whole batch, however it is spread over processes.

What is random in a step is drawn in the order of the forward pass, from generators that are seeded alike on every process. So each
process draws for all images of the batch, in the order in which one process alone would have them, and takes what its own get.
"""

import torch
from mmcv.cnn.bricks.drop import DropPath as MmcvDropPath
from timm.layers.drop import DropPath as TimmDropPath
from torch import Tensor, nn

from lutbench.train.batches import Schedule

DROPS = (nn.Dropout, nn.Dropout2d, MmcvDropPath, TimmDropPath)
"""The layers that draw: of every element, of every channel, and of every image."""


class WholeBatchDrop(nn.Module):
    """A layer of :data:`DROPS` that draws for a whole batch and applies what it drew to the images of this process."""

    def __init__(self, drop: nn.Module, batch: int, places: list[int]) -> None:
        super().__init__()
        self.drop, self.batch = drop, batch
        self.places = torch.tensor(places)  # no buffer: processes have different ones

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (B, ...) of this process's B images with some of it dropped, and the rest enlarged; in evaluation ``x``."""
        if not self.training:
            return x
        assert len(x) == len(self.places), f"expected {len(self.places)} images, found {tuple(x.shape)}"
        if isinstance(self.drop, nn.Dropout):
            shape = list(x.shape[1:])
        else:  # of every channel, or of every image
            shape = [x.shape[1] if isinstance(self.drop, nn.Dropout2d) else 1, *[1] * (x.ndim - 2)]
        self.places = self.places.to(x.device)  # copied, and waited for, in the first step alone
        factors: Tensor = self.drop(x.new_ones(self.batch, *shape))
        return x * factors[self.places]


def spread(model: nn.Module, schedule: Schedule) -> None:
    """Put :class:`WholeBatchDrop` in the place of every layer of ``model`` that drops, for the batches of a ``schedule``."""
    alone = Schedule(schedule.images, schedule.epochs, schedule.batch, schedule.batch, schedule.seed, 0, 1).rows(0)
    places = [alone.index(row) for row in schedule.rows(0)]
    for name, module in list(model.named_modules()):
        if isinstance(module, DROPS) and _rate(module):
            model.set_submodule(name, WholeBatchDrop(module, schedule.batch, places))


def _rate(drop: nn.Module) -> float:
    rate: float = drop.p if isinstance(drop, nn.Dropout | nn.Dropout2d) else drop.drop_prob  # type: ignore[assignment]
    return rate
