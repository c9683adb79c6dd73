"""The preprocessing of images that weights were trained with, which a model needs in evaluation too."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lutbench.models.export import export_of
from lutbench.models.processors import described
from lutbench.models.weight_files import IN_FOLDERS, PICKLES, sha256_of
from lutbench.recipes.base import RunRecipe, WeightsSource
from lutbench.recipes.robustness import ClassifierSource

Colour = tuple[float, ...]
"""One value per channel, between 0 and 1."""

IMAGENETS_MEAN, IMAGENETS_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels, as timm and torchvision have them."""


class Preprocessing(NamedTuple):
    """Preprocessing of images for a model. Defaults are those of ImageNet, as in LUT, MAE and DeiT."""

    mean: Colour = IMAGENETS_MEAN
    std: Colour = IMAGENETS_STD
    interpolation: str = "bicubic"
    """Interpolation for resizing, by timm's name."""
    crop_pct: float | None = None
    """Side of the evaluation crop divided by the resized short side; None if unknown, then the task's own is used."""

    crop_mode: str = "center"
    """timm's crop mode: ``center``, ``squash`` (both sides resized) or ``border`` (long side resized, then padded)."""
    origin: str = "ImageNet's (the default)"
    """Where these values come from, for messages."""

    def unlike_imagenets(self, names: Iterable[str]) -> dict[str, Any]:
        """Return those of the fields ``names`` that differ from ImageNet's, as plain JSON values."""
        differing = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(IMAGENETS, name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in differing.items()}

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        own = "" if "crop_pct" in self.origin else " unless the task sets eval_crop"
        crop = f", cropped to {self.crop_pct:g} of the resized side{own}" if self.crop_pct else ""
        mode = (
            ""
            if self.crop_mode == "center"
            else f" (timm's crop_mode = {self.crop_mode!r} is used only for classifiers)"
        )
        return f"normalised with mean ({mean}) and std ({std}), resized with {self.interpolation} interpolation{crop}{mode}: {self.origin}"


IMAGENETS = Preprocessing()


def preprocessing_for(
    recipe: RunRecipe, weights: Path | None, hash_of: Callable[[Path], str] = sha256_of
) -> Preprocessing:
    """Return the preprocessing of a run for the weights that it starts from; ImageNet's if it starts from none.

    Tasks with centre crops use their ``eval_crop`` for all encoders. A ``crop_pct`` in a method's table overrides it. Unless the task's
    table gives ``eval_crop``, a ``crop_pct`` in the file beside the weights, or timm's for its own weights, is used instead.
    ``hash_of`` returns the sha256 of a file.
    """
    source = recipe.source
    if source is None:
        return IMAGENETS
    known = preprocessing_of(source, weights, hash_of)
    return known._replace(crop_pct=recipe.crop_for(known.crop_pct))


def preprocessing_of(
    source: WeightsSource, weights: Path | None, hash_of: Callable[[Path], str] = sha256_of
) -> Preprocessing:
    """Return the preprocessing that the weights of a source were trained with; ``weights`` is their file or folder, if any.

    ``hash_of`` returns the sha256 of a file.

    Settings in the suite file have priority; then the export that this suite wrote beside the weights; then the configuration of Hugging
    Face or timm beside them; then, for timm's weights and for classifiers in a file, timm's values for the model. Everything else is
    ImageNet's: for encoders in files, whose model name tells only the architecture, and for classifiers fine-tuned by MAE's release.

    Raises:
        UserError: if the file beside the weights is damaged, belongs to other weights, or has unsupported values.
    """
    is_classifier = isinstance(source, ClassifierSource)
    of_run = source.export_name if source.kind == "run" else ""
    if source.kind == "timm":
        known = _timms(source.timm_model)
    elif weights is None or of_run.startswith(("encoder", "teacher")):
        known = IMAGENETS  # drawn or pre-trained here
    elif weights.is_file() and (export := export_of(weights, hash_of)):
        known = Preprocessing(
            tuple(export.mean), tuple(export.std), export.interpolation, export.crop_pct,
            origin=f"from {weights.with_suffix('.json').name} beside the weights",
        )  # fmt: skip
    elif found := described(weights):
        values, path = found
        known = Preprocessing(**values, origin=f"from {path.name} beside the weights{_or_of_others(weights)}")
        known = known._replace(mean=tuple(known.mean), std=tuple(known.std))
    elif is_classifier:
        known = _timms(source.timm_model)
        if known[:-1] != IMAGENETS[:-1] and _pooled_as_mae(source.timm_model, weights):
            known = Preprocessing(origin="ImageNet's, because the weights pool like those fine-tuned by MAE's release")
    else:
        known = IMAGENETS
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in source.preprocessing().items()
    }
    origin = f"{', '.join(given)} from the suite file, everything else {known.origin}"
    return known._replace(**given, origin=origin) if given else known


def _or_of_others(weights: Path) -> str:
    """Return that a folder's file may be about others of the weights in it; empty if there are none, or they are one model's."""
    if weights.is_dir() or weights.name in IN_FOLDERS:
        return ""
    others = [
        file for file in weights.parent.iterdir() if file.suffix in (*PICKLES, ".safetensors") and file != weights
    ]
    return f" (it may belong to one of {len(others)} other weight files in the folder)" if others else ""


def _timms(name: str) -> Preprocessing:
    """Return how timm prepares images for a model; ImageNet's where it has no such model or knows no weights of it."""
    import timm  # here, as below: to know how far runs have come needs no models

    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if known is None:
        return IMAGENETS
    return Preprocessing(
        tuple(known.mean), tuple(known.std), known.interpolation, known.crop_pct, known.crop_mode,
        origin=f"timm's for {name}",
    )  # fmt: skip


def _pooled_as_mae(name: str, weights: Path) -> bool:
    """Return whether weights have their last norm behind the mean over patches, where timm's model has it before."""
    from lutbench.models.timm_models import pools_before_norm
    from lutbench.models.weights import pooled_norm, read_shapes, without_prefix

    return pooled_norm(without_prefix(read_shapes(weights))) and not pools_before_norm(name)
