"""A recipe as a config of MMSegmentation: its names, its components, nothing of the suite in it."""

from typing import Any

from mmengine.config import Config

from lutbench.data.scenes import SegmentationDataset
from lutbench.errors import UserError
from lutbench.models.encoders import Geometry, geometry_of
from lutbench.models.preprocessing import IMAGENETS, Preprocessing
from lutbench.recipes.segmentation import SegmentationRecipe

TTA_SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
"""Scales of multi-scale testing, each also flipped (MMSegmentation's ADE20K config); none below the crop (BEiT's min_size)."""

LEVELS = 4
"""Levels of the pyramid: the maps of four blocks, enlarged 4, 2, 1 and 0.5 times."""

IGNORED = 255
"""The value that MMSegmentation gives a reduced zero."""


def mmseg_config(
    recipe: SegmentationRecipe,
    train: SegmentationDataset,
    val: SegmentationDataset,
    *,
    prepared: Preprocessing = IMAGENETS,
    processes: int = 1,
    norm: str = "SyncBN",
) -> Config:
    """Return the whole experiment: model, data, schedule and evaluation. ``norm`` is the norm of neck and heads.

    Pixels are normalised as the encoder is ``prepared`` for.

    Raises:
        UserError: if sizes do not go together, see :func:`check_segmentation`.
    """
    geometry = check_segmentation(recipe, processes)
    return Config(
        {
            "default_scope": "mmseg",
            "model": _model(recipe, geometry, len(train.classes), ignored(train), norm, prepared),
            **_data(recipe, train, val, recipe.batch // processes),
            **_training(recipe, geometry.depth),
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


def backbone_settings(recipe: SegmentationRecipe, geometry: Geometry) -> dict[str, Any]:
    """Return the arguments of MMSegmentation's MAE backbone for an encoder of this geometry."""
    return {
        "img_size": (recipe.crop, recipe.crop),
        "patch_size": geometry.patch_size,
        "embed_dims": geometry.width,
        "num_layers": geometry.depth,
        "num_heads": geometry.heads,
        "mlp_ratio": 4,
        "out_indices": blocks_of(recipe, geometry.depth),
        "drop_path_rate": recipe.drop_path,
        "norm_cfg": {"type": "LN", "eps": 1e-6},
        "init_values": recipe.layer_scale,
    }


def ignored(scenes: SegmentationDataset) -> int:
    """Return the value that counts neither in training nor in evaluation, as MMSegmentation sees masks."""
    return IGNORED if scenes.reduce_zero_label else scenes.ignore


def _model(
    recipe: SegmentationRecipe, geometry: Geometry, classes: int, ignore: int, norm: str, prepared: Preprocessing
) -> dict[str, Any]:
    """Return the model of MMSegmentation's config: the encoder, four maps of it, UPerNet, and an auxiliary head."""
    width, crop = geometry.width, (recipe.crop, recipe.crop)
    norm_cfg = {"type": norm, "requires_grad": True}

    def head(kind: str, loss_weight: float, **settings: Any) -> dict[str, Any]:
        """Return a head of type ``kind``: what both have in common, and the settings of its own."""
        return {
            "type": kind,
            **settings,
            "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": loss_weight},
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
            "mean": [round(255 * value, 6) for value in prepared.mean],  # of pixels from 0 to 255
            "std": [round(255 * value, 6) for value in prepared.std],
            "bgr_to_rgb": True,
            "pad_val": 0,
            "seg_pad_val": ignore,
            "size": crop,
            "test_cfg": {"size": crop},  # an image smaller than the window is padded; others stay as they are
        },
        "backbone": {"type": "MAE", **backbone_settings(recipe, geometry)},
        "neck": {"type": "Feature2Pyramid", "embed_dim": width, "rescales": [4, 2, 1, 0.5], "norm_cfg": norm_cfg},
        "decode_head": head(
            "UPerHead",
            1.0,
            in_channels=[width] * LEVELS,
            in_index=list(range(LEVELS)),
            pool_scales=(1, 2, 3, 6),
            channels=recipe.channels or width,
        ),
        "auxiliary_head": head(
            "FCNHead",
            recipe.auxiliary_weight,
            in_channels=width,
            in_index=LEVELS - 2,
            channels=recipe.auxiliary_channels,
            num_convs=1,
            concat_input=False,
        ),
        "train_cfg": {},
        "test_cfg": {"mode": "slide", "crop_size": crop, "stride": (recipe.stride, recipe.stride)},
    }


def _data(
    recipe: SegmentationRecipe, train: SegmentationDataset, val: SegmentationDataset, batch: int
) -> dict[str, Any]:
    """Return loaders, pipelines and evaluators; validation and test are the same."""
    load, annotations, pack = ({"type": name} for name in ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs"))
    (long, short), crop = recipe.scale, (recipe.crop, recipe.crop)
    train_pipeline: list[dict[str, Any]] = [
        load,
        annotations,
        {"type": "RandomResize", "scale": (long, short), "ratio_range": tuple(recipe.ratio), "keep_ratio": True},
        {
            "type": "RandomCrop",
            "crop_size": crop,
            "cat_max_ratio": recipe.cat_max_ratio,
            "ignore_index": ignored(train),
        },
        {"type": "RandomFlip", "prob": recipe.flip},
        *([{"type": "PhotoMetricDistortion"}] if recipe.photometric else []),
        pack,
    ]
    resize: dict[str, Any] = {"type": "Resize", "scale": (long, short), "keep_ratio": True}
    test_pipeline = [load, resize, annotations, pack]  # predictions are resized to the mask, not the mask
    ratios = [max(scale, recipe.crop / short) for scale in TTA_SCALES]
    scales = [{**resize, "scale": (int(long * r), int(short * r + 1e-6))} for r in ratios]
    flips = [{"type": "RandomFlip", "prob": p, "direction": "horizontal"} for p in (0.0, 1.0)]
    test_dataloader = {
        "batch_size": 1,
        "num_workers": recipe.workers,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": _dataset(val, test_pipeline),
    }
    evaluator = {"type": "IoUMetric", "iou_metrics": ["mIoU"], "ignore_index": ignored(val)}
    return {
        "train_dataloader": {
            "batch_size": batch,
            "num_workers": recipe.workers,
            "sampler": {"type": "InfiniteSampler", "shuffle": True},
            "dataset": _dataset(train, train_pipeline),
        },
        "val_dataloader": test_dataloader,
        "test_dataloader": test_dataloader,
        "val_evaluator": evaluator,
        "test_evaluator": evaluator,
        "train_pipeline": train_pipeline,
        "test_pipeline": test_pipeline,
        "tta_model": {"type": "SegTTAModel"},
        "tta_pipeline": [load, {"type": "TestTimeAug", "transforms": [scales, flips, [annotations], [pack]]}],
    }


def _dataset(scenes: SegmentationDataset, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "BaseSegDataset" if isinstance(scenes.image_suffix, str) else "SeveralSuffixes",
        "metainfo": {"classes": list(scenes.classes), "palette": [list(colour) for colour in scenes.palette]},
        "data_prefix": {"img_path": str(scenes.images), "seg_map_path": str(scenes.masks)},
        "img_suffix": scenes.image_suffix,
        "seg_map_suffix": scenes.mask_suffix,
        "reduce_zero_label": scenes.reduce_zero_label,
        "ignore_index": ignored(scenes),
        "pipeline": pipeline,
    }


def _training(recipe: SegmentationRecipe, depth: int) -> dict[str, Any]:
    """Return loops, optimiser, schedule and hooks."""
    rise = {"type": "LinearLR", "start_factor": 1e-6, "by_epoch": False, "begin": 0, "end": recipe.warmup}
    fall = {
        "type": "PolyLR",
        "eta_min": 0.0,
        "power": recipe.power,
        "begin": recipe.warmup,
        "end": recipe.iterations,
        "by_epoch": False,
    }
    return {
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
            "paramwise_cfg": {"num_layers": depth, "decay_rate": recipe.layer_decay, "decay_type": "layer_wise"},
        },
        "param_scheduler": [rise, fall] if recipe.warmup else [fall],
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
    }
