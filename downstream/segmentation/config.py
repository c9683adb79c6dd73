"""A recipe as a config of MMSegmentation: its names, its components, nothing of the suite in it."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from lutbench.data.scenes import SegmentationDataset
from lutbench.errors import UserError
from lutbench.models.encoders import Geometry, geometry_of
from lutbench.recipes import SegmentationRecipe

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
"""ImageNet's, of RGB from 0 to 255."""

TTA_SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
"""Scales of multi-scale testing, each also flipped (MMSegmentation's ADE20K config)."""

LEVELS = 4
"""Levels of the pyramid: the maps of four blocks, enlarged 4, 2, 1 and 0.5 times."""

IGNORED = 255
"""The value that MMSegmentation gives a reduced zero."""


def mmseg_config(
    recipe: SegmentationRecipe,
    train: SegmentationDataset,
    val: SegmentationDataset,
    *,
    processes: int = 1,
    norm: str = "SyncBN",
) -> Config:
    """Return the whole experiment: model, data, schedule and evaluation. ``norm`` is the norm of neck and heads.

    Raises:
        UserError: if sizes do not go together, see :func:`check_segmentation`.
    """
    geometry = check_segmentation(recipe, processes)
    return Config(
        {
            "default_scope": "mmseg",
            "model": _model(recipe, geometry, len(train.classes), ignored(train), norm),
            "train_dataloader": {
                "batch_size": recipe.batch // processes,
                "num_workers": recipe.workers,
                "sampler": {"type": "InfiniteSampler", "shuffle": True},
                "dataset": _dataset(recipe, train, _train_pipeline(recipe, ignored(train))),
            },
            "val_dataloader": _val_dataloader(recipe, val, _test_pipeline(recipe)),
            "test_dataloader": _val_dataloader(recipe, val, _test_pipeline(recipe)),
            "val_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"], "ignore_index": ignored(val)},
            "test_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"], "ignore_index": ignored(val)},
            "train_pipeline": _train_pipeline(recipe, ignored(train)),
            "test_pipeline": _test_pipeline(recipe),
            "tta_model": {"type": "SegTTAModel"},
            "tta_pipeline": _tta_pipeline(recipe),
            "train_cfg": {
                "type": "IterBasedTrainLoop",
                "max_iters": recipe.iterations,
                "val_interval": recipe.val_every or recipe.iterations,
            },
            "val_cfg": {"type": "ValLoop"},
            "test_cfg": {"type": "TestLoop"},
            "optim_wrapper": {
                "type": "OptimWrapper",
                "optimizer": {
                    "type": "AdamW",
                    "lr": recipe.lr,
                    "betas": tuple(recipe.betas),
                    "weight_decay": recipe.weight_decay,
                    "fused": True,
                },
                "constructor": "LearningRateDecayOptimizerConstructor",
                "paramwise_cfg": {
                    "num_layers": geometry.depth,
                    "decay_rate": recipe.layer_decay,
                    "decay_type": "layer_wise",
                },
            },
            "param_scheduler": _schedule(recipe),
            "default_hooks": {
                "timer": {"type": "IterTimerHook"},
                "logger": {"type": "LoggerHook", "interval": recipe.log_every, "log_metric_by_epoch": False},
                "param_scheduler": {"type": "ParamSchedulerHook"},
                "checkpoint": {
                    "type": "CheckpointHook",
                    "by_epoch": False,
                    "interval": recipe.save_every,
                    "max_keep_ckpts": 2,
                },
                "sampler_seed": {"type": "DistSamplerSeedHook"},
            },
            "env_cfg": {
                "cudnn_benchmark": True,
                "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
                "dist_cfg": {"backend": "nccl"},
            },
            "log_processor": {"by_epoch": False},
            "log_level": "INFO",
            "load_from": None,
            "resume": False,
        }
    )


def check_segmentation(recipe: SegmentationRecipe, processes: int = 1) -> Geometry:
    """Return the geometry of the recipe's encoder, if everything fits together.

    Raises:
        UserError: if the crop is not a whole number of patches, a block is deeper than the encoder, or the batch does
            not divide over the processes.
    """
    geometry = geometry_of(recipe.encoder.architecture)
    if recipe.crop % geometry.patch_size:
        raise UserError(
            f"crop = {recipe.crop} is not a whole number of patches of {geometry.patch_size} pixels: "
            f"take {max(1, round(recipe.crop / geometry.patch_size)) * geometry.patch_size}."
        )
    if not geometry.class_token:
        raise UserError(
            f"model = {recipe.encoder.architecture.model!r} has no class token, and MMSegmentation's MAE backbone has "
            "one. Choose a Vision Transformer with one for segmentation."
        )
    if blocks_of(recipe, geometry.depth)[-1] >= geometry.depth:
        raise UserError(
            f"The pyramid takes the output of four blocks, and the encoder has {geometry.depth}: "
            + ("name other blocks." if geometry.depth >= LEVELS else "take an encoder of at least four.")
        )
    if recipe.batch % processes:
        raise UserError(
            f"batch = {recipe.batch} images per iteration do not divide over {processes} processes: set it to a "
            f"multiple of {processes}, or start another number of processes."
        )
    return geometry


def blocks_of(recipe: SegmentationRecipe, depth: int) -> list[int]:
    """Return the blocks, from 0, that feed the pyramid, of an encoder with ``depth`` blocks."""
    if recipe.blocks is not None:
        return recipe.blocks
    if depth < 6:  # too few for the shares
        return list(range(max(0, depth - LEVELS), max(depth, LEVELS)))
    return [round(depth * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1)]


