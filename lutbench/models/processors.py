"""Read the preprocessing of images from the JSON files that Hugging Face and timm store beside weights."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lutbench.errors import UserError
from lutbench.files import read_json
from lutbench.recipes.base import CropShare, Deviation, Mean

HUGGING_FACES, TIMMS = "preprocessor_config.json", "config.json"

PILLOWS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""What Pillow's numbers of resampling filters mean, by timm's names."""

Interpolation = Literal["bicubic", "bilinear", "lanczos", "nearest"]


class _Prepared(BaseModel):
    """What is taken of such a file, by the names of :class:`lutbench.models.preprocessing.Preprocessing`."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    mean: Mean
    std: Deviation
    interpolation: Interpolation = "bicubic"
    crop_pct: CropShare | None = None
    crop_mode: Literal["center", "squash", "border"] = "center"


class _Processor(BaseModel):
    """Hugging Face's preprocessor_config.json, of which a file leaves out what has no meaning for its processor."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    do_normalize: bool = True
    do_rescale: bool = True
    rescale_factor: Annotated[float, Field(gt=0)] = 1 / 255
    resample: int = 3
    do_center_crop: bool = False
    size: int | dict[str, int | None] | None = None
    crop_size: int | dict[str, int | None] | None = None
    crop_pct: float | None = None

    def values(self) -> dict[str, Any]:
        """Return how images are prepared, by the names of :class:`_Prepared`; empty if it does not say how they are normalised."""
        mean, std = self.image_mean, self.image_std
        if not self.do_normalize:
            mean, std = [0.0] * 3, [1.0] * 3
        if mean is None or std is None:
            return {}
        scale = 255 * (self.rescale_factor if self.do_rescale else 1)  # of pixels between 0 and 1
        if abs(scale - 1) > 1e-6:
            mean, std = [value / scale for value in mean], [value / scale for value in std]
        named = PILLOWS.get(self.resample, f"Pillow's filter {self.resample}")
        return {"mean": mean, "std": std, "interpolation": named, "crop_pct": self._crop()}

    def _crop(self) -> float | None:
        """Return the side of the crop over the resized short side; None where both sides are resized, and nothing is cropped."""
        size = {"shortest_edge": self.size} if isinstance(self.size, int) else self.size or {}
        crop = {"height": self.crop_size} if isinstance(self.crop_size, int) else self.crop_size or {}
        short, side = size.get("shortest_edge"), crop.get("height") or crop.get("shortest_edge")
        if self.crop_pct is not None:  # ConvNeXt's, which crops below 384 pixels only
            return self.crop_pct if short and short < 384 else None
        return min(1.0, side / short) if self.do_center_crop and short and side else None


def described(weights: Path) -> tuple[dict[str, Any], Path] | None:
    """Return how images are prepared for weights, by a file of Hugging Face's or timm's in their folder, and that file.

    ``weights`` is a file, or the folder itself. None if there is no such file, or it says nothing about images.

    Raises:
        UserError: if what it says cannot be done here.
    """
    folder = weights if weights.is_dir() else weights.parent
    for path in (folder / HUGGING_FACES, folder / TIMMS):
        if not path.is_file():
            continue
        content = read_json(path)
        if path.name == TIMMS and isinstance(content, dict):
            content = content.get("pretrained_cfg") or content  # old ones are flat
        if not isinstance(content, dict):
            continue
        try:
            said = _Processor.model_validate(content).values() if path.name == HUGGING_FACES else content
            if not {"mean", "std"} <= said.keys():
                continue
            return _Prepared.model_validate(said).model_dump(), path
        except ValidationError as error:
            problem = error.errors()[0]
            raise UserError(
                f"{path}: its preprocessing of images is not supported: {'.'.join(map(str, problem['loc']))} = "
                f"{problem['input']!r}: {problem['msg']}. Correct it, or move the file away and set mean, std, interpolation and crop_pct in "
                "the suite file."
            ) from error
    return None
