"""Stage 1: pre-training of an encoder on images."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import JsonValue
from torch import nn

from lutbench.checkpoint_names import newest_step
from lutbench.data.images import ImageDataset
from lutbench.data.preflight import preflight
from lutbench.evaluate.outcomes import Measurement
from lutbench.models.encoders import export_encoder
from lutbench.models.weights import save_weights
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.run import Run, row_named
from lutbench.run_status import RunState
from lutbench.train.batches import Schedule, stream
from lutbench.train.device import may_wait, on_device
from lutbench.train.logger import TrainingLogger
from lutbench.train.momentum import momentum_at
from lutbench.train.processes import accelerator, autocast, reducing
from lutbench.train.regional import blocks_of, checkpoint_blocks, compile_blocks, compiles, not_compiled
from lutbench.train.schedule import check_moved, learning_rate, set_learning_rate, stepped_rate, weights_digest
from lutbench.train.sharding import Shared, is_sharded, parallel, share
from pretrain.cost import cost, flop_per_image
from pretrain.health import Watch
from pretrain.online_knn import OnlineKnn, labelled_splits
from pretrain.pictured import PICTURED, pictured
from pretrain.reconstruction import reconstruction_grid
from pretrain.reconstruction import reconstructions as reconstruct
from pretrain.snapshots import keep_snapshot, kept_snapshots, snapshot_steps
from pretrain.student import build_student, parameter_groups
from pretrain.teacher import Teacher
from pretrain.views import PretrainTransform, Views

__all__ = ["check", "cost", "perform", "reconstruct"]  # what lutbench.kinds asks for


def check(run: Run[PretrainRecipe]) -> None:
    """Find what would stop a run before any compute is spent.

    Raises:
        UserError: if its data is absent or unfit, a batch does not divide over the processes, encoder, decoder, mask
            ratio and crop do not go together, or two snapshots fall on one step; if a run that goes on lacks one that lies behind it.
    """
    recipe = run.recipe
    images = run.workspace.open(recipe.dataset, "train")
    schedule = schedule_of(recipe, len(images), run.seed)
    snapshots = snapshot_steps(recipe, schedule.steps)
    PretrainTransform(recipe)
    preflight(run, images, *(labelled_splits(run)[1:] if recipe.knn_every else ()))
    if snapshots and run.status().state is RunState.RESUMABLE:
        kept_snapshots(run, snapshots, newest_step(run.checkpoints) or 0)
    with row_named(run), torch.device("meta"):
        build_student(recipe, run.seed)


def perform(run: Run[PretrainRecipe]) -> None:
    """Train the run's student, with a teacher if the recipe has the context loss, and export its encoder.

    Writes to the run's folder: ``encoder.safetensors`` and ``encoder.json`` for timm, the same for the teacher's encoder if there is one,
    snapshots of both, ``decoder.safetensors``, ``reconstructions.png`` and TensorBoard scalars; and the record to the results.

    Raises:
        UserError: if a loss or a weight is not finite, nothing moved, an image cannot be decoded, the disk is full, or a snapshot
            is missing or damaged.
    """
    recipe, processes = run.recipe, accelerator()
    images: ImageDataset = run.dataset("train")
    schedule = schedule_of(recipe, len(images), run.seed)

    # Student, teacher, optimiser
    student = build_student(recipe, run.seed).to(processes.device)
    teacher = Teacher(student) if recipe.has_context else None
    modules = {"student": student} | ({"teacher": teacher} if teacher else {})
    shared = share(modules, recipe.shard)
    optimizer = torch.optim.AdamW(
        parameter_groups(student, recipe.weight_decay),
        lr=recipe.lr,
        betas=(recipe.betas[0], recipe.betas[1]),
        fused=True,
    )

    # From the newest checkpoint, or from the beginning
    start, restored = run.restore(modules, optimizer, schedule.steps)
    extra_state = {"digest": weights_digest(student)} | restored  # of the initial weights, which a checkpoint keeps
    snapshots = snapshot_steps(recipe, schedule.steps)
    if start:
        kept_snapshots(run, snapshots, start)
    elif 0 in snapshots:
        keep_snapshot(run, 0.0, encoders(shared))
    online, watch = OnlineKnn(run, schedule, extra_state), Watch(run, images)

    # What changes how fast it goes, and how much memory it takes
    if teacher and recipe.teacher_precision == "bf16":
        teacher.encode_in_bf16()
    if recipe.checkpointing:
        checkpoint_blocks(student.encoder)
        if blocks_of(student.decoder) is not None:
            checkpoint_blocks(student.decoder)
    if compiled := compiles(recipe.compile) and not is_sharded(student):
        compile_blocks(student.encoder, student.decoder, *([teacher.running_encoder] if teacher else []))
        student.compile_loss()
    student.sparse = processes.device.type == "cuda" and student.framework.sparse  # a CPU's bits stay those of before
    patch_size = student.encoder.patch_embed.patch_size[0] if student.sparse else None
    model = parallel(student)

    # The loop
    batches = stream(images, PretrainTransform(recipe), schedule, start, recipe.workers, recipe.form)
    warmup = schedule.steps_in(recipe.warmup_epochs)

    def encoder() -> nn.Module:
        made: nn.Module = encoders(shared)["encoder"]
        return made

    student.train()
    with TrainingLogger(run, schedule, start, extra_state, recipe.save_every) as logger:
        waiting = on_device(logger.waiting(batches))
        online.measure(start, encoder, logger)  # which may have been due when the run was stopped
        for step in range(start, schedule.steps):
            lr = rate_at(recipe, step, schedule.steps, warmup)
            set_learning_rate(optimizer, lr)
            for accumulated in range(schedule.micro_batches):
                batch = next(waiting)
                views = Views.from_batch(batch, processes.device, patch_size=patch_size, compiled=compiled)
                with autocast(recipe.precision):
                    targets = teacher(views) if teacher else None
                with reducing(model, last=accumulated == schedule.micro_batches - 1), autocast(recipe.precision):
                    losses = model(views, targets)
                    (losses.total / schedule.micro_batches).backward()
                logger.note(step, {n: loss for n, loss in losses._asdict().items() if loss is not None}, batch["index"])
            if recipe.clip_gradient is not None:
                torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.clip_gradient)
            optimizer.step()
            optimizer.zero_grad()
            if teacher:
                momentum = momentum_at(recipe.momentum, step, schedule.steps, recipe.momentum_schedule)
                teacher.update(student, momentum)
            if (done := step + 1) in snapshots:  # before a checkpoint that is behind it
                with may_wait():
                    keep_snapshot(run, snapshots[done], encoders(shared))
            if logger.end_step(step, lr, evaluating=done in online.epochs):
                with may_wait():
                    run.save(done, modules, optimizer, logger.extra_state)
                logger.stop_if_asked(step)
                with may_wait():
                    watch.measure(done, shared["student"].whole(), logger)
            online.measure(done, encoder, logger)
    check_moved(student, extra_state["digest"])

    # What came of it
    trained: dict[str, Any] = {name: each.whole() for name, each in shared.items()}
    if processes.is_main_process:
        student = trained["student"].eval()
        student.sparse = False
        views = Views.from_batch(pictured(images, recipe, run.seed), processes.device)
        with not_compiled():
            reconstruction_grid(student, views, run.folder / "reconstructions.png", PICTURED)
        sha256 = export_encoder(student.encoder, recipe.encoder, run.folder)
        save_weights(student.decoder.state_dict(), run.folder / "decoder.safetensors")
        if teacher:
            export_encoder(trained["teacher"].encoder, recipe.encoder, run.folder, name="teacher")
        kept = kept_snapshots(run, snapshots, schedule.steps)
        measurements = [
            Measurement(metric=f"{name} loss", value=value, unit="") for name, value in logger.losses.items()
        ]
        run.save_results(
            measurements,
            seconds=logger.seconds,
            images_per_second=logger.images_per_second,
            curve=logger.curve,
            checkpoint=sha256,
            extra={
                "skipped": logger.skipped,
                "waiting_for_data": logger.waited / logger.seconds,
                "training_images": len(images),
                "flop_per_image": flop_per_image(recipe),
                **online.extra,
                **({"snapshots": dict[str, JsonValue](kept)} if kept else {}),
            },
            arrays=online.arrays,
            files=[
                "encoder.json",
                "decoder.safetensors",
                *(["teacher.json", "teacher.safetensors"] if teacher else []),
                *(f"{name}.{end}" for name in kept for end in ("json", "safetensors")),
            ],
        )


def encoders(shared: Mapping[str, Shared]) -> dict[str, nn.Module]:
    """Return the encoders of student and teacher, whole, by the names of their exports; to be called on every process."""
    made: dict[str, Any] = {name: each.whole() for name, each in shared.items()}
    return {name.replace("student", "encoder"): module.encoder for name, module in made.items()}


def schedule_of(recipe: PretrainRecipe, images: int, seed: int) -> Schedule:
    """Return the stream of a pre-training run on this process.

    Raises:
        UserError: if a micro-batch does not divide over the processes.
    """
    return Schedule(images, recipe.epochs, recipe.batch, recipe.micro_batch or recipe.batch, seed)


def rate_at(recipe: PretrainRecipe, step: int, steps: int, warmup: int) -> float:
    """Return the learning rate at optimiser step ``step`` of ``steps``."""
    if recipe.lr_schedule == "step":
        return stepped_rate(step, steps, warmup, recipe.lr)
    return learning_rate(step, steps, warmup, recipe.lr, recipe.min_lr)
