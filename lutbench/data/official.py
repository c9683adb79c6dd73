"""Datasets in their authors' layout: images with list files that give split and class of each.

If torchvision has a class for a dataset, that class reads and checks the lists (``download=False``). CUB, Stanford Dogs, the iNaturalist
datasets and Places365 are read here: torchvision's INaturalist has no split into train and val, and its Places365 needs 1.7 GB of memory
to list 1.8 million images. Images are never opened by torchvision: the result is a :class:`FolderImages` as for all others.

``path`` in a recipe is the folder in the archive; ``train`` and ``val`` are names of official splits, which can be joined with ``+``.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lutbench.data.folder import LISTING_THREADS, FolderImages, fingerprint_of
from lutbench.data.walking import explained, in_threads, printable
from lutbench.errors import UserError, listed, nearest
from lutbench.recipes.base import DataRecipe


class Listed(NamedTuple):
    """Content of the official lists for one split."""

    classes: Sequence[str]
    files: Sequence[bytes]
    """Paths relative to the dataset's folder, with forward slashes."""
    labels: Sequence[int]


class Format(NamedTuple):
    """How to read the lists of a dataset."""

    read: Callable[[Path, str], Listed]
    """Arguments: the dataset's folder and one official split."""
    splits: Sequence[str]
    """The official splits; empty if every existing list is one."""
    needs: Callable[[str], Sequence[str]]
    """Lists and image folders that a split needs, relative to the dataset's folder."""
    banner: int = 0
    """Rows of pixels at the bottom of every photograph, to cut off as the dataset's authors ask."""


MINIATURE = ".miniature"
"""A file that marks a miniature dataset (:mod:`lutbench.data.toy.miniatures`), whose lists differ from the published checksums."""

STATS_AT_ONCE = 1000
"""Number of files per thread task when reading file sizes: one task for each of 600,000 files would take 1 GB."""


@explained()
def open_official(recipe: DataRecipe, split: str, root: Path) -> FolderImages:
    """List one split of a dataset in its authors' layout.

    The fingerprint is computed from class names, labels, file names and sizes, as in :func:`open_folder`, and the height of the banner.

    Raises:
        UserError: if the dataset, its lists or a split does not exist, a split is empty, or listed images are missing.
    """
    folder, name = (root / recipe.path).absolute(), recipe.label or recipe.path or recipe.source
    if not folder.is_dir():
        raise UserError(
            f"{name}: expected its folder at {folder}, which does not exist. Set --data-root to the folder that holds your "
            "datasets; `lutbench data list` shows the known datasets and how to get them."
        )
    form = FORMATS[recipe.source]
    wanted = recipe.train if split == "train" else recipe.val
    named = [part.strip() for part in wanted.split("+")]
    parts = [_read(form, folder, name, part) for part in named]
    if len({tuple(part.classes) for part in parts}) > 1:
        raise UserError(
            f"{name}: the lists of {wanted} have different classes. Take all of them from the same version of the dataset."
        )
    files = [file for part in parts for file in part.files]
    if twice := [one for one, other in pairwise(sorted(files)) if one == other]:
        raise UserError(
            f"{name}: the lists of {wanted} name {len(twice):,} images more than once, first "
            f"{printable(os.fsdecode(twice[0]))}. Choose splits that do not overlap, and use the lists as published."
        )
    labels = np.array([label for part in parts for label in part.labels], np.int64)
    if not files:
        raise UserError(f"{name}: the list of split {wanted} in {folder} is empty. Download it again.")
    classes = list(parts[0].classes)
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(
            f"{name}: the lists of {wanted} have labels from {labels.min()} to {labels.max()}, expected 0 to {len(classes) - 1}."
        )
    sizes = _sizes(folder, files, name, wanted)
    names, lengths = b"".join(files), np.fromiter(map(len, files), np.int64, len(files))
    return FolderImages(
        name=name,
        split=split,
        folder=folder,
        classes=tuple(classes),
        labels=labels,
        skip_undecodable=recipe.undecodable == "skip",
        fingerprint=fingerprint_of(
            classes, names, lengths, sizes, labels, *([np.array([form.banner])] if form.banner else [])
        ),
        names=names,
        ends=np.cumsum(lengths),
        sizes=sizes,
        banner=form.banner,
    )


