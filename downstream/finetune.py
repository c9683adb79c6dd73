"""End-to-end fine-tuning of the encoder and a new head, with layer-wise learning rate decay (MAE, section A.1; released code)."""

import time
from typing import Any

import torch
from timm.layers.weight_init import trunc_normal_
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn
from torch.nn import functional

from downstream.augment import classifier_input, train_transform
from downstream.cost import finetuning as cost
from downstream.mixing import DropPaths, Mixing
from downstream.stage import check_classification, check_weights
from lutbench.data.images import ImageDataset
from lutbench.errors import UserError
from lutbench.evaluate.inference import evaluate
from lutbench.models.encoders import create_encoder, export_encoder, is_plain
from lutbench.models.meta import shapes_only
from lutbench.models.pretrained import encoder_of, fit
from lutbench.recipes.downstream import FinetuneRecipe
from lutbench.run import Run
from lutbench.train.batches import Schedule, stream
from lutbench.train.batchnorm import batch_norms, synchronise
from lutbench.train.device import may_wait, on_device
from lutbench.train.logger import TrainingLogger
from lutbench.train.processes import accelerator, autocast, reducing
from lutbench.train.randomness import RngStream, seeded
from lutbench.train.regional import checkpoint_blocks, compile_blocks, compiles, not_compiled
from lutbench.train.schedule import check_moved, learning_rate, set_learning_rate, weights_digest
from lutbench.train.sharding import is_sharded, parallel, share

__all__ = ["check", "check_weights", "cost", "perform"]  # what lutbench.kinds asks for

HEAD = 101
"""The last number of the key under which a classifier's own weights are drawn."""

OWN = ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
"""Parameters of a classifier that do not come from the encoder."""


def check(run: Run[FinetuneRecipe]) -> None:
    """Find what would stop a run before any compute is spent.

    Raises:
        UserError: see :func:`check_classification` and :func:`schedule_of`; also if a model with BatchNorm would see other batches
            than the recipe's.
    """
    check_classification(run)
    with shapes_only():
        encoder = create_encoder(run.recipe.encoder.architecture, run.recipe.side)
        classifier = build_classifier(encoder, run.recipe, len(run.dataset("train").classes), run.seed)
        if accelerator().num_processes > 1:
            synchronise(classifier)
    schedule = schedule_of(run.recipe, len(run.dataset("train")), run.seed)
    if batch_norms(classifier) and schedule.micro_batches > 1:
        raise UserError(
            f"micro_batch = {schedule.micro_batch}: {run.recipe.encoder.architecture.model} has BatchNorm, whose statistics would be over "
            f"{schedule.micro_batch} images instead of batch = {run.recipe.batch}, which changes results. Remove micro_batch, or lower "
            "batch."
        )


