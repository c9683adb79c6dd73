"""Fourier analysis of the patch tokens of an image, as feature maps over the patch grid."""

import torch
from torch import Tensor


def log_amplitudes(tokens: Tensor) -> Tensor:
    """Return the log amplitudes (B, F) of the frequencies along the diagonal of the grid, relative to frequency zero's; F = G // 2.

    Of patch ``tokens`` (B, N, D), N = G^2 row by row, the 2-D Fourier transform of every channel, its log amplitude, the mean
    over channels, frequencies (k, k) for k from 1 to G // 2 (Park and Kim 2022; Park et al. 2023). The last is the highest that a
    grid has: in an even grid a change of sign from each patch to the next.
    """
    images, patches, width = tokens.shape
    side = round(patches**0.5)
    grid = tokens.float().reshape(images, side, side, width)
    transformed = torch.fft.rfft2(grid, dim=(1, 2)).diagonal(dim1=1, dim2=2)  # (B, D, G // 2 + 1), from frequency zero
    logs: Tensor = (transformed.abs() + 1e-6).log().mean(1)
    return logs[:, 1:] - logs[:, :1]