def ignored(scenes: SegmentationDataset) -> int:
    """Return the value that counts neither in training nor in evaluation, as MMSegmentation sees masks."""
    return IGNORED if scenes.reduce_zero_label else scenes.ignore


def _model(recipe: SegmentationRecipe, geometry: Geometry, classes: int, ignore: int, norm: str) -> dict[str, Any]:
    width, crop = geometry.width, (recipe.crop, recipe.crop)
    norm_cfg = {"type": norm, "requires_grad": True}
    head = {
        "num_classes": classes,
        "dropout_ratio": recipe.dropout,
        "norm_cfg": norm_cfg,
        "align_corners": False,
        "ignore_index": ignore,
    }
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": MEAN,
            "std": STD,
            "bgr_to_rgb": True,
            "pad_val": 0,
            "seg_pad_val": ignore,
            "size": crop,
            "test_cfg": {"size": crop},  # an image smaller than the window is padded; others stay as they are
        },
        "backbone": {
            "type": "MAE",
            "img_size": crop,
            "patch_size": geometry.patch_size,
            "embed_dims": width,
            "num_layers": geometry.depth,
            "num_heads": geometry.heads,
            "mlp_ratio": 4,
            "out_indices": blocks_of(recipe, geometry.depth),
            "drop_path_rate": recipe.drop_path,
            "norm_cfg": {"type": "LN", "eps": 1e-6},
            "init_values": recipe.layer_scale,
        },
        "neck": {"type": "Feature2Pyramid", "embed_dim": width, "rescales": [4, 2, 1, 0.5], "norm_cfg": norm_cfg},
        "decode_head": {
            "type": "UPerHead",
            "in_channels": [width] * LEVELS,
            "in_index": list(range(LEVELS)),
            "pool_scales": (1, 2, 3, 6),
            "channels": recipe.channels or width,
            "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
            **head,
        },
        "auxiliary_head": {
            "type": "FCNHead",
            "in_channels": width,
            "in_index": LEVELS - 2,
            "channels": recipe.auxiliary_channels,
            "num_convs": 1,
            "concat_input": False,
            "loss_decode": {
                "type": "CrossEntropyLoss",
                "use_sigmoid": False,
                "loss_weight": recipe.auxiliary_weight,
            },
            **head,
        },
        "train_cfg": {},
        "test_cfg": {"mode": "slide", "crop_size": crop, "stride": (recipe.stride, recipe.stride)},
    }


def _train_pipeline(recipe: SegmentationRecipe, ignore: int) -> list[dict[str, Any]]:
    crop = (recipe.crop, recipe.crop)
    return [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {"type": "RandomResize", "scale": tuple(recipe.scale), "ratio_range": tuple(recipe.ratio), "keep_ratio": True},
        {
            "type": "RandomCrop",
            "crop_size": crop,
            "cat_max_ratio": recipe.cat_max_ratio,
            "ignore_index": ignore,
        },
        {"type": "RandomFlip", "prob": recipe.flip},
        *([{"type": "PhotoMetricDistortion"}] if recipe.photometric else []),
        {"type": "PackSegInputs"},
    ]


def _test_pipeline(recipe: SegmentationRecipe) -> list[dict[str, Any]]:
    return [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": tuple(recipe.scale), "keep_ratio": True},
        {"type": "LoadAnnotations"},  # after Resize: predictions are resized to the mask, not the mask
        {"type": "PackSegInputs"},
    ]


def _tta_pipeline(recipe: SegmentationRecipe) -> list[dict[str, Any]]:
    long, short = recipe.scale
    scales = [{"type": "Resize", "scale": (int(long * r), int(short * r)), "keep_ratio": True} for r in TTA_SCALES]
    flips = [{"type": "RandomFlip", "prob": p, "direction": "horizontal"} for p in (0.0, 1.0)]
    return [
        {"type": "LoadImageFromFile"},
        {
            "type": "TestTimeAug",
            "transforms": [scales, flips, [{"type": "LoadAnnotations"}], [{"type": "PackSegInputs"}]],
        },
    ]


def _dataset(recipe: SegmentationRecipe, scenes: SegmentationDataset, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "BaseSegDataset",
        "metainfo": {"classes": list(scenes.classes), "palette": [list(colour) for colour in scenes.palette]},
        "data_prefix": {"img_path": str(scenes.images), "seg_map_path": str(scenes.masks)},
        "img_suffix": scenes.image_suffix,
        "seg_map_suffix": scenes.mask_suffix,
        "reduce_zero_label": scenes.reduce_zero_label,
        "ignore_index": ignored(scenes),
        "pipeline": pipeline,
    }


def _val_dataloader(
    recipe: SegmentationRecipe, val: SegmentationDataset, pipeline: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "batch_size": 1,
        "num_workers": recipe.workers,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": _dataset(recipe, val, pipeline),
    }


def _schedule(recipe: SegmentationRecipe) -> Sequence[dict[str, Any]]:
    rise = {"type": "LinearLR", "start_factor": 1e-6, "by_epoch": False, "begin": 0, "end": recipe.warmup}
    fall = {
        "type": "PolyLR",
        "eta_min": 0.0,
        "power": recipe.power,
        "begin": recipe.warmup,
        "end": recipe.iterations,
        "by_epoch": False,
    }
    return [rise, fall] if recipe.warmup else [fall]
