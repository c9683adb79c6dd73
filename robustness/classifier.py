"""A classifier to be measured: a fine-tuning run's, one of timm's, or a checkpoint of a timm model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import VisionTransformer
from torch import Tensor, nn

from lutbench.data.tensors import Colour, normalised
from lutbench.errors import UserError
from lutbench.files import read_json
from lutbench.models.encoders import check_name
from lutbench.models.pretrained import check_pretrained, fit, pretrained_model
from lutbench.models.weights import read_weights, sha256_of
from lutbench.recipes.robustness import ClassifierSource
from lutbench.train.processes import accelerator
from robustness.labels import LabelSpace, imagenet_1k, label_space


@dataclass(frozen=True)
class Classifier:
    """A model in evaluation mode on this process's device, and what it needs to know of pixels and classes."""

    model: nn.Module
    side: int
    """Side of its input in pixels."""
    space: LabelSpace
    """Classes that its outputs stand for."""
    mean: Colour
    std: Colour

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits (B, C) of uint8 pixels (B, 3, S, S)."""
        logits: Tensor = self.model(normalised(pixels, mean=self.mean, std=self.std))
        return logits


def load_classifier(
    source: ClassifierSource, image_size: int | None = None, weights: Path | None = None, sha256: str | None = None
) -> Classifier:
    """Return the classifier of a source, for images of ``image_size`` if given. ``weights`` must have the hash ``sha256``.

    Raises:
        UserError: if the weights cannot be had, do not fit name by name and shape by shape, or it is not known what the
            outputs stand for.
    """
    if source.kind == "timm":
        return _of_timm(source.model, image_size)
    assert weights is not None
    tensors = read_weights(weights, sha256)
    metadata = _export_of(weights)
    if metadata is not None:
        return _exported(metadata, tensors, image_size, str(weights))
    return _of_checkpoint(source.model, tensors, image_size, str(weights))


def side_and_space(
    source: ClassifierSource, image_size: int | None, weights: Path | None = None
) -> tuple[int, LabelSpace]:
    """Side of the input and classes of a classifier of timm or of a checkpoint, without its weights.

    Raises:
        UserError: if timm has no such model, or no weights of it where they are asked for.
    """
    if source.kind == "timm":
        check_pretrained(source.model)
    else:
        check_name(source.model)
    metadata = None if weights is None else _export_of(weights)
    if metadata is not None:
        return image_size or metadata["arguments"]["img_size"], label_space(metadata["class_names"])
    return image_size or _side(source.model), imagenet_1k()


def _export_of(weights: Path) -> dict[str, Any] | None:
    """Return what stands beside weights that this suite exported (:func:`lutbench.models.encoders.export_encoder`)."""
    beside = weights.with_suffix(".json")
    metadata: dict[str, Any] = read_json(beside) if beside.is_file() else {}
    return metadata if metadata.get("sha256") == sha256_of(weights) else None


def _exported(metadata: dict[str, Any], tensors: dict[str, Tensor], image_size: int | None, where: str) -> Classifier:
    arguments = {**metadata["arguments"], "img_size": image_size or metadata["arguments"]["img_size"]}
    model = timm.create_model(metadata["model"], **arguments)
    assert isinstance(model, VisionTransformer)
    fit(model, tensors, where)
    space = label_space(metadata["class_names"])
    return _ready(model, arguments["img_size"], space, tuple(metadata["mean"]), tuple(metadata["std"]))


def _of_timm(name: str, image_size: int | None) -> Classifier:
    model, known = pretrained_model(name, **_sized(name, image_size)), _trained_on(name)
    return _of_imagenet(model, image_size or _side(name), int(known["num_classes"]), known["mean"], known["std"], name)


def _of_checkpoint(name: str, tensors: dict[str, Tensor], image_size: int | None, where: str) -> Classifier:
    """Return a checkpoint of a model of timm, such as a classifier that MAE's release fine-tuned: mean over patches, norm behind it.

    Its images are normalised as ImageNet's are, as in MAE, DeiT and here: a file of weights does not say.
    """
    outputs = next(
        (len(tensors[key]) for key in ("head.weight", "fc.weight", "classifier.weight") if key in tensors), 0
    )
    arguments = _sized(name, image_size)
    if "fc_norm.weight" in tensors and "norm.weight" not in tensors:
        arguments |= {"global_pool": "avg", "fc_norm": True}
    model = timm.create_model(name, num_classes=outputs, **arguments)
    if isinstance(model, VisionTransformer):
        fit(model, tensors, where)
    else:
        _load_strictly(model, tensors, where)
    side = image_size or _side(name)
    return _of_imagenet(model, side, outputs, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, where)


def _load_strictly(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{where}: the weights do not fit {type(model).__name__}: {' '.join(str(error).split())[:400]} "
            "Name the model that they belong to."
        ) from error


def _of_imagenet(model: nn.Module, side: int, outputs: int, mean: Colour, std: Colour, where: str) -> Classifier:
    if outputs != len(imagenet_1k().names):
        raise UserError(
            f"{where}: expected a classifier of ImageNet-1k's 1,000 classes, found {outputs:,} outputs, and nothing says "
            "which classes they are. Of other classifiers those can be measured that this suite fine-tuned: "
            "their export names its classes."
        )
    return _ready(model, side, imagenet_1k(), mean, std)


def _trained_on(name: str) -> dict[str, Any]:
    """Return how timm says that a model's images are prepared; empty for one that has no weights."""
    known = timm.get_pretrained_cfg(name)
    return dict(known.to_dict()) if known else {}


def _sized(name: str, image_size: int | None) -> dict[str, Any]:
    """Return the arguments that make a model for another size; one without position embeddings takes any as it is."""
    fixed = _trained_on(name).get("fixed_input_size", False)
    return {"img_size": image_size} if image_size and fixed else {}


def _side(name: str) -> int:
    return int(_trained_on(name).get("input_size", (3, 224, 224))[-1])


def _ready(model: nn.Module, side: int, space: LabelSpace, mean: Colour, std: Colour) -> Classifier:
    return Classifier(model.to(accelerator().device).eval(), side, space, tuple(mean), tuple(std))
