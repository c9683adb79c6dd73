"""Monitor a student at every checkpoint: do its features collapse, and what does it reconstruct? This does not affect the training."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lutbench.data.images import ImageDataset, is_streamed
from lutbench.evaluate.feature_statistics import statistics_of
from lutbench.models.encoders import encode
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.run import Run
from lutbench.train.logger import TrainingLogger
from lutbench.train.processes import accelerator, autocast
from lutbench.train.regional import not_compiled
from pretrain.pictured import PICTURED, pictured
from pretrain.reconstruction import picture_of
from pretrain.views import Views

IMAGES = 64
"""Number of training images whose features are monitored, evenly spaced (our choice)."""

SHOWN = 4
"""Number of these images that are reconstructed for the trackers."""

SIDE = 96
"""Maximum side of these pictures in pixels: a long run saves a thousand times (our choice)."""

LEAST_SPREAD = 0.03
"""Below it features count as collapsed: a mean cosine of 0.999 (our choice; of the encoders of ``tiny`` it is 0.66 to 0.80)."""

LEAST_RANK = 2.0
"""Below it too: the features of all images lie on a line (our choice; of the encoders of ``tiny`` it is 8 to 11)."""


class Health(NamedTuple):
    """How much the features of different images differ."""

    spread: float
    """Standard deviation over images of l2-normalised features, mean over dimensions, times the square root of the number of dimensions: near
    1 if features point in all directions, 0 if all are equal (SimSiam, arXiv 2011.10566, section 4.1)."""
    mean_cosine: float
    """Mean cosine over all pairs of images; 1 if all features have the same direction."""
    effective_rank: float
    """Effective rank of the centred features, see :func:`lutbench.evaluate.ranks.effective_rank`; 0 if all are equal."""

    @property
    def is_collapsed(self) -> bool:
        """Whether the features of all images are nearly equal."""
        return self.spread < LEAST_SPREAD or self.effective_rank < LEAST_RANK


def health_of(features: Tensor) -> Health:
    """Return the health of features (m, D), m at least 2."""
    found = statistics_of(features)
    unit = functional.normalize(features.double(), dim=1)
    spread = float(unit.std(0, correction=0).mean()) * features.shape[1] ** 0.5
    return Health(spread, found.mean_cosine, found.effective_rank)


class Watch:
    """Monitors a student at every checkpoint on the same few training images, with crops of an epoch that is never trained on."""

    def __init__(self, run: Run[PretrainRecipe], images: ImageDataset) -> None:
        """Read the images; fewer for a stream, where reading one image means reading many."""
        self.run, self._warned = run, False
        count = PICTURED if is_streamed(images) else IMAGES
        views = Views.from_batch(pictured(images, run.recipe, run.seed, count), accelerator().device)
        self._views = Views(views.view1, None, views.noise)

    @torch.no_grad()
    def measure(self, done: int, student: Any, logger: TrainingLogger) -> None:
        """Log health and reconstructions of an unsharded :class:`pretrain.student.Student` after ``done`` steps, and warn of a collapse.

        Call it on every process. The time does not count as training time; modes and random states are restored.
        """
        with logger.watching():
            training = student.training
            student.eval()
            with autocast(self.run.recipe.precision), not_compiled():
                features = encode(student.encoder, self._views.view1, "mean")
                logger.picture(done, "reconstructions", picture_of(student, self._views, SHOWN, SIDE))
            student.train(training)
            if len(features) > 1:
                health = health_of(features.float())
                logger.log(done, **health._asdict())
                self._warn(done, health)

    def _warn(self, done: int, health: Health) -> None:
        """Warn once when the features have collapsed, and again only if they recovered in between."""
        if health.is_collapsed and not self._warned:
            self.run.log(
                f"after step {done} the features of different images hardly differ: spread {health.spread:.3f}, mean cosine "
                f"{health.mean_cosine:.4f}, effective rank {health.effective_rank:.1f}. The encoder has collapsed, or is about to; a lower "
                "base_lr or context_weight, or a higher momentum may help."
            )
        self._warned = health.is_collapsed
