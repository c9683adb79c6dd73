"""What is asked of every image of a cell, and a batch of logits reduced to the answers.

A protocol says which of the classifier's outputs compete and which answers are right: 1000 logits or the 200 of
ImageNet-A's classes, ImageNet's own labels or ReaL's. All protocols of a cell are answered from the same logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustness.labels import Answer


@dataclass(frozen=True)
class Protocol:
    """A question to a classifier about every image of a cell."""

    name: str
    """``1000 classes``, ``200 classes``, ``ReaL``: stands in the metric's name."""
    columns: Answer | None
    """The classes that compete, ascending; all if None."""
    answers: tuple[Answer, ...]
    """What is right, each kind of answer once; nothing for images that do not count."""
    answer: NDArray[np.int64]
    """(n,) Which of ``answers`` is each image's."""


class Asked:
    """The protocols of a cell on a device, to be called with the logits of one batch after another."""

    def __init__(self, protocols: Sequence[Protocol], classes: int, device: torch.device) -> None:
        self._asked = [_OnDevice.of(protocol, classes, device) for protocol in protocols]

    def __call__(self, logits: Tensor, index: Tensor) -> Tensor:
        """Return prediction, rank and highest softmax (B, p, 3), float32, of ``logits`` (B, C) of the images ``index`` (B,).

        As in :class:`robustness.condition_outcomes.ConditionOutcomes`. Of equal scores the lower class comes first. Prediction and
        rank are -1, and the softmax is NaN, where a logit is not finite.
        """
        scores = logits.float()
        finite = scores.isfinite().all(1)[:, None, None]
        answers = torch.stack([one(scores, index) for one in self._asked], 1)
        return answers.where(finite, answers.new_tensor([-1, -1, torch.nan]))


@dataclass(frozen=True)
class _OnDevice:
    columns: Tensor
    """(K,) The classes that compete."""
    right: Tensor
    """(A, K), bool: whether each competing class is right for each kind of answer."""
    missed: Tensor
    """(A,) The rank where none that competes is right: K, which is wrong, or -1 where the answer is empty."""
    answer: Tensor
    """(n,) Index of each image's answer."""

    @classmethod
    def of(cls, protocol: Protocol, classes: int, device: torch.device) -> "_OnDevice":
        right = np.zeros((len(protocol.answers), classes), bool)
        for row, answer in zip(right, protocol.answers, strict=True):
            row[list(answer)] = True
        columns = np.arange(classes) if protocol.columns is None else np.array(protocol.columns)
        missed = np.where(right.any(1), len(columns), -1)
        parts = (columns, right[:, columns], missed, protocol.answer)
        return cls(*(torch.from_numpy(part).to(device) for part in parts))

    def __call__(self, scores: Tensor, index: Tensor) -> Tensor:
        """Return prediction, rank and highest softmax (B, 3)."""
        competing = scores[:, self.columns]
        order = competing.argsort(dim=1, descending=True, stable=True)
        answer = self.answer[index]
        right = self.right[answer].gather(1, order)
        rank = right.int().argmax(1).where(right.any(1), self.missed[answer])
        surest = competing.softmax(1).amax(1)
        return torch.stack([self.columns[order[:, 0]].float(), rank.float(), surest], 1)