def perform(run: Run[FinetuneRecipe]) -> None:
    """Fine-tune the run's encoder on its image set, evaluate the classifier, and export it for timm.

    Leaves in the run's folder ``classifier.safetensors`` and ``classifier.json``, TensorBoard scalars and, in the
    results, the record with every image's outcome.

    Raises:
        UserError: if the encoder's weights do not fit, a loss or a weight is not finite, nothing moved, an image cannot be
            decoded, or the disk is full.
    """
    recipe, processes, prepared = run.recipe, accelerator(), run.preprocessing
    images: ImageDataset = run.dataset("train")
    schedule = schedule_of(recipe, len(images), run.seed)

    # Classifier, optimiser; from the newest checkpoint, or from the beginning
    classifier = _initial_classifier(run)
    paths = DropPaths.replacing(classifier, run.seed)
    shared = share({"classifier": classifier}, recipe.shard)["classifier"]
    mixing = Mixing(recipe, len(images.classes), run.seed)
    groups = layer_decay_groups(classifier, recipe)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.betas[0], recipe.betas[1]), fused=True)
    modules = {"classifier": classifier}
    start, kept = run.restore(modules, optimizer, schedule.steps)
    extra_state = {"digest": weights_digest(classifier)} | kept  # of the initial weights, which a checkpoint keeps
    if recipe.checkpointing:
        checkpoint_blocks(classifier)
    if compiles(recipe.compile) and not is_sharded(classifier):
        compile_blocks(classifier, whole=recipe.compile is True)
    model = parallel(classifier)

    # The loop
    crops = stream(images, train_transform(recipe, prepared), schedule, start, recipe.workers)
    warmup = schedule.steps_in(recipe.warmup_epochs)
    evaluations = evaluation_steps(recipe, schedule)
    classifier.train()
    with TrainingLogger(run, schedule, start, extra_state, recipe.save_every) as logger:
        batches = on_device(logger.waiting(crops))
        for step in range(start, schedule.steps):
            lr = learning_rate(step, schedule.steps, warmup, recipe.lr, recipe.min_lr)
            set_learning_rate(optimizer, lr)
            for accumulated in range(schedule.micro_batches):
                batch = next(batches)
                pixels = classifier_input(batch, processes.device, prepared)
                rows = schedule.rows(accumulated)
                pixels, targets = mixing(pixels, batch["label"], step, rows)
                paths.draw(step, schedule.batch, rows, processes.device)
                with reducing(model, last=accumulated == schedule.micro_batches - 1):
                    with autocast(recipe.precision):
                        scores = model(pixels)
                    loss = functional.cross_entropy(scores.float(), targets)
                    (loss / schedule.micro_batches).backward()
                logger.note(step, {"loss": loss}, batch["index"])
            optimizer.step()
            optimizer.zero_grad()
            evaluating = step + 1 in evaluations
            if logger.end_step(step, lr, evaluating):
                with may_wait():
                    run.save(step + 1, modules, optimizer, logger.extra_state)
                logger.stop_if_asked(step)
            if evaluating:
                with logger.evaluation(), not_compiled():
                    on_the_way = evaluate(shared.whole(), run.dataset("val"), recipe, prepared, title="")
                logger.log(step + 1, top_1=100 * int(on_the_way.right().sum()) / len(on_the_way.rank))
    check_moved(classifier, extra_state["digest"])
    _evaluate_and_export(run, shared.whole(), logger)


def _initial_classifier(run: Run[FinetuneRecipe]) -> nn.Module:
    """Return the classifier that a run begins with, on this process's device, with BatchNorm over all processes."""
    encoder, classes = encoder_of(run, run.recipe.image_size), len(run.dataset("train").classes)
    classifier = build_classifier(encoder, run.recipe, classes, run.seed).to(accelerator().device)
    if accelerator().num_processes > 1:
        synchronise(classifier)
    return classifier


def _evaluate_and_export(run: Run[FinetuneRecipe], classifier: nn.Module, logger: TrainingLogger) -> None:
    """Write the record of a trained classifier, and the classifier for timm."""
    recipe, prepared = run.recipe, run.preprocessing
    began = time.monotonic()
    with not_compiled():
        outcomes = evaluate(classifier, run.dataset("val"), recipe, prepared, f"{run.name} evaluation")
    evaluation = time.monotonic() - began
    if accelerator().is_main_process:
        sha256 = export_encoder(
            classifier,
            recipe.encoder.architecture,
            run.folder,
            image_size=recipe.side,
            name="classifier",
            class_names=run.dataset("train").classes,
            prepared=prepared._replace(crop_pct=prepared.crop_pct or recipe.eval_crop),
        )
        run.save_results(
            outcomes,
            seconds=logger.seconds + evaluation,
            images_per_second=logger.images_per_second,
            curve=logger.curve,
            checkpoint=sha256,
            extra={"loss": logger.losses["loss"], "skipped": logger.skipped},
            files=["classifier.json"],
        )


