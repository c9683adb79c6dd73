"""How images were prepared that weights were trained on, which is how a model must see them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lutbench.models.export import export_of
from lutbench.models.processors import described
from lutbench.models.weight_files import IN_FOLDERS, PICKLES, sha256_of
from lutbench.recipes.base import RunRecipe, WeightsSource
from lutbench.recipes.robustness import ClassifierSource

Colour = tuple[float, ...]
"""A value of each channel, between 0 and 1."""

IMAGENETS_MEAN, IMAGENETS_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels, as timm and torchvision have them."""


class Preprocessing(NamedTuple):
    """How images are prepared for a model. What is not given is ImageNet's, as in LUT, MAE and DeiT."""

    mean: Colour = IMAGENETS_MEAN
    std: Colour = IMAGENETS_STD
    interpolation: str = "bicubic"
    """How they are resized, by timm's names."""
    crop_pct: float | None = None
    """In evaluation, side of the crop over the resized short side; None where nothing says so, and the task's holds."""
    crop_mode: str = "center"
    """timm's: ``center``, ``squash`` (both sides resized) or ``border`` (the long side resized, and padded)."""
    origin: str = "ImageNet's, as nothing says otherwise"
    """Where this was read, for messages."""

    def unlike_imagenets(self, names: Iterable[str]) -> dict[str, Any]:
        """Return those of the fields ``names`` that differ from ImageNet's, as plain JSON values."""
        differing = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(IMAGENETS, name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in differing.items()}

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        own = "" if "crop_pct" in self.origin else " unless a task's table says eval_crop"
        crop = f", cropped to {self.crop_pct:g} of the resized side{own}" if self.crop_pct else ""
        mode = (
            ""
            if self.crop_mode == "center"
            else f" (timm's crop_mode = {self.crop_mode!r} is followed for classifiers alone)"
        )
        return f"normalised by mean ({mean}) and deviation ({std}), resized with {self.interpolation} interpolation{crop}{mode}: {self.origin}"


IMAGENETS = Preprocessing()


def preprocessing_for(
    recipe: RunRecipe, weights: Path | None, hash_of: Callable[[Path], str] = sha256_of
) -> Preprocessing:
    """Return how a run prepares images for the weights that it starts from; ImageNet's if it starts from none.

    Tasks that see the centre of images have a crop for all encoders, ``eval_crop``. The ``crop_pct`` that a method's table gives holds
    instead; and unless the task's table gives ``eval_crop``, that which lies beside a file of weights, or is timm's of its own.
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
    """Return how images were prepared for the weights of a source; ``weights`` is their file or folder, if they have one.

    ``hash_of`` returns the sha256 of a file.

    The suite file's settings come first; then the export beside the file, where this suite wrote it; then Hugging Face's or
    timm's configuration beside it; then, for timm's weights and for a classifier in a file, what timm says of the model that is
    named. All else is ImageNet's: encoders in files, of which the name tells the architecture alone, and classifiers that
    MAE's release fine-tuned.

    Raises:
        UserError: if what lies beside the weights is damaged, of other weights, or says what cannot be done.
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
            origin=f"as {weights.with_suffix('.json').name} beside the weights says",
        )  # fmt: skip
    elif found := described(weights):
        values, path = found
        known = Preprocessing(**values, origin=f"as {path.name} beside the weights says{_or_of_others(weights)}")
        known = known._replace(mean=tuple(known.mean), std=tuple(known.std))
    elif is_classifier:
        known = _timms(source.timm_model)
        if known[:-1] != IMAGENETS[:-1] and _pooled_as_mae(source.timm_model, weights):
            known = Preprocessing(origin="ImageNet's, as the weights pool as those that MAE's release fine-tuned")
    else:
        known = IMAGENETS
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in source.preprocessing().items()
    }
    origin = f"{', '.join(given)} as the suite file says, all else {known.origin}"
    return known._replace(**given, origin=origin) if given else known


def _or_of_others(weights: Path) -> str:
    """Return that a folder's file may be about others of the weights in it; empty if there are none, or they are one model's."""
    if weights.is_dir() or weights.name in IN_FOLDERS:
        return ""
    others = [
        file for file in weights.parent.iterdir() if file.suffix in (*PICKLES, ".safetensors") and file != weights
    ]
    return f" ({len(others)} more files of weights lie there, and it may be about one of those)" if others else ""


def _timms(name: str) -> Preprocessing:
    """Return how timm prepares images for a model; ImageNet's where it has no such model or knows no weights of it."""
    import timm  # here, as below: to know how far runs have come needs no models

    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if known is None:
        return IMAGENETS
    return Preprocessing(
        tuple(known.mean), tuple(known.std), known.interpolation, known.crop_pct, known.crop_mode,
        origin=f"as timm says of {name}",
    )  # fmt: skip


def _pooled_as_mae(name: str, weights: Path) -> bool:
    """Return whether weights have their last norm behind the mean over patches, where timm's model has it before."""
    from lutbench.models.timm_models import pools_before_norm
    from lutbench.models.weights import pooled_norm, read_shapes, without_prefix

    return pooled_norm(without_prefix(read_shapes(weights))) and not pools_before_norm(name)
