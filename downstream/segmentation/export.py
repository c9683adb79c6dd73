"""A segmenter as MMSegmentation takes it: a config and a checkpoint that ``init_model`` loads anywhere."""

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from lutbench.errors import UserError
from lutbench.files import read_json, whole_file
from lutbench.models.weights import read_weights, save_weights

CONFIG, WEIGHTS = "segmenter.py", "segmenter.safetensors"


def keep_segmenter(model: nn.Module, cfg: Config, folder: Path) -> str:
    """Write ``segmenter.py`` and ``segmenter.safetensors``; return the latter's sha256.

    Raises:
        UserError: if a weight is not finite, or on a full disk.
    """
    with whole_file(folder / CONFIG) as partial:
        partial.write_text(cfg.pretty_text, encoding="utf-8")
    return save_weights(model.state_dict(), folder / WEIGHTS)


def export_mmseg(folder: Path, target: Path) -> tuple[Path, Path]:
    """Write the segmenter of a finished run as ``config.py`` and ``checkpoint.pth`` into ``target``; return both paths.

    ``mmseg.apis.init_model(config, checkpoint)`` loads them strictly, and knows the classes and their colours.

    Raises:
        UserError: if the run in ``folder`` has no segmenter, its weights are not those of its record, or ``target``
            cannot be written.
    """
    if not (folder / CONFIG).is_file() or not (folder / "finished.json").is_file():
        raise UserError(
            f"{folder}: expected the folder of a finished segmentation run, with {CONFIG} in it. `lutbench status SUITE` "
            "says where finished runs lie."
        )
    tensors = read_weights(folder / WEIGHTS, read_json(folder / "finished.json")["checkpoint"])
    text = (folder / CONFIG).read_text(encoding="utf-8")
    cfg = Config.fromstring(text, ".py")
    metainfo: dict[str, Any] = cfg.test_dataloader.dataset.metainfo
    meta = {"classes": list(metainfo["classes"]), "palette": [list(colour) for colour in metainfo["palette"]]}
    try:
        target.mkdir(parents=True, exist_ok=True)
        config, checkpoint = target / "config.py", target / "checkpoint.pth"
        with whole_file(config) as partial:
            partial.write_text(text, encoding="utf-8")
        with whole_file(checkpoint) as partial:
            torch.save({"state_dict": tensors, "meta": {"dataset_meta": meta}}, partial)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}. Give another folder.") from error
    return config, checkpoint
