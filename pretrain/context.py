"""The broader-context loss: features of a sparse view must agree with the teacher's features of the whole other view (paper)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn

from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.train.batchnorm import SyncBatchNorm
from pretrain.context_losses import LossFunction, build_loss
from pretrain.context_losses.distances import cosine_distance


class Targets(NamedTuple):
    """The teacher's outputs, (R, D) each; None for view 1 if it is not a target.

    R is B, or with per-token targets B * K: one row per visible patch of the student's *other* view, see
    :mod:`pretrain.token_targets`; ``shares`` (B * K,) are then the weights of the rows in the loss.
    """

    view1: Tensor | None
    view2: Tensor
    shares1: Tensor | None = None
    shares2: Tensor | None = None


@dataclass(frozen=True)
class ContextLoss:
    """The second loss and its controls; the defaults are the paper's."""

    weight: float = 0.25
    distance: LossFunction = cosine_distance
    target: Literal["pooled", "class", "tokens"] = "pooled"
    both_directions: bool = True
    masked_teacher: bool = False

    @classmethod
    def from_recipe(cls, recipe: PretrainRecipe) -> "ContextLoss | None":
        """Return the context loss of a recipe; None if it has none."""
        if not recipe.has_context:
            return None
        return cls(
            weight=recipe.context_weight,
            distance=build_loss(recipe),
            target=recipe.context_target,
            both_directions=recipe.both_directions,
            masked_teacher=recipe.teacher_view == "masked",
        )

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the input of the heads from ``tokens`` (B, 1 + K, D): the mean over patches or the class token (B, D), or the patches (B * K, D)."""
        if self.target == "tokens":
            return tokens[:, 1:].flatten(0, 1)
        return tokens[:, 1:].mean(dim=1) if self.target == "pooled" else tokens[:, 0]

    def __call__(self, student1: Tensor, student2: Tensor | None, targets: Targets) -> Tensor:
        """Return the mean distance, 0-d, between the student's outputs (R, D) and the teacher's for the other view.

        With the student's view 2, the mean of both directions (released code); otherwise only sparse view 1 with view 2.
        """
        forth = self._mean(student1, targets.view2, targets.shares2)
        if student2 is None:
            return forth
        assert targets.view1 is not None, "the teacher was not asked for view 1"
        return (forth + self._mean(student2, targets.view1, targets.shares1)) / 2

    def _mean(self, student: Tensor, teacher: Tensor, shares: Tensor | None) -> Tensor:
        losses = self.distance(student, teacher)
        if shares is None:
            return losses.mean()
        return (losses.reshape(len(shares), -1).mean(dim=1) * shares).sum()


def head(width: int, hidden: int, depth: int, norm: Literal["batch", "layer", "none"]) -> nn.Sequential:
    """Return a projector or predictor, (B, width) -> (B, width): ``depth`` linear layers, norm and ReLU between them.

    Paper: Linear - BatchNorm - ReLU - Linear, without biases, Xavier uniform. Without a norm, only the ReLU is between
    (our choice).
    """
    widths = [width, *[hidden] * (depth - 1), width]
    layers: list[nn.Module] = []
    for index in range(depth):
        if index and norm != "none":
            layers.append(SyncBatchNorm(hidden) if norm == "batch" else nn.LayerNorm(hidden))
        if index:
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Linear(widths[index], widths[index + 1], bias=False))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return nn.Sequential(*layers)
