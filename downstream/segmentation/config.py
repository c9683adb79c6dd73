"""A recipe as a config of MMSegmentation: its names, its components; of the suite only backbones that it has not."""

from typing import Any

from mmengine.config import Config

from downstream.segmentation.backbone import is_mae, mae_settings
from downstream.segmentation.pyramid import LEVELS, Pyramid, check_segmentation, maps_arguments
from downstream.segmentation.timm_backbone import TimmLayerDecay, TimmMaps
from lutbench.data.scenes import SegmentationDataset
from lutbench.errors import UserError
from lutbench.models.preprocessing import IMAGENETS, Preprocessing
from lutbench.recipes.segmentation import CropsRecipe, SegmentationRecipe, WindowsRecipe

TTA_SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
"""Scales of multi-scale testing, each also flipped (MMSegmentation's ADE20K config); none below the crop (BEiT's min_size)."""

LOAD, ANNOTATIONS, PACK = ({"type": name} for name in ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs"))

Step = dict[str, Any]
"""A step of a pipeline of MMSegmentation."""

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
    pyramid = check_segmentation(recipe, processes)
    backbone = backbone_config(recipe, pyramid)
    own = {"custom_imports": {"imports": [TimmMaps.__module__], "allow_failed_imports": False}}
    return Config(
        {
            **(own if backbone["type"] == TimmMaps.__name__ else {}),
            "default_scope": "mmseg",
            "model": _model(recipe, pyramid, backbone, len(train.classes), ignored(train), norm, prepared),
            **_data(recipe, train, val, recipe.batch // processes),
            **_training(recipe, pyramid.depth, backbone),
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


def backbone_config(recipe: SegmentationRecipe, pyramid: Pyramid) -> dict[str, Any]:
    """Return the backbone of MMSegmentation's config: its own MAE where that computes what the encoder does, else the suite's.

    Raises:
        UserError: if the recipe has a LayerScale that only MMSegmentation's backbone adds.
    """
    architecture = recipe.encoder.architecture
    if is_mae(architecture, recipe.crop):
        settings = mae_settings(architecture, recipe.crop, pyramid.indices, recipe.drop_path, recipe.layer_scale)
        return {"type": "MAE", **settings}
    if recipe.layer_scale != 1:
        raise UserError(
            f"layer_scale = {recipe.layer_scale:g}: only for MMSegmentation's MAE backbone, but {architecture.model} uses this suite's "
            "backbone. Remove layer_scale."
        )
    arguments = maps_arguments(architecture, recipe.crop, recipe.drop_path)
    return {
        "type": TimmMaps.__name__,
        "model": architecture.model,
        "arguments": arguments,
        "out_indices": pyramid.indices,
    }


def ignored(scenes: SegmentationDataset) -> int:
    """Return the value that counts neither in training nor in evaluation, as MMSegmentation sees masks."""
    return IGNORED if scenes.reduce_zero_label else scenes.ignore


def _model(
    recipe: SegmentationRecipe,
    pyramid: Pyramid,
    backbone: dict[str, Any],
    classes: int,
    ignore: int,
    norm: str,
    prepared: Preprocessing,
) -> dict[str, Any]:
    """Return the model of MMSegmentation's config: the encoder, four maps of it, UPerNet, and an auxiliary head."""
    widths, crop = pyramid.widths, (recipe.crop, recipe.crop)
    norm_cfg = {"type": norm, "requires_grad": True}
    neck = {"type": "Feature2Pyramid", "embed_dim": widths[0], "rescales": [4, 2, 1, 0.5], "norm_cfg": norm_cfg}

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
        "data_preprocessor": _preprocessor(prepared, crop, ignore),
        "backbone": backbone,
        **({} if pyramid.hierarchical else {"neck": neck}),
        "decode_head": head(
            "UPerHead",
            1.0,
            in_channels=widths,
            in_index=list(range(LEVELS)),
            pool_scales=(1, 2, 3, 6),
            channels=recipe.channels or pyramid.channels,
        ),
        "auxiliary_head": head(
            "FCNHead",
            recipe.auxiliary_weight,
            in_channels=widths[LEVELS - 2],
            in_index=LEVELS - 2,
            channels=recipe.auxiliary_channels,
            num_convs=1,
            concat_input=False,
        ),
        "train_cfg": {},
        "test_cfg": {"mode": "slide", "crop_size": crop, "stride": (recipe.stride, recipe.stride)},
    }


def _preprocessor(prepared: Preprocessing, crop: tuple[int, int], ignore: int) -> dict[str, Any]:
    return {
        "type": "SegDataPreProcessor",
        "mean": [round(255 * value, 6) for value in prepared.mean],  # of pixels from 0 to 255
        "std": [round(255 * value, 6) for value in prepared.std],
        "bgr_to_rgb": True,
        "pad_val": 0,
        "seg_pad_val": ignore,
        "size": crop,
        "test_cfg": {"size": crop},  # an image smaller than the window is padded; others stay as they are
    }


def _data(
    recipe: SegmentationRecipe, train: SegmentationDataset, val: SegmentationDataset, batch: int
) -> dict[str, Any]:
    """Return loaders, pipelines and evaluators; validation and test are the same."""
    (long, short), resize = recipe.scale, resized(recipe)
    train_pipeline, test_pipeline = crops(recipe, train), whole(recipe)
    ratios = [max(scale, recipe.crop / short) for scale in TTA_SCALES]
    scales = [{**resize, "scale": (int(long * r), int(short * r + 1e-6))} for r in ratios]
    flips = [{"type": "RandomFlip", "prob": p, "direction": "horizontal"} for p in (0.0, 1.0)]
    test_dataloader = {
        "batch_size": 1,
        "num_workers": recipe.workers,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": dataset_config(val, test_pipeline),
    }
    evaluator = {"type": "IoUMetric", "iou_metrics": ["mIoU"], "ignore_index": ignored(val)}
    return {
        "train_dataloader": {
            "batch_size": batch,
            "num_workers": recipe.workers,
            "sampler": {"type": "InfiniteSampler", "shuffle": True},
            "dataset": dataset_config(train, train_pipeline),
        },
        "val_dataloader": test_dataloader,
        "test_dataloader": test_dataloader,
        "val_evaluator": evaluator,
        "test_evaluator": evaluator,
        "train_pipeline": train_pipeline,
        "test_pipeline": test_pipeline,
        "tta_model": {"type": "SegTTAModel"},
        "tta_pipeline": [LOAD, {"type": "TestTimeAug", "transforms": [scales, flips, [ANNOTATIONS], [PACK]]}],
    }


def crops(recipe: CropsRecipe, train: SegmentationDataset) -> list[Step]:
    """Return the pipeline of training: random crops of images and masks that are resized at random."""
    return [
        LOAD,
        ANNOTATIONS,
        {
            "type": "RandomResize",
            "scale": tuple(recipe.scale),
            "ratio_range": tuple(recipe.ratio),
            "keep_ratio": True,
        },
        {
            "type": "RandomCrop",
            "crop_size": (recipe.crop, recipe.crop),
            "cat_max_ratio": recipe.cat_max_ratio,
            "ignore_index": ignored(train),
        },
        {"type": "RandomFlip", "prob": recipe.flip},
        *([{"type": "PhotoMetricDistortion"}] if recipe.photometric else []),
        PACK,
    ]


def whole(recipe: WindowsRecipe) -> list[Step]:
    """Return the pipeline of evaluation: predictions are resized to the mask, not the mask."""
    return [LOAD, resized(recipe), ANNOTATIONS, PACK]


def whole_with_mask(recipe: WindowsRecipe) -> list[Step]:
    """Return the pipeline that resizes the mask with the image, for patches that have a label each."""
    return [LOAD, ANNOTATIONS, resized(recipe), PACK]


def resized(recipe: WindowsRecipe) -> Step:
    """Return the step that resizes an image whole."""
    return {"type": "Resize", "scale": tuple(recipe.scale), "keep_ratio": True}


def dataset_config(scenes: SegmentationDataset, pipeline: list[Step]) -> dict[str, Any]:
    """Return MMSegmentation's dataset of ``scenes`` behind a ``pipeline``."""
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


def _training(recipe: SegmentationRecipe, depth: int, backbone: dict[str, Any]) -> dict[str, Any]:
    """Return loops, optimiser, schedule and hooks."""
    constructor = {
        "constructor": "LearningRateDecayOptimizerConstructor",
        "paramwise_cfg": {"num_layers": depth, "decay_rate": recipe.layer_decay, "decay_type": "layer_wise"},
    }
    if backbone["type"] == TimmMaps.__name__:
        constructor = {"constructor": TimmLayerDecay.__name__, "paramwise_cfg": {"decay_rate": recipe.layer_decay}}
    # LinearLR is at its end in its last iteration: of one alone it would keep its beginning.
    top = max(2, recipe.warmup)
    rise = {"type": "LinearLR", "start_factor": 1e-6, "by_epoch": False, "begin": 0, "end": top}
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
            **constructor,
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