def _read(form: Format, folder: Path, name: str, part: str) -> Listed:
    if form.splits and part not in form.splits:
        raise UserError(
            f"{name}: there is no official split {part!r}.{nearest(part, form.splits)} Official splits: "
            f"{', '.join(form.splits)}. Join several with '+'."
        )
    for needed in form.needs(part):
        path = folder / needed
        if not path.exists():
            near = next(parent for parent in path.parents if parent.is_dir())
            beside = listed(sorted(p.name for p in near.iterdir())) or "nothing"
            raise UserError(
                f"{name}: {path} is missing, but split {part!r} needs it. {near} contains: {beside}. Unpack the dataset completely, as "
                "`lutbench data list` describes."
            )
    try:
        found = form.read(folder, part)
        return found._replace(classes=[*map(printable, found.classes)])
    except (UserError, PermissionError):
        raise
    except Exception as error:  # json, scipy and torchvision raise many kinds of errors for a broken list
        message = re.sub(r"\s*You can \w+ download=True to download it\.?", "", str(error)).rstrip(".")
        what = f"entry {error} is missing" if isinstance(error, KeyError) else f"{type(error).__name__}: {message}"
        raise UserError(
            f"{name}: the lists of split {part!r} in {folder} cannot be read: {what}. Unpack the dataset "
            "completely, in the version that `lutbench data list` describes."
        ) from error


def _sizes(folder: Path, files: Sequence[bytes], name: str, split: str) -> NDArray[np.int64]:
    """Return the size in bytes of every listed file (n,).

    Raises:
        UserError: if some are missing, with their number.
        OSError: if the size of a file cannot be read.
    """
    home = os.fsencode(folder) + b"/"

    def size(file: bytes) -> int:
        try:
            return os.stat(home + file).st_size  # noqa: PTH116 - a name need not be UTF-8, and pathlib takes no bytes
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
            return -1

    def sizes_from(start: int) -> list[int]:
        return [size(file) for file in files[start : start + STATS_AT_ONCE]]

    starts = range(0, len(files), STATS_AT_ONCE)
    found = in_threads(sizes_from, starts, f"listing {name} {split}", threads=LISTING_THREADS)
    sizes = np.fromiter(chain.from_iterable(found), np.int64, len(files))
    missing = np.flatnonzero(sizes < 0)
    if len(missing):
        some = [printable(os.fsdecode(files[index])) for index in missing[:4]]
        raise UserError(
            f"{name}: {len(missing):,} of the {len(files):,} images listed for {split} are missing in "
            f"{folder}, such as {', '.join(some)}. Unpack the dataset completely."
        )
    return sizes


# Read by torchvision


def _of_torchvision(
    kind: str, home: str, files: str, splits: Sequence[str], needs: Callable[[str], Sequence[str]], banner: int = 0
) -> Format:
    """Return the format of a torchvision class ``kind``, which expects a folder named ``home`` and keeps paths in ``files``.

    A number after a split selects one of DTD's ten partitions.
    """

    def read(folder: Path, split: str) -> Listed:
        """Return the paths and labels of a split as torchvision lists them."""
        import torchvision.datasets  # here, because it takes seconds and most runs do without

        if folder.name != home:
            raise UserError(
                f"{folder}: torchvision, which reads this dataset, expects its folder to be named {home}. Rename the folder."
            )
        part = split.rstrip("0123456789")
        number = {"partition": int(split[len(part) :])} if part != split else {}
        reader: Any = getattr(torchvision.datasets, kind)
        if (folder / MINIATURE).is_file() and hasattr(reader, "_file_dict"):
            reader = _with_own_sums(reader, folder)
        made = reader(folder.parent, split=part, **number)
        samples = getattr(made, files)
        paths = [sample[0] if isinstance(sample, tuple) else sample for sample in samples]
        labels = made._labels if hasattr(made, "_labels") else [sample[1] for sample in samples]
        inside = len(str(folder)) + 1
        relative = [os.fsencode(str(path)[inside:].replace(os.sep, "/")) for path in paths]
        return Listed(_distinct(made.classes), relative, [int(label) for label in labels])

    return Format(read, splits, needs, banner)


def _with_own_sums(reader: Any, folder: Path) -> Any:
    """Return a class of torchvision that takes the lists in ``folder`` for the published ones, of which it knows the sums."""
    from torchvision.datasets.utils import calculate_md5

    sums = {part: (file, calculate_md5(path) if (path := folder / file).is_file() else md5)
            for part, (file, md5) in reader._file_dict.items()}  # fmt: skip
    return type(reader.__name__, (reader,), {"_file_dict": sums})


# Read here


def _cub(folder: Path, split: str) -> Listed:
    """Read CUB-200-2011: lists of ``ID VALUE`` lines; ``train_test_split.txt`` has 1 for training images."""

    def table(name: str) -> dict[str, str]:
        text = (folder / name).read_text(encoding="utf-8-sig", errors="surrogateescape")
        return dict(line.strip().split(maxsplit=1) for line in text.split("\n") if line.strip())

    classes, files = table("classes.txt"), table("images.txt")
    labels, chosen = table("image_class_labels.txt"), table("train_test_split.txt")
    label_of = {number: label for label, number in enumerate(classes)}
    some = [image for image in files if {"1": "train", "0": "test"}[chosen[image]] == split]
    return Listed(
        list(classes.values()),
        [os.fsencode(f"images/{files[image]}") for image in some],
        [label_of[labels[image]] for image in some],
    )


