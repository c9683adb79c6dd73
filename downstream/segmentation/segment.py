"""Train and test UPerNet on an encoder with MMSegmentation's Runner, and write the record."""

import contextlib
import copy
import io
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmseg.models import SegDataPreProcessor
from mmseg.models.utils import resize
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from timm.models import VisionTransformer
from torch import Tensor, nn

from downstream.segmentation.backbone import load_backbone
from downstream.segmentation.checkpoints import Sealed, newest_sealed
from downstream.segmentation.config import mmseg_config
from downstream.segmentation.confusions import Confusions
from downstream.segmentation.dropout import spread
from downstream.segmentation.export import CONFIG, keep_segmenter
from downstream.segmentation.hooks import KeyedDataset, SuiteHook, SuiteRunner
from downstream.segmentation.predictions import picture_predictions
from downstream.segmentation.scores import ConfusionMetric
from downstream.segmentation.sheet import FILE
from downstream.segmentation.timm_backbone import TimmMaps, load_maps
from lutbench.data.scenes import SegmentationDataset
from lutbench.models.pretrained import encoder_of
from lutbench.recipes.segmentation import SegmentationRecipe
from lutbench.run import Run
from lutbench.train.batches import FromStep, Schedule
from lutbench.train.batchnorm import synchronise
from lutbench.train.loader import Loader, loader_options
from lutbench.train.logger import TrainingLogger
from lutbench.train.processes import accelerator, autocast, precision_of
from lutbench.train.randomness import RngStream, seeded
from lutbench.train.schedule import check_moved, weights_digest

register_all_modules()  # so that configs can name MMSegmentation's components

QUIET = {"runtime_info": None, "timer": None, "sampler_seed": None, "logger": None}
"""MMEngine's hooks that the suite's take the place of. Its history of every loss would grow with the run."""

PIXEL_BYTES = 3 + 8
"""Bytes of a pixel of a training crop: three colours, and the class as int64."""

DECODER = 103
"""The last number of the key under which the weights of neck and heads are drawn."""


def segment(run: Run[SegmentationRecipe]) -> None:
    """Train UPerNet on the run's encoder, evaluate it, and keep it for MMSegmentation.

    Leaves in the run's folder ``segmenter.safetensors`` and ``segmenter.py`` (its config), ``predictions.png``,
    TensorBoard scalars and, in the results, the record with every image's confusion counts.

    Raises:
        UserError: if the encoder's weights do not fit, a loss, a weight or an output is not finite, nothing moved, or the
            disk is full.
    """
    recipe, processes = run.recipe, accelerator()
    MMLogger.get_instance(run.name, log_level="ERROR")  # what is logged before the Runner has its own
    train: SegmentationDataset = run.dataset("train")
    val: SegmentationDataset = run.dataset("val")
    cfg = mmseg_config(recipe, train, val, prepared=run.preprocessing, processes=processes.num_processes)
    schedule = Schedule.of_iterations(len(train), recipe.iterations, recipe.batch, run.seed)

    # Model, from the encoder; the newest checkpoint, if there is one
    model = build_segmenter(cfg, run)
    if schedule.processes > 1:
        spread(model, schedule)
    digest = weights_digest(model)
    checkpoint, damage = newest_sealed(run.checkpoints, run.identity, schedule.steps)
    for line in damage:
        run.log(line)
    start, extra_state = (checkpoint.step, checkpoint.extra_state) if checkpoint else (0, {})
    if checkpoint:
        run.log(f"resumes from step {start}.")

    # The loop is MMEngine's
    logger = TrainingLogger(run, schedule, start, extra_state, recipe.save_every)
    metric = ConfusionMetric(ignore_index=cfg.val_evaluator.ignore_index)
    runner = _runner(run, cfg, model, schedule, logger, metric, checkpoint)
    began, before = time.monotonic(), logger.seconds  # of earlier starts
    with logger:
        runner.train()
    check_moved(model, digest)

    # What came of it
    if metric.counts is None:  # with val_every the last iteration is evaluated in the loop
        runner.val()
    several = _multi_scale(model, cfg, runner) if recipe.tta else None
    # With evaluations, which logger.seconds leaves out where they end the loop
    seconds = before + time.monotonic() - began - logger.watched
    if processes.is_main_process:
        dataset: Any = runner.val_dataloader.dataset
        outcomes = _confusions(metric, dataset, val, several)
        picture_predictions(partial(_predicted, model.eval()), dataset, val, run.folder / FILE)
        run.save_results(
            outcomes,
            seconds=seconds,
            images_per_second=logger.images_per_second,
            curve=logger.curve,
            checkpoint=keep_segmenter(model, cfg, run.folder),
            extra=dict(logger.losses),
            files=[CONFIG],
        )


