"""Fixed two-dimensional sine-cosine position embeddings (MAE, section A.1)."""

import torch
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor

from lutbench.errors import UserError


def sincos_position(grid: int, width: int) -> Tensor:
    """Embeddings (1, 1 + grid * grid, width) of a class token (zeros) and a row-major grid of patches.

    The first half of the channels tells the column, the second half the row (release); in each half come the sines
    and then the cosines of the coordinate times 10000^(-i / (width / 4)), for i = 0 ... width / 4 - 1.

    Raises:
        UserError: if ``width`` is not a multiple of 4.
    """
    if width % 4:
        raise UserError(
            f"A width of {width} does not suit two-dimensional sine-cosine position embeddings: sines and cosines of "
            "rows and columns share it equally. Set the encoder's and the decoder's width to multiples of 4."
        )
    row, column = build_sincos2d_pos_embed([grid, grid], width, interleave_sin_cos=True).chunk(2, dim=1)
    return torch.cat([torch.zeros(1, width), torch.cat([column, row], dim=1)]).unsqueeze(0)