def _dogs(folder: Path, split: str) -> Listed:
    """Read Stanford Dogs: ``train_list.mat`` and ``test_list.mat``; class names are those of the folders."""
    from scipy.io import loadmat

    content = loadmat(folder / f"{split}_list.mat", squeeze_me=True)
    files = [str(file) for file in np.atleast_1d(content["file_list"])]
    labels = [int(label) - 1 for label in np.atleast_1d(content["labels"])]
    named = {label: file.split("/")[0].split("-", 1)[-1] for file, label in zip(files, labels, strict=True)}
    classes = [named[label] for label in range(len(named))]
    return Listed(_distinct(classes), [os.fsencode(f"Images/{file}") for file in files], labels)


def _inaturalist(folder: Path, split: str) -> Listed:
    """Read the competitions' ``train2018.json`` and the like, which name files relative to the folder."""

    def kept(record: dict[str, Any]) -> Any:
        """Keep two values of each of a million records: as dictionaries they take 500 MB."""
        if "file_name" in record:
            return record["id"], os.fsencode(record["file_name"])
        if "category_id" in record:
            return record["image_id"], record["category_id"]
        return record

    with (folder / f"{split}.json").open(encoding="utf-8") as file:
        content = json.load(file, object_hook=kept)
    categories = sorted(content["categories"], key=lambda category: int(category["id"]))
    order = {category["id"]: label for label, category in enumerate(categories)}
    label_of = {image: order[category] for image, category in content["annotations"]}
    files = [file for _, file in content["images"]]
    labels = [label_of[image] for image, _ in content["images"]]
    return Listed(_distinct([str(category["name"]) for category in categories]), files, labels)


def _places365(folder: Path, split: str) -> Listed:
    """Read Places365: lists of ``FILE LABEL`` lines."""
    categories, files_of_split, home = _places365_files(split)
    numbered = [line.split() for line in (folder / categories).read_text(encoding="utf-8").splitlines()]
    classes = [name for name, _ in sorted(numbered, key=lambda one: int(one[1]))]
    files, labels = [], []
    with (folder / files_of_split).open("rb") as lines:
        for line in lines:
            file, label = line.rsplit(maxsplit=1)
            files.append(os.fsencode(home) + b"/" + file.lstrip(b"/"))
            labels.append(int(label))
    return Listed(classes, files, labels)


def _distinct(names: Sequence[str]) -> list[str]:
    """Return ``names``, numbered where one stands for several classes."""
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} ({label})" for label, name in enumerate(names)]


def _each(*files: str) -> Callable[[str], Sequence[str]]:
    """Return the function that names what a split needs: ``files`` with the split in place of ``{}``."""
    return lambda split: [file.format(split) for file in files]


def _cars(split: str) -> Sequence[str]:
    annotations = "devkit/cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"
    return ["devkit/cars_meta.mat", annotations, f"cars_{split}"]


def _places365_files(split: str) -> Sequence[str]:
    parts = ("train_standard", "data_large_standard") if split == "train" else ("val", "val_large")
    return ["categories_places365.txt", f"places365_{parts[0]}.txt", parts[1]]


FORMATS = {
    "cub": Format(
        _cub, ("train", "test"),
        _each("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "images"),
    ),
    "cars": _of_torchvision("StanfordCars", "stanford_cars", "_samples", ("train", "test"), _cars),
    "aircraft": _of_torchvision(
        "FGVCAircraft", "fgvc-aircraft-2013b", "_image_files", ("train", "val", "trainval", "test"),
        _each("data/variants.txt", "data/images_variant_{}.txt", "data/images"),
        banner=20,  # its README asks to remove it for training and evaluation
    ),
    "flowers102": _of_torchvision(
        "Flowers102", "flowers-102", "_image_files", ("train", "val", "test"), _each("setid.mat", "imagelabels.mat", "jpg")
    ),
    "pets": _of_torchvision(
        "OxfordIIITPet", "oxford-iiit-pet", "_images", ("trainval", "test"), _each("annotations/{}.txt", "images")
    ),
    "dogs": Format(_dogs, ("train", "test"), _each("{}_list.mat", "Images")),
    "inaturalist": Format(_inaturalist, (), _each("{}.json")),
    "food101": _of_torchvision(
        "Food101", "food-101", "_image_files", ("train", "test"), _each("meta/{}.json", "images")
    ),
    "dtd": _of_torchvision(
        "DTD", "dtd", "_image_files", [f"{part}{number}" for number in range(1, 11) for part in ("train", "val", "test")],
        _each("dtd/labels/{}.txt", "dtd/images"),
    ),
    "places365": Format(_places365, ("train", "val"), _places365_files),
}  # fmt: skip
"""By a recipe's source."""
