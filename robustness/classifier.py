"""Load the classifier to evaluate: of a fine-tuning, a linear probe with its encoder, timm, or a checkpoint of a timm model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.models import VisionTransformer
from torch import Tensor, nn

from lutbench.data.tensors import normalised
from lutbench.errors import UserError
from lutbench.evaluate.inference import float32_head
from lutbench.models.blocks import probe_features, probe_width
from lutbench.models.encoders import create_encoder
from lutbench.models.export import Export, export_of
from lutbench.models.fitting import misfits
from lutbench.models.meta import shapes_only
from lutbench.models.preprocessing import Preprocessing, preprocessing_of
from lutbench.models.pretrained import check_pretrained, encoder_of, fit, pretrained_model
from lutbench.models.probes import linear_probe
from lutbench.models.timm_models import check_name
from lutbench.models.weight_files import sha256_of
from lutbench.models.weights import (
    check_kinds,
    pooled_norm,
    read_shapes,
    read_weights,
    unwrapped,
    without_prefix,
)
from lutbench.recipes.probes import LinearRecipe
from lutbench.recipes.robustness import ClassifierSource
from lutbench.run import Run
from lutbench.train.processes import accelerator
from robustness.labels import LabelSpace, imagenet_1k, label_space


@dataclass(frozen=True)
class Classifier:
    """A model in evaluation mode on this process's device, with its preprocessing and classes."""

    model: nn.Module
    side: int
    """Side of its input in pixels."""
    space: LabelSpace
    """Classes that its outputs stand for."""
    prepared: Preprocessing
    """How images were prepared that it was trained on."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits (B, C), float32, of uint8 pixels (B, 3, S, S)."""
        with float32_head(self.model):
            logits: Tensor = self.model(normalised(pixels, mean=self.prepared.mean, std=self.prepared.std))
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
        model, where = pretrained_model(source.model, **size_argument(source.model, image_size)), source.model
    else:
        assert weights is not None
        where = str(weights)
        model = _model_with(read_weights(weights, sha256), source, image_size, weights, export_of(weights))
    side, space = _side_and_space(model, where, source, image_size, export_of(weights) if weights else None)
    return Classifier(model.to(accelerator().device).eval(), side, space, preprocessing_of(source, weights))


