"""Which patches of each view are visible: two disjoint random sets per image, from one permutation."""

from typing import NamedTuple

from torch import Tensor

from lutbench.errors import UserError


class Visible(NamedTuple):
    """Indices of the visible patches in the row-major grid, (B, K) each; no index is in both."""

    view1: Tensor
    view2: Tensor


def visible_count(patches: int, mask_ratio: float, views: int) -> int:
    """Return K, the number of visible patches out of ``patches`` in each of ``views`` views (release: rounded down).

    Raises:
        UserError: if nothing would be visible or nothing masked, or if the views' sets cannot be disjoint.
    """
    count = int(patches * (1 - mask_ratio))
    if not 0 < count < patches:
        raise UserError(
            f"mask_ratio = {mask_ratio} leaves {count} of {patches} patches visible: expected at least 1 visible and "
            "1 masked. Change mask_ratio, or use smaller patches or larger images."
        )
    if views * count > patches:
        raise UserError(
            f"mask_ratio = {mask_ratio} leaves {count} of {patches} patches visible in each view, so that two views "
            "cannot see different patches. Set mask_ratio to at least 0.5, or compare one direction with whole views."
        )
    return count


def visible_patches(noise: Tensor, count: int) -> Visible:
    """Order each image's patches by ``noise`` (B, N): the first ``count`` are visible in view 1, the next in view 2.

    One permutation serves both views, so that no patch of the grid is visible in both (release).
    """
    order = noise.argsort(dim=1, stable=True)
    return Visible(order[:, :count], order[:, count : 2 * count])
