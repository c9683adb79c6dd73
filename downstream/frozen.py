"""What is trained on a frozen encoder reads its features from: batches that are encoded as they come, or were once.

Every process gets the whole batch of features: only encoding is spread, so that nothing depends on the number of processes.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lutbench.data.tensors import normalised
from lutbench.evaluate.inference import Computed
from lutbench.models.preprocessing import Preprocessing
from lutbench.models.pretrained import encoder_of
from lutbench.recipes.attentive import AttentiveRecipe
from lutbench.recipes.probes import LinearRecipe
from lutbench.run import Run
from lutbench.train.batches import Schedule
from lutbench.train.processes import accelerator, autocast


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
    sizes = range(world, min(batch, recipe.eval_batch * world) + 1, world)
    micro_batch = max((size for size in sizes if batch % size == 0), default=batch)
    return Schedule(images, recipe.epochs, batch, micro_batch, seed)


def remembered_batches(once: Computed, labels: Tensor, schedule: Schedule, start: int) -> Iterator[dict[str, Tensor]]:
    """Yield the whole batch of each step: ``features`` (B, ...), ``label`` (B,), ``index`` (B,), ``skipped`` (B,)."""
    index = torch.from_numpy(once.index)
    for step in range(start, schedule.steps):
        rows = torch.tensor([row for _, row in schedule.batch_keys(step)])
        chosen = index[rows]
        yield {
            "features": once.values[rows],
            "label": labels[chosen],
            "index": chosen,
            "skipped": torch.zeros_like(chosen),
        }


def encoded_batches(
    crops: Iterator[dict[str, Tensor]],
    schedule: Schedule,
    start: int,
    encoding: Callable[[Tensor], Tensor],
    recipe: LinearRecipe | AttentiveRecipe,
    prepared: Preprocessing,
) -> Iterator[dict[str, Tensor]]:
    """Yield the whole batch of each step, from this process's micro-batches and the others': ``features``, ``label``, ``index``.

    ``encoding`` takes normalised images (B, 3, S, S) to features (B, ...).
    """
    processes = accelerator()
    own = torch.tensor([row for accumulated in range(schedule.micro_batches) for row in schedule.rows(accumulated)])
    order = processes.gather(own.to(processes.device)).argsort()
    for _ in range(start, schedule.steps):
        parts: dict[str, list[Tensor]] = {"features": [], "label": [], "index": []}
        for _ in range(schedule.micro_batches):
            batch = next(crops)
            with torch.no_grad(), autocast(recipe.precision):
                pixels = normalised(batch["image"], processes.device, prepared.mean, prepared.std)
                parts["features"].append(encoding(pixels))
            for name in ("label", "index"):
                parts[name].append(batch[name].to(processes.device))
        yield {name: processes.gather(torch.cat(tensors))[order] for name, tensors in parts.items()}
