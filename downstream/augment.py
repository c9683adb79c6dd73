"""What a classifier sees of an image in training: timm's augmentation, and MAE's linear-probe crops.

All draw from the global generators of Python, NumPy and torch. Training's returns normalised float32 (3, S, S), since
erasing draws its noise there; the others return uint8, normalised on the device.
"""

from timm.data import create_transform
from torchvision.transforms import v2

from lutbench.data.tensors import to_tensor
from lutbench.evaluate.transform import Transform
from lutbench.models.preprocessing import Preprocessing
from lutbench.recipes.attentive import AttentiveRecipe
from lutbench.recipes.downstream import FinetuneRecipe
from lutbench.recipes.probes import LinearRecipe


def train_transform(recipe: FinetuneRecipe, prepared: Preprocessing) -> Transform:
    """Fine-tuning: random resized crop, flip, RandAugment and random erasing with noise, all timm's (as MAE).

    Resized and normalised as the encoder is ``prepared`` for.
    """
    transform: Transform = create_transform(
        recipe.side,
        is_training=True,
        scale=(recipe.crop_scale[0], recipe.crop_scale[1]),
        hflip=recipe.flip,
        color_jitter=0.0,
        auto_augment=recipe.rand_augment or None,
        interpolation=prepared.interpolation,
        re_prob=recipe.erasing,
        re_mode="pixel",
        mean=prepared.mean,
        std=prepared.std,
    )
    return transform


def linear_transform(recipe: LinearRecipe | AttentiveRecipe, prepared: Preprocessing) -> Transform:
    """Probes: random resized crop and flip (MAE, table 10: no other augmentation)."""
    interpolation = v2.InterpolationMode(prepared.interpolation)
    crop = v2.RandomResizedCrop(recipe.side, scale=tuple(recipe.crop_scale), interpolation=interpolation)
    transform: Transform = v2.Compose([crop, v2.RandomHorizontalFlip(), to_tensor])
    return transform
