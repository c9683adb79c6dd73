"""Protocols of a condition, and how a batch of logits is evaluated under all of them.

A protocol defines which logits compete and which classes are correct: all 1000 logits or the 200 of ImageNet-A's classes, ImageNet's own
labels or ReaL's. All protocols of a condition are evaluated from the same logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustness.labels import Answer


@dataclass(frozen=True)
class Protocol:
    """A question to a classifier about every image of a condition."""

    name: str
    """``1000 classes``, ``200 classes``, ``ReaL``: stands in the metric's name."""
    columns: Answer | None
    """The classes that compete, ascending; all if None."""
    answers: tuple[Answer, ...]
    """What is right, each kind of answer once; nothing for images that do not count."""
    answer: NDArray[np.int64]
    """(n,) Which of ``answers`` is each image's."""


class Asked:
    """The protocols of a condition on a device, to be called with the logits of one batch after another."""

    def __init__(self, protocols: Sequence[Protocol], classes: int, device: torch.device) -> None:
        self._asked = [_on_device(protocol, classes, device) for protocol in protocols]
        self._unanswered = torch.tensor([-1, -1, torch.nan], device=device)  # once: making it would wait for the device

    def __call__(self, logits: Tensor, index: Tensor) -> Tensor:
        """Return prediction, rank and highest softmax (B, p, 3), float32, of ``logits`` (B, C) of the images ``index`` (B,).

        As in :class:`robustness.condition_outcomes.ConditionOutcomes`. Of equal scores the lower class comes first. Prediction and
        rank are -1, and the softmax is NaN, where a logit is not finite.
        """
        scores = logits.float()
        finite = scores.isfinite().all(1)[:, None, None]
        answers = torch.stack([one(scores, index) for one in self._asked], 1)
        return answers.where(finite, self._unanswered)


def _on_device(protocol: Protocol, classes: int, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that gives prediction, rank and highest softmax (B, 3) from scores (B, C) of the images (B,)."""
    competing = np.arange(classes) if protocol.columns is None else np.array(protocol.columns)
    is_right = np.zeros((len(protocol.answers), classes), bool)
    for row, answer in zip(is_right, protocol.answers, strict=True):
        row[list(answer)] = True
    # (A,) The rank where none that competes is right: their number, which is wrong, or -1 where the answer is empty.
    missed = np.where(is_right.any(1), len(competing), -1)
    columns, right_of, missed_of, answer_of = (
        torch.from_numpy(part).to(device) for part in (competing, is_right[:, competing], missed, protocol.answer)
    )

    def ask(scores: Tensor, index: Tensor) -> Tensor:
        of_columns = scores[:, columns]
        order = of_columns.argsort(dim=1, descending=True, stable=True)
        answer = answer_of[index]
        right = right_of[answer].gather(1, order)
        rank = right.int().argmax(1).where(right.any(1), missed_of[answer])
        surest = of_columns.softmax(1).amax(1)
        return torch.stack([columns[order[:, 0]].float(), rank.float(), surest], 1)

    return ask
