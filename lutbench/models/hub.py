"""Write a run's weights as a folder for ``timm.create_model("local-dir:FOLDER")``, Hugging Face transformers and the Hub."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.models._hub import HF_SAFE_WEIGHTS_NAME, save_config_for_hf

from lutbench.errors import UserError
from lutbench.models.encoders import create_encoder
from lutbench.models.export import Export, export_of
from lutbench.models.fitting import misfits
from lutbench.models.weights import read_weights
from lutbench.recipes.downstream import default_crop
from lutbench.run_files import FINISHED, read_finished


class ExportedModel(NamedTuple):
    """A timm model with the final weights of a run."""

    model: Any
    """Of the class that timm has for it."""
    description: Export
    weights: Path
    """The file that they lie in."""

    @property
    def crop_pct(self) -> float:
        """Side of the crop over the resized short side: the classifier's, or what encoders are evaluated with by default."""
        return self.description.crop_pct or default_crop(self.description.side)


def exported_model(folder: Path, name: str) -> ExportedModel:
    """Return the model with the final weights ``NAME.safetensors`` of the finished run in ``folder``.

    Raises:
        UserError: if the weights or their description are missing or changed, or this timm builds a different model.
    """
    weights, finished = folder / f"{name}.safetensors", read_finished(folder)
    if finished.checkpoint is None:
        raise UserError(
            f"{folder / FINISHED}: expected {name}.safetensors among the files of the run, found no weights. Run it again."
        )
    tensors = read_weights(weights, finished.checkpoint)
    description = export_of(weights)
    if description is None:
        raise UserError(
            f"{weights}: expected its description {name}.json beside it, found none. Restore it from a copy, or run it again."
        )
    sizes = description.arguments
    model: Any = create_encoder(
        description.recipe, description.side, classes=sizes.num_classes, pooled_norm=sizes.fc_norm or None
    )
    if problems := misfits(model.state_dict(), tensors, "model"):
        raise UserError(
            f"{weights}: timm {timm.__version__} builds {description.model} differently than the timm version of the run, "
            f"{description.timm or '(unknown)'}. {problems}. Export with that version of timm."
        )
    model.load_state_dict(tensors)
    exported = ExportedModel(model.eval(), description, weights)
    # In place of what timm says of its own weights of this name: their preprocessing, licence, papers and files
    model.pretrained_cfg = {
        **{key: model.pretrained_cfg[key] for key in ("architecture", "first_conv", "classifier")},
        "input_size": (3, description.side, description.side),
        "fixed_input_size": sizes.img_size is not None,
        "mean": tuple(description.mean),
        "std": tuple(description.std),
        "interpolation": description.interpolation,
        "crop_pct": exported.crop_pct,
        "num_classes": sizes.num_classes,
    }
    return exported


def write_timm(exported: ExportedModel, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``, the latter with the very bytes that the run's record has the sha256 of."""
    path = folder / "config.json"
    names = exported.description.class_names
    save_config_for_hf(exported.model, str(path), model_config={"label_names": names} if names else None)
    config = json.loads(path.read_text(encoding="utf-8"))
    # It stands at the top, where timm reads it too; transformers' wrapper of timm trips over it here.
    config.get("model_args", {}).pop("num_classes", None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(exported.weights, folder / HF_SAFE_WEIGHTS_NAME)
