"""What a classifier sees of an image in training: timm's augmentation, and MAE's linear-probe crops.

All draw from the global generators of Python, NumPy and torch. Training's returns normalised float32 (3, S, S), since
erasing draws its noise there; the others return uint8, normalised on the device.
"""

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torchvision.transforms import v2

from lutbench.data.tensors import to_tensor
from lutbench.errors import UserError
from lutbench.evaluate.transform import BICUBIC, Transform
from lutbench.recipes.downstream import FinetuneRecipe, LinearRecipe


def train_transform(recipe: FinetuneRecipe) -> Transform:
    """Fine-tuning: random resized crop, flip, RandAugment and random erasing with noise, all timm's (as MAE).

    Raises:
        UserError: if timm has no such policy as the recipe's ``rand_augment``.
    """
    try:
        transform: Transform = create_transform(
            recipe.side,
            is_training=True,
            scale=(recipe.crop_scale[0], recipe.crop_scale[1]),
            hflip=recipe.flip,
            color_jitter=0.0,
            auto_augment=recipe.rand_augment or None,
            interpolation="bicubic",
            re_prob=recipe.erasing,
            re_mode="pixel",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(
            f"rand_augment = {recipe.rand_augment!r}: timm makes no policy of it ({error}). Give one such as "
            "'rand-m9-mstd0.5-inc1', or '' for none."
        ) from error
    return transform


def linear_transform(recipe: LinearRecipe) -> Transform:
    """Linear probe: random resized crop and flip (MAE, table 10: no other augmentation)."""
    crop = v2.RandomResizedCrop(recipe.side, scale=tuple(recipe.crop_scale), interpolation=BICUBIC)
    transform: Transform = v2.Compose([crop, v2.RandomHorizontalFlip(), to_tensor])
    return transform