class ProbedEncoder(nn.Module):
    """A frozen encoder with the layer of its linear probe behind the features."""

    def __init__(self, encoder: nn.Module, head: nn.Sequential, taken: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder, self.head, self.taken = encoder, head, taken

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (B, C) of normalised images (B, 3, S, S)."""
        scores: Tensor = self.head(self.taken(self.encoder, images))
        return scores

    def get_classifier(self) -> nn.Module:
        """Return the linear layer, as models of timm do."""
        return self.head[1]


def load_probe(run: Run[LinearRecipe], image_size: int | None, weights: Path, sha256: str | None) -> Classifier:
    """Return the encoder that a finished linear probe started from with the layer of ``weights``, for images as the probe saw them.

    Raises:
        UserError: if weights of either are missing or damaged, or the probe's training set, which names the classes, is absent.
    """
    recipe = run.recipe
    side, space = image_size or recipe.side, label_space(run.workspace.open(recipe.dataset, "train").classes)
    taken = partial(probe_features, pool=recipe.pooling, blocks=recipe.blocks_taken)
    width = probe_width(recipe.encoder.architecture, side, recipe.pooling, recipe.blocks_taken)
    head = linear_probe(width, len(space.names))
    _load_strictly(head, read_weights(weights, sha256), str(weights))
    model = ProbedEncoder(encoder_of(run, side), head, taken)
    return Classifier(model.to(accelerator().device).eval(), side, space, run.preprocessing)


def check_classifier(
    source: ClassifierSource,
    image_size: int | None,
    weights: Path | None = None,
    hash_of: Callable[[Path], str] = sha256_of,
) -> tuple[int, LabelSpace]:
    """Return the side of the input and the classes of a classifier of timm or of the user's checkpoint, by names and shapes alone.

    ``hash_of`` returns the sha256 of that file.

    Raises:
        UserError: as :func:`load_classifier`, but for what only the values tell.
    """
    with shapes_only():
        if weights is None:
            check_pretrained(source.model)
            model = timm.create_model(source.model, **size_argument(source.model, image_size))
        else:
            check_name(source.model)
            tensors = unwrapped(read_shapes(weights))
            check_kinds(tensors, str(weights))
            model = _model_with(tensors, source, image_size, weights, export_of(weights, hash_of))
    export = export_of(weights, hash_of) if weights else None
    return _side_and_space(model, str(weights or source.model), source, image_size, export)


def size_argument(name: str, image_size: int | None) -> dict[str, Any]:
    """Return the argument that makes a model of timm for another size; one without position embeddings takes any as it is."""
    fixed = _trained_on(name).get("fixed_input_size", False)
    return {"img_size": image_size} if image_size and fixed else {}


def _side_and_space(
    model: Any, where: str, source: ClassifierSource, image_size: int | None, export: Export | None
) -> tuple[int, LabelSpace]:
    if export:
        return image_size or export.side, label_space(export.class_names)
    if model.num_classes != len(imagenet_1k().names):
        raise UserError(
            f"{where}: expected a classifier for the 1,000 classes of ImageNet-1k, found {model.num_classes:,} outputs with unknown "
            "classes. Other classifiers can be evaluated only if this suite fine-tuned them, because their export "
            "contains the class names."
        )
    return image_size or int(_trained_on(source.model).get("input_size", (3, 224, 224))[-1]), imagenet_1k()


def _model_with(
    tensors: Mapping[str, Tensor],
    source: ClassifierSource,
    image_size: int | None,
    weights: Path,
    export: Export | None,
) -> nn.Module:
    """Return the model of a file of ``weights``, as its ``export`` says or as timm names it, with its ``tensors``."""
    tensors = without_prefix(tensors)
    if export:
        if not export.class_names:
            raise UserError(f"{weights}: expected a classifier, found an exported encoder, which has no classes.")
        pools, classes = export.arguments.fc_norm or None, len(export.class_names)
        model: nn.Module = create_encoder(export.recipe, image_size, classes=classes, pooled_norm=pools)
    elif source.kind == "run":
        raise UserError(
            f"{weights.with_suffix('.json')}: missing, or not written by a fine-tuning. Restore it from a copy, or repeat "
            "that run (--again)."
        )
    else:
        model = _model_of(source.model, image_size, tensors)
    if export or isinstance(model, VisionTransformer):
        fit(model, tensors, str(weights))
    else:
        _load_strictly(model, tensors, str(weights))
    return model


def _model_of(name: str, image_size: int | None, tensors: dict[str, Tensor]) -> nn.Module:
    """Return a model of timm with the outputs of a checkpoint, and with its pooling.

    A classifier that MAE's release fine-tuned takes the mean over patches, with the norm behind it.
    """
    heads = (tensors[key] for key in ("head.weight", "fc.weight", "classifier.weight") if key in tensors)
    pooling: dict[str, Any] = {"global_pool": "avg", "fc_norm": True} if pooled_norm(tensors) else {}
    return timm.create_model(name, num_classes=len(next(heads, ())), **size_argument(name, image_size), **pooling)


def _load_strictly(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    if problems := misfits(model.state_dict(), tensors, "model"):
        raise UserError(
            f"{where}: the weights do not fit {type(model).__name__}. {problems}. Set model to the one that the weights belong to."
        )
    model.load_state_dict(tensors)


def _trained_on(name: str) -> dict[str, Any]:
    """Return how timm says that a model's images are prepared; empty for one that has no weights."""
    known = timm.get_pretrained_cfg(name)
    return dict(known.to_dict()) if known else {}
