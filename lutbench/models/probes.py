"""The linear layer of a linear probe, for training and for evaluation."""

from torch import nn


def linear_probe(width: int, classes: int) -> nn.Sequential:
    """Return the layer from features (B, D) to scores (B, C): BatchNorm without affine parameters, then a linear layer.

    Source: MAE, section A.1; its release for the 1e-6.
    """
    return nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), nn.Linear(width, classes))