def build_segmenter(cfg: Config, run: Run[SegmentationRecipe]) -> nn.Module:
    """MMSegmentation's model with the weights of the run's encoder in its backbone, neck and heads drawn from a key.

    Raises:
        UserError: if the encoder's weights cannot be had, are not those of the run's identity, or do not fit.
    """
    with seeded(RngStream.WEIGHTS, run.seed, DECODER):
        model = MODELS.build(cfg.model)
        model.init_weights()
    model.data_preprocessor = Preprocessor(
        **{name: of for name, of in cfg.model.data_preprocessor.items() if name != "type"}
    )
    for head in (model.decode_head, model.auxiliary_head):
        head.loss_by_feat = partial(losses_of, head)
    encoder = encoder_of(run, run.recipe.crop)
    if isinstance(model.backbone, TimmMaps):
        load_maps(model.backbone, encoder)
    else:
        assert isinstance(encoder, VisionTransformer)
        load_backbone(model.backbone, encoder)
    if accelerator().num_processes > 1:
        synchronise(model)  # before there is an optimiser, which holds the parameters themselves
    built: nn.Module = model
    return built


class Preprocessor(SegDataPreProcessor):
    """MMSegmentation's own, but colours are reversed by ``flip``: its list of indices would be copied to a GPU and waited for, per image."""

    def __init__(self, *, bgr_to_rgb: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self.bgr_to_rgb = bgr_to_rgb

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return ``inputs``, normalised and padded images (B, 3, H, W), and their ``data_samples``."""
        data = self.cast_data(data)
        if self.bgr_to_rgb:
            data["inputs"] = [image.flip(0) for image in data["inputs"]]
        prepared: dict[str, Any] = super().forward(data, training)
        return prepared


def losses_of(head: Any, logits: Tensor, samples: list[SegDataSample]) -> dict[str, Tensor]:
    """Return a head's loss from its ``logits`` (B, C, h, w), as its own ``loss_by_feat`` does, but not the accuracy.

    Nothing reads MMSegmentation's accuracy, which sorts the classes of every pixel and makes a GPU wait in every step.
    """
    masks = torch.stack([sample.gt_sem_seg.data for sample in samples])  # (B, 1, H, W)
    logits = resize(logits, size=masks.shape[2:], mode="bilinear", align_corners=head.align_corners)
    return {head.loss_decode.loss_name: head.loss_decode(logits, masks.squeeze(1), ignore_index=head.ignore_index)}


def optimizer_of(model: nn.Module, cfg: Config, recipe: SegmentationRecipe) -> OptimWrapper:
    """AdamW with a rate for every depth, by MMSegmentation's constructor, under the recipe's precision."""
    settings = {**cfg.optim_wrapper, **({"type": InBfloat16} if precision_of(recipe.precision) == "bf16" else {})}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints every parameter's name
        return build_optim_wrapper(model, settings)


class InBfloat16(OptimWrapper):
    """Forward passes in bfloat16, on any device.

    MMEngine's AmpOptimWrapper needs a GPU, and scales gradients, which bfloat16 does not need and which waits in every step.
    """

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Compute the block as MMEngine would, in bfloat16."""
        with super().optim_context(model), autocast("bf16"):
            yield


def _runner(
    run: Run[SegmentationRecipe],
    cfg: Config,
    model: nn.Module,
    schedule: Schedule,
    logger: TrainingLogger,
    metric: ConfusionMetric,
    checkpoint: Sealed | None,
) -> SuiteRunner:
    """Return MMEngine's Runner, which trains from the ``checkpoint`` on, if there is one, and evaluates by the ``metric``."""
    recipe = run.recipe
    return SuiteRunner(
        model=model,
        work_dir=str(run.checkpoints),
        train_dataloader=_train_loader(cfg, schedule, logger.start, recipe),
        val_dataloader=_evaluation_loader(cfg.val_dataloader),
        train_cfg={
            **cfg.train_cfg,
            "val_begin": 1 if recipe.val_every else recipe.iterations + 1,
            "fast_forward_on_resume": True,  # the loader begins there
        },
        val_cfg=cfg.val_cfg,
        val_evaluator=[metric],
        optim_wrapper=optimizer_of(model, cfg, recipe),
        param_scheduler=cfg.param_scheduler,
        default_hooks={**QUIET, "checkpoint": SuiteHook(run, logger, schedule, len(run.dataset("val")))},
        load_from=str(checkpoint.path) if checkpoint else None,
        resume=checkpoint is not None,
        randomness={"seed": run.seed},
        experiment_name=f"{run.name.replace('/', '-')}-{run.identity[:12]}",
        **_surroundings(cfg),
    )


def _surroundings(cfg: Config) -> dict[str, Any]:
    """Return what every Runner is given of the process that it runs in."""
    launcher = "pytorch" if accelerator().num_processes > 1 else "none"
    return {"env_cfg": cfg.env_cfg, "log_level": "ERROR", "launcher": launcher, "default_scope": "mmseg"}


def _train_loader(cfg: Config, schedule: Schedule, start: int, recipe: SegmentationRecipe) -> Loader:
    dataset = KeyedDataset(DATASETS.build(cfg.train_dataloader.dataset), schedule.seed)
    batches = FromStep(schedule, start)
    options = loader_options(recipe.workers, schedule.micro_batch // schedule.processes * recipe.crop**2 * PIXEL_BYTES)
    return Loader(dataset, batch_sampler=batches, collate_fn=pseudo_collate, **options)


def _evaluation_loader(cfg: Config) -> Loader:
    """Return the loader that MMEngine would make of its config, whose workers leave signals to this process."""
    dataset = DATASETS.build(cfg.dataset)
    options = {"batch_size": cfg.batch_size, "num_workers": cfg.num_workers, "collate_fn": pseudo_collate}
    return Loader(dataset, sampler=DefaultSampler(dataset, shuffle=cfg.sampler.shuffle), **options)


def _multi_scale(model: nn.Module, cfg: Config, runner: SuiteRunner) -> ConfusionMetric:
    """Return the counts of six scales and flips together, by MMSegmentation's SegTTAModel."""
    metric = ConfusionMetric(ignore_index=cfg.test_evaluator.ignore_index)
    loader = copy.deepcopy(cfg.test_dataloader)
    loader.dataset.pipeline = cfg.tta_pipeline
    SuiteRunner(
        model=MODELS.build({**cfg.tta_model, "module": model}),
        work_dir=runner.work_dir,
        test_dataloader=_evaluation_loader(loader),
        test_cfg=cfg.test_cfg,
        test_evaluator=[metric],
        default_hooks={**QUIET, "checkpoint": None},
        custom_hooks=[hook for hook in runner.hooks if isinstance(hook, SuiteHook)],
        experiment_name=f"{runner.experiment_name}-multi-scale",
        **_surroundings(cfg),
    ).test()
    return metric


def _predicted(model: Any, sample: dict[str, Any]) -> Tensor:
    found: Tensor = model.test_step(pseudo_collate([sample]))[0].pred_sem_seg.data.squeeze()
    return found


def _confusions(
    metric: ConfusionMetric, dataset: Any, val: SegmentationDataset, several: ConfusionMetric | None = None
) -> Confusions:
    names = [
        Path(dataset.get_data_info(index)["img_path"]).relative_to(val.images).as_posix()
        for index in range(len(dataset))
    ]
    assert metric.counts is not None
    multi_scale = _confusions(several, dataset, val) if several else None
    return Confusions.of(metric.counts, val.classes, names, multi_scale)
