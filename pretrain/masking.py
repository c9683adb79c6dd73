"""Which patches of each view are visible: two disjoint random sets of mask units per image, from one permutation."""

from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

from lutbench.errors import UserError


class Visible(NamedTuple):
    """Indices of the visible patches in the row-major grid, (B, K) each; no index is in both."""

    view1: Tensor
    view2: Tensor


def visible_count(units: int, mask_ratio: float, views: int) -> int:
    """Return K, the number of visible mask units out of ``units`` in each of ``views`` views (release: rounded down).

    Raises:
        UserError: if nothing would be visible or nothing masked, or if the views' sets cannot be disjoint.
    """
    count = int(units * (1 - mask_ratio))
    if not 0 < count < units:
        raise UserError(
            f"mask_ratio = {mask_ratio} leaves {count} of {units} patches visible: expected at least 1 visible and "
            "1 masked. Change mask_ratio, or use smaller patches or larger images."
        )
    if views * count > units:
        raise UserError(
            f"mask_ratio = {mask_ratio} leaves {count} of {units} patches visible in each view, so that two views "
            "cannot see different patches. Set mask_ratio to at least 0.5, or set both_directions = false and "
            "teacher_view = 'whole', which need one view only."
        )
    return count


def masked_patches(visible: Tensor, patches: int) -> Tensor:
    """Return the indices (B, patches - K), ascending, of the patches that are not ``visible`` (B, K)."""
    hidden = torch.ones(len(visible), patches, device=visible.device).scatter(1, visible, 0.0)
    return hidden.argsort(dim=1, descending=True, stable=True)[:, : patches - visible.shape[1]]


def visible_patches(noise: Tensor, count: int, unit: int = 1) -> Visible:
    """Order each image's mask units by ``noise`` (B, N): the first ``count`` are visible in view 1, the next in view 2.

    One permutation serves both views, so that no patch of the grid is visible in both (release). A unit is a square of ``unit``
    patches on a side, and the noise of its first patch is its own.
    """
    if unit == 1:
        order = noise.argsort(dim=1, stable=True)
        return Visible(order[:, :count], order[:, count : 2 * count])
    grid = isqrt(noise.shape[1])
    corners = torch.arange(noise.shape[1], device=noise.device).view(grid, grid)[::unit, ::unit].flatten()
    within = torch.arange(unit, device=noise.device)
    offsets = (within[:, None] * grid + within).flatten()
    order = corners[noise[:, corners].argsort(dim=1, stable=True)]
    patches = (order.unsqueeze(-1) + offsets).flatten(1)
    visible = count * unit**2
    return Visible(patches[:, :visible], patches[:, visible : 2 * visible])
