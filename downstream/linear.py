"""Linear probe: one linear layer on frozen features, trained by LARS (MAE, section A.1)."""

import time
from functools import cache, partial
from typing import Any

import torch
from timm.optim.lars import Lars
from torch import Tensor, nn
from torch.nn import functional

from downstream.cost import linear_probe as cost
from downstream.frozen import Batch, feature_batches, frozen_encoder, schedule_of, train_head
from downstream.stage import check_classification, check_weights
from lutbench.data.images import ImageDataset
from lutbench.evaluate.features import encoding_rate, features_of, kept_splits
from lutbench.evaluate.inference import Computed, labels_of, outcomes_of, rank_of_label
from lutbench.models.blocks import probe_features, probe_width
from lutbench.models.probes import linear_probe
from lutbench.models.weights import save_weights
from lutbench.recipes.probes import LinearRecipe
from lutbench.run import Run
from lutbench.train.device import moved
from lutbench.train.processes import accelerator
from lutbench.train.randomness import RngStream, seeded
from lutbench.train.schedule import learning_rate

__all__ = ["check", "check_weights", "cost", "perform"]  # what lutbench.kinds asks for

check = check_classification

LINEAR = 102
"""The last number of the key under which the layer's weights are drawn."""

SCORED = 4096
"""Images that the finished layer scores at once."""


def perform(run: Run[LinearRecipe]) -> None:
    """Train a linear layer on the run's frozen encoder and evaluate it.

    Every process trains the same layer on the whole batch of features: only encoding is spread, so neither layer nor
    BatchNorm depends on the number of processes. Leaves ``linear.safetensors`` in the run's folder and the record.

    Raises:
        UserError: if the encoder's weights do not fit, a loss or a weight is not finite, nothing moved, an image cannot be
            decoded, or the disk is full.
    """
    recipe, processes = run.recipe, accelerator()
    images: ImageDataset = run.dataset("train")
    held_out: ImageDataset = run.dataset("val")
    encoder = cache(lambda: frozen_encoder(run))  # made once, if at all

    # Features of the centre crops, encoded here or by another probe, unless every epoch has fresh crops
    once = None if recipe.fresh_crops else features_of(run, "train", encoder=encoder)
    schedule = schedule_of(recipe, len(images) if once is None else len(once.index), run.seed)

    # Layer, optimiser
    width = probe_width(recipe.encoder.architecture, recipe.side, recipe.pooling, recipe.blocks_taken)
    head = linear_head(width, len(images.classes), run.seed).to(processes.device)
    optimizer = Lars(lars_groups(head, recipe.weight_decay), lr=recipe.lr, momentum=recipe.momentum)

    # The loop
    def loss_of(batch: Batch) -> Tensor:
        scores = head(batch["features"])
        return functional.cross_entropy(scores, batch["label"])

    def encoding(pixels: Tensor) -> Tensor:
        return probe_features(encoder(), pixels, recipe.pooling, recipe.blocks_taken)

    warmup = schedule.steps_in(recipe.warmup_epochs)
    logger = train_head(
        run,
        head,
        optimizer,
        schedule,
        save_every=max(1, schedule.steps // recipe.epochs) if recipe.fresh_crops else schedule.steps,
        rate_at=lambda step: learning_rate(step, schedule.steps, warmup, recipe.lr),
        batches_of=partial(feature_batches, run, once, encoding, schedule),
        loss_of=loss_of,
    )

    # What came of it
    unseen = features_of(run, "val", encoder=encoder)
    features = [unseen] if once is None else [once, unseen]
    began = time.monotonic()
    if processes.is_main_process:
        run.save_results(
            outcomes_of(score(head, unseen, labels_of(held_out)), held_out, unseen.index, recipe.metric),
            seconds=sum(of.seconds for of in features) + logger.seconds + time.monotonic() - began,
            images_per_second=logger.images_per_second if recipe.fresh_crops else encoding_rate(features),
            curve=logger.curve,
            checkpoint=save_weights(head.state_dict(), run.folder / "linear.safetensors"),
            extra={
                "loss": logger.losses["loss"],
                "skipped": len(images) - len(once.index) if once else logger.skipped,
                **kept_splits(features),
            },
        )


def linear_head(width: int, classes: int, seed: int) -> nn.Sequential:
    """Return :func:`lutbench.models.probes.linear_probe` with weights N(0, 0.01), truncated (MAE, section A.1, and its release)."""
    head = linear_probe(width, classes)
    linear = head[1]
    assert isinstance(linear, nn.Linear)
    with seeded(RngStream.WEIGHTS, seed, LINEAR):
        nn.init.trunc_normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return head


def lars_groups(head: nn.Sequential, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimiser's groups: the weight moves by LARS's trust ratio, decay or not; the bias plainly, without decay (as MAE does)."""
    linear = head[1]
    assert isinstance(linear, nn.Linear)
    return [
        {"params": [linear.weight], "weight_decay": weight_decay, "always_adapt": True},
        {"params": [linear.bias], "weight_decay": 0.0},
    ]


@torch.no_grad()
def score(head: nn.Module, unseen: Computed, labels: Tensor) -> Tensor:
    """Return the rank of the label of every image in ``unseen``, see :func:`rank_of_label`; ``labels`` (n,) are those of the whole split."""
    head.eval()
    wanted = labels[torch.from_numpy(unseen.index)]
    return torch.cat(
        [
            rank_of_label(head(moved(features)), moved(chosen))
            for features, chosen in zip(torch.split(unseen.values, SCORED), torch.split(wanted, SCORED), strict=True)
        ]
    ).cpu()
