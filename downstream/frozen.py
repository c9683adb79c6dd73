"""Train a head on a frozen encoder: the training loop of all probes, with features computed every epoch or once.

Every process trains the same head on the whole batch of features. Only the encoding is distributed, so results do not depend on the number
of processes.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from downstream.augment import linear_transform
from downstream.stage import sample
from lutbench.data.tensors import normalised
from lutbench.evaluate.crop_store import fresh_crops
from lutbench.evaluate.features import Features
from lutbench.evaluate.inference import Computed, batch_size, labels_of
from lutbench.models.pretrained import encoder_of
from lutbench.recipes.attentive import AttentiveRecipe
from lutbench.recipes.probes import LinearRecipe
from lutbench.run import Run
from lutbench.train.batches import Schedule, stream
from lutbench.train.device import may_wait, moved, on_device
from lutbench.train.logger import TrainingLogger
from lutbench.train.processes import accelerator, autocast
from lutbench.train.schedule import check_moved, set_learning_rate, weights_digest

Batch = dict[str, Tensor]


def train_head(
    run: Run[Any],
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    save_every: int,
    *,
    rate_at: Callable[[int], float],
    batches_of: Callable[[TrainingLogger], Iterator[Batch]],
    loss_of: Callable[[Batch], Tensor],
) -> TrainingLogger:
    """Train a head, from the run's newest checkpoint or from the beginning, and return the log of it.

    ``rate_at`` a step is the learning rate; ``batches_of`` the logger come from its ``start`` on, as every process's whole batch, with
    ``index`` (B,) of its images; ``loss_of`` a batch is 0-d.

    Raises:
        UserError: if a loss is not finite, or nothing moved.
    """
    modules = {"head": head}
    start, kept = run.restore(modules, optimizer, schedule.steps)
    extra_state = {"digest": weights_digest(head)} | kept  # of the initial weights, which a checkpoint keeps
    head.train()
    with TrainingLogger(run, schedule, start, extra_state, save_every) as logger:
        for step, batch in zip(range(start, schedule.steps), batches_of(logger), strict=True):
            lr = rate_at(step)
            set_learning_rate(optimizer, lr)
            loss = loss_of(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            logger.note(step, {"loss": loss}, batch["index"])
            if logger.end_step(step, lr):
                with may_wait():
                    run.save(step + 1, modules, optimizer, logger.extra_state)
                logger.stop_if_asked(step)
    check_moved(head, extra_state["digest"])
    _same_on_all_processes(head)
    return logger


def _same_on_all_processes(head: nn.Module) -> None:
    """Give every process the weights of the first: all trained alike, but GPUs may differ in the last bits of a gradient."""
    if torch.distributed.is_initialized():
        for tensor in head.state_dict().values():
            torch.distributed.broadcast(tensor, 0)


def frozen_encoder(run: Run[LinearRecipe] | Run[AttentiveRecipe]) -> nn.Module:
    """Return the run's encoder on this process's device, in evaluation mode, without gradients."""
    return encoder_of(run, run.recipe.image_size).to(accelerator().device).eval().requires_grad_(False)


def schedule_of(recipe: LinearRecipe | AttentiveRecipe, images: int, seed: int) -> Schedule:
    """Return the stream of a probe on this process, in micro-batches no larger than evaluation's, which change nothing.

    Raises:
        UserError: if the batch does not divide over the processes that encode it.
    """
    batch, world = recipe.batch, accelerator().num_processes
    if not recipe.fresh_crops:  # nothing is left to spread
        return Schedule(images, recipe.epochs, batch, batch, seed, rank=0, processes=1)
    sizes = range(world, min(batch, batch_size(recipe) * world) + 1, world)
    micro_batch = max((size for size in sizes if batch % size == 0), default=batch)
    return Schedule(images, recipe.epochs, batch, micro_batch, seed)


def feature_batches(
    run: Run[LinearRecipe] | Run[AttentiveRecipe],
    once: Features | None,
    encoding: Callable[[Tensor], Tensor],
    schedule: Schedule,
    logger: TrainingLogger,
) -> Iterator[Batch]:
    """Yield the whole batch of each step, from the logger's start on: ``features`` (B, ...), ``label`` (B,), ``index`` (B,).

    They are those of ``once``, or of fresh crops, of which ``encoding`` takes normalised images (B, 3, S, S) to features (B, ...).
    """
    if once is not None:
        return logger.waiting(_remembered_batches(once, labels_of(run.dataset("train")), schedule, logger.start))
    return _encoded_batches(run, encoding, schedule, logger)


def _remembered_batches(once: Computed, labels: Tensor, schedule: Schedule, start: int) -> Iterator[Batch]:
    index = torch.from_numpy(once.index)
    for step in range(start, schedule.steps):
        rows = torch.tensor([row for _, row in schedule.batch_keys(step)])
        chosen = index[rows]
        yield {
            "features": moved(once.values[rows]),
            "label": moved(labels[chosen]),
            "index": chosen,
            "skipped": torch.zeros_like(chosen),
        }


def _encoded_batches(
    run: Run[LinearRecipe] | Run[AttentiveRecipe],
    encoding: Callable[[Tensor], Tensor],
    schedule: Schedule,
    logger: TrainingLogger,
) -> Iterator[Batch]:
    """Yield the whole batch of each step, from this process's micro-batches and the others'."""
    recipe, images, prepared = run.recipe, run.dataset("train"), run.preprocessing
    processes, order = accelerator(), gathered_order(schedule)
    transform = partial(sample, linear_transform(recipe, prepared))
    with fresh_crops(run, images) as kept:
        crops = stream(images, transform, schedule, logger.start, recipe.workers, recipe.form, kept)
        batches = on_device(logger.waiting(crops))
        for _ in range(logger.start, schedule.steps):
            parts: dict[str, list[Tensor]] = {"features": [], "label": [], "index": []}
            for _ in range(schedule.micro_batches):
                batch = next(batches)
                with torch.no_grad(), autocast(recipe.precision):
                    pixels = normalised(batch["image"], processes.device, prepared.mean, prepared.std)
                    parts["features"].append(encoding(pixels))
                for name in ("label", "index"):
                    parts[name].append(moved(batch[name]))
            yield {name: processes.gather(torch.cat(tensors))[order] for name, tensors in parts.items()}


def gathered_order(schedule: Schedule) -> Tensor:
    """Return which of a batch's rows (B,), as gathered from all processes, come in which place of the batch."""
    own = [row for accumulated in range(schedule.micro_batches) for row in schedule.rows(accumulated)]
    order: Tensor = accelerator().gather(torch.tensor(own, device=accelerator().device)).argsort()
    return order
