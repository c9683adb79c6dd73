"""Learning rate schedules, and a check that training changed the weights."""

import math

import torch
from torch import nn

from lutbench.errors import UserError
from lutbench.train.sharding import whole


def learning_rate(step: int, steps: int, warmup: int, peak: float, floor: float = 0.0) -> float:
    """Linear from 0 over ``warmup`` steps, then a half cosine to ``floor``, per optimiser step (MAE, section A.1)."""
    if step < warmup:
        return peak * step / warmup
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def stepped_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear from 0 over ``warmup`` steps, then ``peak``, and a tenth of it in the last eighth of the run (SimMIM's release)."""
    if step < warmup:
        return peak * step / warmup
    return peak if step < 7 * steps / 8 else peak / 10


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group: ``lr``, times the group's ``lr_scale`` (layer decay) if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def weights_digest(model: nn.Module) -> float:
    """Return a number that changes when a trainable parameter does: the float64 sum of squares; to be called on every process."""
    with torch.no_grad():
        return float(sum(whole(p).double().square().sum() for p in model.parameters() if p.requires_grad))


def check_moved(model: nn.Module, before: float) -> None:
    """Raises UserError if no parameter differs from when ``before`` was taken by :func:`weights_digest`."""
    if weights_digest(model) == before:
        raise UserError(
            "No weight changed during the whole run, so there is nothing to save: the learning rate was 0, or too small "
            "to change a float32 weight, at every step. Raise base_lr, train longer, or shorten warmup_epochs."
        )
