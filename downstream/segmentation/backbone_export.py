"""A pre-trained encoder as the backbone of anybody's own configs of MMSegmentation: its weights, and the lines that name them."""

import importlib.util
import io
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import torch
from timm.models import VisionTransformer

from lutbench.errors import UserError
from lutbench.models.encoders import geometry_of
from lutbench.models.export import Export

CONFIG, WEIGHTS = "backbone.py", "backbone.pth"

BESIDE = "{{ fileDirname }}"
"""What MMEngine puts the folder of a config in place of, wherever that is moved."""


def write_backbone(encoder: VisionTransformer, description: Export, folder: Path) -> None:
    """Write ``backbone.py``, a config to be a ``_base_``, and the ``backbone.pth`` that it loads, into ``folder``.

    The backbone has the suite's own settings for segmentation, at the size of the encoder's input: position embeddings are
    resized by MMSegmentation for another. Its last norm, which a pyramid does not read, and heads are left out.

    Raises:
        UserError: if MMSegmentation is not installed, or the encoder does not fit its MAE backbone.
    """
    if importlib.util.find_spec("mmseg") is None:
        raise UserError(
            "Exporting a backbone needs MMSegmentation, but mmseg is not installed. Install it: "
            'python -m pip install -c constraints.txt -e ".[segmentation]".'
        )
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # they print what optional packages they miss
        warnings.simplefilter("ignore", UserWarning)  # of torch and OpenMMLab's packages about each other
        from mmengine.config import Config
        from mmseg.models.backbones import MAE

        from downstream.segmentation.backbone import converted, load_backbone, mae_settings
        from downstream.segmentation.pyramid import LEVELS, blocks_of

    geometry = geometry_of(description.recipe)
    if geometry.depth < LEVELS:
        raise UserError(
            f"A backbone needs at least {LEVELS} blocks for the feature pyramid, but the encoder has {geometry.depth}. Export an "
            "encoder with more blocks."
        )
    settings = mae_settings(description.recipe, description.side, blocks_of(None, geometry.depth), drop_path=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        load_backbone(MAE(**settings), encoder)  # strictly, which MMSegmentation itself is not
    mean, std = ([round(255 * value, 6) for value in values] for values in (description.mean, description.std))
    config = {
        "model": {
            "data_preprocessor": {"type": "SegDataPreProcessor", "mean": mean, "std": std, "bgr_to_rgb": True},
            "backbone": {
                "type": "MAE",
                **settings,
                "init_cfg": {"type": "Pretrained", "checkpoint": f"{BESIDE}/{WEIGHTS}"},
            },
        }
    }
    (folder / CONFIG).write_text(Config(config).pretty_text, encoding="utf-8")
    torch.save({"state_dict": converted(encoder.state_dict())}, folder / WEIGHTS)
