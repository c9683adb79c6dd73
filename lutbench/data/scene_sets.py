"""The door to every set of images with masks: whatever it comes from, behind it are :class:`SegmentationDataset`."""

from pathlib import Path

from lutbench.data import ade20k
from lutbench.data.images import Split
from lutbench.data.scenes import SegmentationDataset, list_scenes
from lutbench.data.toy.mosaics import open_mosaics
from lutbench.errors import UserError
from lutbench.recipes import SegmentationDataRecipe


def open_scenes(recipe: SegmentationDataRecipe, split: Split, root: Path) -> SegmentationDataset:
    """List one split of the set that ``recipe`` names, below the data root ``root``; build mosaics if they are not there.

    Nothing is decoded: that is for :func:`check_masks`.

    Raises:
        UserError: if a folder is missing or empty, images and masks do not pair up, two images share a name, or ADE20K
            is not complete; tells what was looked for where.
    """
    if recipe.source == "mosaics":
        return open_mosaics(split, root)
    if recipe.source == "scenes":
        return list_scenes(recipe, split, root)
    known = {
        "path": recipe.path or ade20k.FOLDER,
        "classes": list(ade20k.COLOURS),
        "palette": [list(rgb.to_bytes(3, "big")) for rgb in ade20k.COLOURS.values()],
        "reduce_zero_label": True,
    }
    scenes = list_scenes(recipe.model_copy(update=known), split, root)
    if len(scenes) != ade20k.IMAGES[split]:
        other = "val" if split == "train" else "train"
        swapped = f" So many has {other}: are the folders swapped?" if len(scenes) == ade20k.IMAGES[other] else ""
        raise UserError(
            f"{scenes.name}: expected the {ade20k.IMAGES[split]:,} images of ADE20K's {split} split in "
            f"{scenes.images.absolute()}, found {len(scenes):,}.{swapped} Was it unpacked completely? "
            'A part of it is another set: give it source = "scenes", with classes and reduce_zero_label = true.'
        )
    return scenes
