"""A linear layer on the patch tokens of a frozen encoder, trained on crops with masks (DINOv2, section 7.4)."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from downstream.frozen import Batch, gathered_order, train_head
from downstream.segmentation.cost import dense_linear as cost
from downstream.segmentation.dense import check_dense, check_weights, enlarged, padded
from downstream.segmentation.task import quiet
from downstream.segmentation.tokens import grid_of, tokens_of
from lutbench.data.scene_folder import IGNORED
from lutbench.errors import UserError
from lutbench.models.pretrained import encoder_of
from lutbench.models.weights import save_weights
from lutbench.recipes.dense import DenseLinearRecipe
from lutbench.run import Run
from lutbench.train.batches import Schedule
from lutbench.train.device import moved
from lutbench.train.logger import TrainingLogger
from lutbench.train.processes import accelerator, autocast
from lutbench.train.randomness import RngStream, seeded

__all__ = ["check", "check_weights", "cost", "perform"]  # what lutbench.kinds asks for

LAYER = 104
"""The last number of the key under which the layer's weights are drawn."""


def check(run: Run[DenseLinearRecipe]) -> None:
    """Find what would stop a run before any compute is spent.

    Raises:
        UserError: see :func:`check_dense`; also if the batch does not divide over the processes that encode it.
    """
    check_dense(run)
    if run.recipe.batch % (processes := accelerator().num_processes):
        raise UserError(
            f"batch = {run.recipe.batch} is not divisible by {processes} processes: set it to a "
            f"multiple of {processes}, or start another number of processes."
        )


def perform(run: Run[DenseLinearRecipe]) -> None:
    """Train the layer on the run's frozen encoder, evaluate it by sliding windows, and keep it.

    Every process trains the same layer on the tokens of the whole batch: only encoding is spread, so neither layer nor BatchNorm
    depends on the number of processes. Leaves ``linear.safetensors`` and ``predictions.png`` in the run's folder, and the record.

    Raises:
        UserError: if the encoder's weights do not fit, a loss, a weight or a score is not finite, nothing moved, or the disk is full.
    """
    with quiet():
        from downstream.segmentation.dense_data import evaluated
    recipe, processes = run.recipe, accelerator()
    train, grid = run.dataset("train"), grid_of(recipe)
    encoder = encoder_of(run, recipe.crop).to(processes.device).eval().requires_grad_(False)
    schedule = Schedule.of_iterations(len(train), recipe.iterations, recipe.batch, run.seed)

    def encoded(pixels: Tensor) -> Tensor:
        """Return the patch tokens (B, D, g, g) of normalised pixels (B, 3, S, S)."""
        with torch.no_grad(), autocast(recipe.precision):
            return tokens_of(encoder, pixels, grid.blocks)

    # Layer, optimiser
    head = dense_head(grid.width, len(train.classes), run.seed).to(processes.device)
    betas = recipe.betas[0], recipe.betas[1]
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay)

    # The loop
    logger = train_head(
        run,
        head,
        optimizer,
        schedule,
        recipe.save_every,
        rate_at=lambda step: polynomial_rate(step, recipe),
        batches_of=partial(encoded_batches, run, schedule, encoded),
        loss_of=lambda batch: loss_of(head(batch["tokens"]), batch["mask"]),
    )

    # What came of it
    began = time.monotonic()
    head.eval()
    outcomes = evaluated(run, lambda windows: head(encoded(windows)))
    if outcomes is not None:
        run.save_results(
            outcomes,
            seconds=logger.seconds + time.monotonic() - began,
            images_per_second=logger.images_per_second,
            curve=logger.curve,
            checkpoint=save_weights(head.state_dict(), run.folder / "linear.safetensors"),
            extra={"loss": logger.losses["loss"]},
        )


def dense_head(width: int, classes: int, seed: int) -> nn.Sequential:
    """Return the probe from tokens (B, D, g, g) to scores (B, C, g, g): BatchNorm, then a linear layer, N(0, 0.01) at first.

    Source: the BNHead of DINOv2's configs; the deviation is that of MMSegmentation's heads.
    """
    linear = nn.Conv2d(width, classes, 1)
    with seeded(RngStream.WEIGHTS, seed, LAYER):
        nn.init.normal_(linear.weight, std=0.01)
    assert linear.bias is not None
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm2d(width), linear)


def loss_of(scores: Tensor, masks: Tensor) -> Tensor:
    """Return the cross-entropy of ``scores`` (B, C, g, g), enlarged to the ``masks`` (B, S, S), without ignored pixels.

    Its sum is divided by the number of all pixels, as MMSegmentation's is, so that a batch that is ignored whole has a loss of 0.
    """
    size = masks.shape[-2], masks.shape[-1]
    total = functional.cross_entropy(enlarged(scores, size), masks.long(), ignore_index=IGNORED, reduction="sum")
    return total / masks.numel()


def polynomial_rate(step: int, recipe: DenseLinearRecipe) -> float:
    """Return the learning rate of an iteration: linear warm-up, from 1e-6 of it, then a polynomial decay to 0 (MMSegmentation)."""
    if step < recipe.warmup:
        return recipe.lr * max(1e-6, step / recipe.warmup)
    left = 1 - (step - recipe.warmup) / (recipe.iterations - recipe.warmup)
    return float(recipe.lr * left**recipe.power)


def encoded_batches(
    run: Run[DenseLinearRecipe], schedule: Schedule, encoded: Callable[[Tensor], Tensor], logger: TrainingLogger
) -> Iterator[Batch]:
    """Yield the whole batch of each step, from the logger's start on: ``tokens`` (B, D, g, g), ``mask`` (B, S, S), ``index`` (B,).

    Of random crops, this process's share and the others'. On CPUs crops are encoded one by one, so that their bits do not depend on
    how many a process has.
    """
    from downstream.segmentation.dense_data import prepared_pixels, training_crops

    processes, crop, order = accelerator(), run.recipe.crop, gathered_order(schedule)
    at_once = 1 if processes.device.type == "cpu" else schedule.batch
    crops = logger.waiting(training_crops(run.dataset("train"), run.recipe, schedule, logger.start))
    for step, batch in enumerate(crops, logger.start):
        pixels = torch.stack([padded(prepared_pixels(image, run.preprocessing), crop) for image in batch["image"]])
        tokens = torch.cat([encoded(some) for some in pixels.split(at_once)])
        masks = moved(batch["mask"])
        yield {
            "tokens": processes.gather(tokens)[order],
            "mask": processes.gather(masks)[order],
            "index": torch.tensor([index for _, index in schedule.batch_keys(step)]),
        }
