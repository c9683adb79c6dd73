"""Attentive probe: one learned query attends to the patch tokens of a frozen encoder, trained with AdamW (V-JEPA, arXiv 2404.08471).

It uses information that the mean and the class token lose: encoders that are not trained to summarise an image in one vector, such as
MAE's, gain most.
"""

import time
from functools import partial

import torch
from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor
from torch.nn import functional

from downstream import stage
from downstream.attentive_pool import AttentiveClassifier, attentive_head, heads_of
from downstream.cost import attentive_probe as cost
from downstream.frozen import Batch, feature_batches, frozen_encoder, schedule_of, train_head
from downstream.stage import check_classification
from lutbench.data.images import ImageDataset
from lutbench.errors import UserError
from lutbench.evaluate.crop_store import kept_crops
from lutbench.evaluate.features import Features, features_of, kept_splits
from lutbench.evaluate.inference import evaluate
from lutbench.files import gigabytes
from lutbench.models.tokens import patch_tokens, token_shape
from lutbench.models.weights import save_weights
from lutbench.recipes.attentive import AttentiveRecipe
from lutbench.run import Run, row_named
from lutbench.train.logger import TrainingLogger
from lutbench.train.processes import accelerator, autocast
from lutbench.train.schedule import learning_rate

__all__ = ["check", "check_weights", "cost", "perform"]  # what lutbench.kinds asks for

HELD = 4 * 10**9
"""Maximum bytes of tokens that a process keeps in memory if they are encoded once; three times as many temporarily (our choice: 6,600
images of a ViT-B/16 at 224)."""


def check(run: Run[AttentiveRecipe]) -> None:
    """Find what would stop a run before any compute is spent.

    Raises:
        UserError: see :func:`check_classification` and :func:`check_weights`; also if tokens that are encoded once are more than memory
            is taken for, or the batch does not divide over the processes.
    """
    check_weights(run)
    check_classification(run)
    recipe, images = run.recipe, len(run.dataset("train"))
    schedule_of(recipe, images, run.seed)
    tokens, width = token_shape(recipe.encoder.architecture, recipe.side)
    if not recipe.fresh_crops and (size := 4 * images * tokens * width) > HELD:
        raise UserError(
            f"fresh_crops = false: the tokens of {images:,} images ({tokens} x {width} numbers each) need {gigabytes(size)}, but at most "
            f"{gigabytes(HELD)} are kept in memory. Set fresh_crops = true, or train on fewer images (shots, share)."
        )


def check_weights(run: Run[AttentiveRecipe]) -> None:
    """Check that the encoder has patch tokens whose width the heads divide, and its weights, see :func:`stage.check_weights`."""
    stage.check_weights(run)
    recipe = run.recipe
    with row_named(run):
        heads_of(recipe, token_shape(recipe.encoder.architecture, recipe.side)[1])


def perform(run: Run[AttentiveRecipe]) -> None:
    """Train query, block and linear layer on the tokens of the run's frozen encoder, and evaluate them.

    Every process trains the same probe on the whole batch of tokens: only encoding is spread, as of the linear probe. Leaves
    ``attentive.safetensors`` in the run's folder and the record.

    Raises:
        UserError: if the encoder's weights do not fit, a loss, a weight or a token is not finite, nothing moved, an image cannot be
            decoded, or the disk is full.
    """
    recipe, processes, prepared = run.recipe, accelerator(), run.preprocessing
    images: ImageDataset = run.dataset("train")
    held_out: ImageDataset = run.dataset("val")
    encoder = frozen_encoder(run)

    # Tokens of the centre crops, encoded here or by another probe, unless every epoch has fresh crops
    once = None if recipe.fresh_crops else features_of(run, "train", "tokens", encoder=lambda: encoder)
    schedule = schedule_of(recipe, len(images) if once is None else len(once.index), run.seed)

    # Probe, optimiser
    width = token_shape(recipe.encoder.architecture, recipe.side)[1]
    head = attentive_head(width, len(images.classes), heads_of(recipe, width), recipe.mlp_ratio, run.seed)
    head = head.to(processes.device)
    groups = param_groups_weight_decay(head, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.betas[0], recipe.betas[1]), fused=True)

    # The loop
    def loss_of(batch: Batch) -> Tensor:
        with autocast(recipe.precision):
            scores = head(batch["features"])
        return functional.cross_entropy(scores.float(), batch["label"])

    warmup = schedule.steps_in(recipe.warmup_epochs)
    logger = train_head(
        run,
        head,
        optimizer,
        schedule,
        save_every=max(1, schedule.steps // recipe.epochs),
        rate_at=lambda step: learning_rate(step, schedule.steps, warmup, recipe.lr),
        batches_of=partial(feature_batches, run, once, partial(patch_tokens, encoder), schedule),
        loss_of=loss_of,
    )

    # What came of it
    began = time.monotonic()
    classifier = AttentiveClassifier(encoder, head).eval()
    with kept_crops(run, held_out) as crops:
        outcomes = evaluate(classifier, held_out, recipe, prepared, f"{run.name} evaluation", crops)
    evaluation = time.monotonic() - began
    if processes.is_main_process:
        run.save_results(
            outcomes,
            seconds=(once.seconds if once else 0) + logger.seconds + evaluation,
            images_per_second=_images_per_second(once, logger),
            curve=logger.curve,
            checkpoint=save_weights(head.state_dict(), run.folder / "attentive.safetensors"),
            extra={
                "loss": logger.losses["loss"],
                "skipped": len(images) - len(once.index) if once else logger.skipped,
                **kept_splits([once] if once else []),
            },
        )


def _images_per_second(once: Features | None, logger: TrainingLogger) -> float | None:
    """Return the images trained on per second, or encoded once and trained on; None where they were encoded before."""
    if once is None:
        return logger.images_per_second
    return None if once.kept else once.images / (once.seconds + logger.seconds)
