"""A segmenter as MMSegmentation takes it: a config and a checkpoint that ``init_model`` loads anywhere.

MMSegmentation's configs are Python, which it executes. A run's config is read here as data: nothing in it is executed.
"""

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from lutbench.errors import UserError
from lutbench.files import check_plain, whole_file
from lutbench.models.weight_files import sha256_of
from lutbench.models.weights import read_weights, save_weights
from lutbench.recipes.segmentation import Grey
from lutbench.run_files import FINISHED, read_finished

if TYPE_CHECKING:
    from mmengine.config import Config

CONFIG, WEIGHTS = "segmenter.py", "segmenter.safetensors"

NEEDS_SUITE = "# The backbone is a timm model, which lutbench adds to MMSegmentation: install lutbench where you load this config.\n"
"""What the config of a segmenter begins with that MMSegmentation has no backbone for."""


class Metainfo(BaseModel):
    """The classes of a dataset, and their colours."""

    model_config = ConfigDict(extra="ignore", strict=True)

    classes: list[str]
    palette: list[list[Grey]]


def keep_segmenter(model: nn.Module, cfg: "Config", folder: Path) -> str:
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
        UserError: if the run in ``folder`` has no segmenter, its weights or its config are not those that it left, or
            ``target`` cannot be written.
    """
    if not (folder / CONFIG).is_file() or not (folder / FINISHED).is_file():
        raise UserError(
            f"{folder}: expected the folder of a finished segmentation run, with {CONFIG} in it. `lutbench status SUITE` "
            "shows finished runs."
        )
    finished = read_finished(folder)
    if finished.checkpoint is None:
        raise UserError(
            f"{folder / FINISHED}: expected the weights of a segmentation among the files of the run, found none. Run it again."
        )
    # A run of before configs were sealed has no hash of its config: that it holds nothing but data must do.
    if finished.files.get(CONFIG, found := sha256_of(folder / CONFIG)) != found:
        raise UserError(
            f"{folder / CONFIG}: damaged or changed since the run. Restore it from a copy, or run it again."
        )
    text = (folder / CONFIG).read_text(encoding="utf-8")
    meta = _metainfo(text, folder / CONFIG)
    tensors = read_weights(folder / WEIGHTS, finished.checkpoint)
    try:
        target.mkdir(parents=True, exist_ok=True)
        config, checkpoint = target / "config.py", target / "checkpoint.pth"
        with whole_file(config) as partial:
            partial.write_text((NEEDS_SUITE if "custom_imports" in _settings(text) else "") + text, encoding="utf-8")
        with whole_file(checkpoint) as partial:
            torch.save({"state_dict": tensors, "meta": {"dataset_meta": meta.model_dump()}}, partial)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}. Use another folder.") from error
    return config, checkpoint


def _metainfo(text: str, path: Path) -> Metainfo:
    """Return the classes and colours of a config that is nothing but data.

    Raises:
        UserError: if it is anything else.
    """
    try:
        found = _settings(text)["test_dataloader"]["dataset"]["metainfo"]
        check_plain(found)
        return Metainfo.model_validate(found)
    except (SyntaxError, ValueError, LookupError, TypeError, RecursionError, MemoryError) as error:
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(
            f"{path}: expected a config of MMSegmentation with only values in it, found other content ({told}). "
            "It was damaged or changed: restore it from a copy, or run it again."
        ) from error


def _settings(text: str) -> dict[str, Any]:
    """Return the settings of a config of lines ``NAME = VALUE``; raises ValueError for any other Python."""
    settings = {}
    for line in ast.parse(text).body:
        if not isinstance(line, ast.Assign) or not isinstance(line.targets[0], ast.Name) or len(line.targets) > 1:
            raise ValueError(f"line {line.lineno} is not a setting")
        settings[line.targets[0].id] = _value(line.value)
    return settings


def _value(node: ast.expr) -> Any:
    """Return a value of literals, lists, tuples and ``dict(NAME=VALUE)``."""
    match node:
        case ast.List(elts=parts):
            return [_value(part) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(_value(part) for part in parts)
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=named) if all(one.arg for one in named):
            return {one.arg: _value(one.value) for one in named}
    return ast.literal_eval(node)