def build_classifier(encoder: nn.Module, recipe: FinetuneRecipe, classes: int, seed: int) -> nn.Module:
    """Return the encoder with a head for so many classes, linear, with weights N(0, head_std) truncated at 2 (MAE, section A.1).

    Of a plain ViT the head takes the mean over patch tokens behind a new LayerNorm, which replaces the encoder's last one, as MAE
    does. Position embeddings are trained. Of any other model it takes what timm's own classifier does, with its pooling and norms.

    Raises:
        UserError: if timm makes a plain ViT without a last norm, which this head puts behind the mean, or another model's
            classifier is not one linear layer.
    """
    if not is_plain(recipe.encoder.architecture):
        return _with_timms_head(encoder, recipe, classes, seed)
    with seeded(RngStream.WEIGHTS, seed, HEAD):
        classifier = create_encoder(
            recipe.encoder.architecture, recipe.image_size, recipe.drop_path, classes=classes, pooled_norm=True
        )
        if isinstance(classifier.fc_norm, nn.Identity):
            raise UserError(
                f"model = {recipe.encoder.architecture.model!r}: timm builds it without a final norm, but fine-tuning needs one after the mean "
                "over patches. Choose another model for fine-tuning, or use a probe (linear, knn)."
            )
        assert isinstance(classifier.head, nn.Linear)
        trunc_normal_(classifier.head.weight, std=recipe.head_std)
    kept = {name: t for name, t in encoder.state_dict().items() if not name.startswith(("norm.", "fc_norm."))}
    fit(classifier, kept, "The encoder", fresh=OWN)
    return classifier


def _with_timms_head(encoder: nn.Module, recipe: FinetuneRecipe, classes: int, seed: int) -> nn.Module:
    architecture = recipe.encoder.architecture
    with seeded(RngStream.WEIGHTS, seed, HEAD):
        classifier: Any = create_encoder(architecture, recipe.image_size, recipe.drop_path)
        classifier.reset_classifier(classes)
        head = classifier.get_classifier()
        if not isinstance(head, nn.Linear):
            raise UserError(
                f"model = {architecture.model!r}: expected a classifier of one linear layer, found {type(head).__name__} in timm. "
                "Choose another model for fine-tuning, or use a probe (linear, knn)."
            )
        trunc_normal_(head.weight, std=recipe.head_std)
        nn.init.zeros_(head.bias)
    expected = classifier.state_dict().keys()
    weights = {
        n: t for n, t in encoder.state_dict().items() if n in expected or not n.startswith("norm.")
    }  # BEiT's last
    fit(classifier, weights, "The encoder", fresh=expected - weights.keys())
    built: nn.Module = classifier
    return built


def layer_decay_groups(classifier: Any, recipe: FinetuneRecipe) -> list[dict[str, Any]]:
    """Return the optimiser's groups, whose ``lr_scale`` is layer_decay^(D + 1 - depth) for a ViT of D blocks.

    Embeddings have depth 0, block i depth i + 1, norm and head depth D + 1; of other models timm says which layers follow each
    other. No weight decay on 1-D parameters, class token and position embedding (as MAE does), and what timm excepts.
    """
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        classifier,
        recipe.weight_decay,
        no_weight_decay_list=classifier.no_weight_decay() if hasattr(classifier, "no_weight_decay") else (),
        layer_decay=recipe.layer_decay,
    )
    return groups


def schedule_of(recipe: FinetuneRecipe, images: int, seed: int) -> Schedule:
    """Return the stream of a fine-tuning run on this process.

    Raises:
        UserError: if a pass does not divide over the processes, or leaves one of them an image without a partner.
    """
    schedule = Schedule(images, recipe.epochs, recipe.batch, recipe.micro_batch or recipe.batch, seed)
    if recipe.mixes and (schedule.micro_batch // schedule.processes) % 2:
        raise UserError(
            f"micro_batch = {schedule.micro_batch} on {schedule.processes} processes gives each an odd number of images, but mixup and "
            f"CutMix need an even number: set batch and micro_batch to multiples of {2 * schedule.processes}, "
            "or mixup and cutmix to 0."
        )
    return schedule


def evaluation_steps(recipe: FinetuneRecipe, schedule: Schedule) -> set[int]:
    """Return the steps, short of the last, after which the classifier is evaluated for the curve."""
    if recipe.eval_every is None:
        return set()
    steps = {schedule.steps_in(epoch) for epoch in range(recipe.eval_every, recipe.epochs, recipe.eval_every)}
    return steps - {0, schedule.steps}
