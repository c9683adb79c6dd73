"""The interface of a masked image modelling framework, as far as LUT needs it."""

from enum import IntEnum
from typing import Protocol

from timm.models import VisionTransformer
from torch import Tensor, nn


class Framework(Protocol):
    """How an encoder processes a masked view, and how the pixels of masked patches are predicted.

    All trained parts except the encoder are in ``decoder``. The framework itself is not a module: the student registers
    encoder and decoder, and student and teacher, whose encoders differ, share the framework.

    B images of N patches, of which K are visible; D is the encoder's width. ``visible`` (B, K) are indices of patches
    in the row-major grid. What the framework makes of masked patches in the encoder (nothing, or mask tokens) is its own.
    """

    mask_unit: int
    """Side, in patches, of the squares that are masked or visible as one."""
    masks_in_encoder: bool
    """Whether ``encode`` reads ``decoder`` for patches that are not visible, as for SimMIM's mask token."""

    sparse: bool
    """Whether ``images`` may also be their patches (B, N, P * P * 3), a grid row by row and in each row, column, channel, and
    ``decoder`` and ``loss`` take, as a last argument, the ``masked`` patches (B, M) whose pixels alone are made and compared. These
    are shortcuts of GPUs to the same values; a framework without them is used as on a CPU."""

    @property
    def decoder(self) -> nn.Module:
        """Predicts the pixels (B, N, P * P * 3) of all patches from ``encode``'s tokens and ``visible``."""

    def encode(self, encoder: VisionTransformer, images: Tensor, visible: Tensor | None) -> Tensor:
        """Return ``encoder``'s tokens of ``images`` (B, 3, S, S); of whole images where ``visible`` is None."""

    def unmasked(self, tokens: Tensor, visible: Tensor | None) -> Tensor:
        """Return the ``tokens`` (B, 1 + K, D) that LUT's heads may read: class token and visible patches."""

    def loss(self, pixels: Tensor, images: Tensor, visible: Tensor, masked: Tensor | None = None) -> Tensor:
        """Return the reconstruction loss, 0-d, of ``decoder``'s ``pixels`` over the masked patches of ``images``."""

    def reconstruct(self, pixels: Tensor, images: Tensor, visible: Tensor) -> Tensor:
        """Return ``images`` (B, 3, S, S) with their masked patches replaced by ``decoder``'s ``pixels``."""


class Part(IntEnum):
    """The last number of the key under which a component's initial weights are drawn.

    Each component is drawn apart, so that leaving one out changes no other.
    """

    ENCODER = 0
    DECODER = 1
    PROJECTOR = 2
    PREDICTOR = 3
