"""End-to-end fine-tuning: encoder and a new head, layer by layer at their own rate (MAE, section A.1; release)."""

from functools import partial

import torch
from torch.nn import functional

from downstream.augment import train_transform
from downstream.classifier import build_classifier, layer_decay_groups
from downstream.evaluate import evaluate
from downstream.mixing import DropPaths, Mixing
from downstream.stage import encoder_of, sample, save_results
from lutbench.errors import UserError
from lutbench.models.encoders import export_encoder
from lutbench.recipes import FinetuneRecipe
from lutbench.run import Run
from lutbench.train.batches import Schedule, stream
from lutbench.train.logger import TrainingLogger
from lutbench.train.processes import accelerator, autocast, reducing
from lutbench.train.schedule import check_moved, learning_rate, set_learning_rate, weights_digest


def finetune(run: Run) -> None:
    """Fine-tune the run's encoder on its image set, evaluate the classifier, and export it for timm.

    Leaves in the run's folder ``classifier.safetensors`` and ``classifier.json``, TensorBoard scalars and, in the
    results, the record with every image's outcome.

    Raises:
        UserError: if the encoder's weights do not fit, a loss is not finite, nothing moved, an image cannot be
            decoded, or the disk is full.
    """
    recipe = run.planned.recipe
    assert isinstance(recipe, FinetuneRecipe)
    processes = accelerator()
    images, held_out = run.images("train"), run.images("val")
    schedule = schedule_of(recipe, len(images), run.planned.seed)

    # Classifier, optimiser
    classifier = build_classifier(encoder_of(run), recipe, len(images.classes), run.planned.seed).to(processes.device)
    paths = DropPaths.replacing(classifier, run.planned.seed)
    mixing = Mixing(recipe, len(images.classes), run.planned.seed)
    optimizer = torch.optim.AdamW(
        layer_decay_groups(classifier, recipe), lr=recipe.lr, betas=(recipe.betas[0], recipe.betas[1]), fused=True
    )
    modules = {"classifier": classifier}

    # From the newest checkpoint, or from the beginning
    facts = {"digest": weights_digest(classifier)}
    start, kept = run.restore(modules, optimizer)
    facts |= kept
    model = processes.prepare_model(torch.compile(classifier) if recipe.compile else classifier)

    # The loop
    batches = stream(
        images,
        partial(sample, train_transform(recipe)),
        schedule,
        start,
        recipe.workers,
        pin_memory=processes.device.type == "cuda",
    )
    warmup = schedule.steps_in(recipe.warmup_epochs)
    evaluations = evaluation_steps(recipe, schedule)
    classifier.train()
    logger = TrainingLogger(
        run.planned.name, run.folder, schedule, start, facts, log_every=recipe.log_every, save_every=recipe.save_every
    )
    with logger:
        waiting = logger.waiting(batches)
        for step in range(start, schedule.steps):
            lr = learning_rate(step, schedule.steps, warmup, recipe.lr, recipe.min_lr)
            set_learning_rate(optimizer, lr)
            for accumulated in range(schedule.micro_batches):
                batch = next(waiting)
                pixels, labels = (batch[name].to(processes.device, non_blocking=True) for name in ("image", "label"))
                pixels, targets = mixing(pixels, labels, step)
                paths.draw(step, schedule.batch, schedule.rows(accumulated), processes.device)
                with reducing(model, last=accumulated == schedule.micro_batches - 1):
                    with autocast(recipe.precision):
                        scores = model(pixels)
                    loss = functional.cross_entropy(scores.float(), targets)
                    (loss / schedule.micro_batches).backward()
                logger.note(step, {"loss": loss}, batch["index"])
            optimizer.step()
            optimizer.zero_grad()
            if logger.end_step(step, lr):
                run.save(step + 1, modules, optimizer, facts | logger.facts)
                logger.stop_if_asked(step)
            if step + 1 in evaluations:
                on_the_way = evaluate(classifier, held_out, recipe, title="")
                logger.log(step + 1, top_1=on_the_way.measurements()[0].value)
    check_moved(classifier, facts["digest"])

    # What came of it
    outcomes = evaluate(classifier, held_out, recipe, f"{run.planned.name} evaluation")
    if processes.is_main_process:
        sha256 = export_encoder(
            classifier, recipe.encoder.architecture, run.folder, name="classifier", class_names=images.classes
        )
        save_results(
            run,
            outcomes,
            seconds=logger.seconds,
            images_per_second=logger.images_per_second,
            checkpoint=sha256,
            extra={"loss": logger.losses["loss"], "skipped": logger.skipped},
        )


def schedule_of(recipe: FinetuneRecipe, images: int, seed: int) -> Schedule:
    """The stream of a fine-tuning run on this process.

    Raises:
        UserError: if a pass does not divide over the processes, or leaves one of them an image without a partner.
    """
    processes = accelerator()
    schedule = Schedule(
        images=images,
        epochs=recipe.epochs,
        batch=recipe.batch,
        micro_batch=recipe.micro_batch or recipe.batch,
        seed=seed,
        rank=processes.process_index,
        processes=processes.num_processes,
    )
    if (recipe.mixup > 0 or recipe.cutmix > 0) and (schedule.micro_batch // schedule.processes) % 2:
        raise UserError(
            f"micro_batch = {schedule.micro_batch} over {schedule.processes} processes gives each an odd number of "
            f"images, and mixup pairs them: set batch and micro_batch to multiples of {2 * schedule.processes}, "
            "or mixup and cutmix to 0."
        )
    return schedule


def evaluation_steps(recipe: FinetuneRecipe, schedule: Schedule) -> set[int]:
    """After which steps, short of the last, the classifier is evaluated for the curve."""
    if recipe.eval_every is None:
        return set()
    steps = {schedule.steps_in(epoch) for epoch in range(recipe.eval_every, recipe.epochs, recipe.eval_every)}
    return steps - {0, schedule.steps}
