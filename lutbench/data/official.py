"""Sets as their authors unpack them: images beside lists that say which are for training and of which class.

Where torchvision has a class for a set, that class reads the lists (``download=False``), with its checks of them; CUB,
Stanford Dogs and the iNaturalists are read here. torchvision's INaturalist has no split into train and val. Images are
never opened by torchvision: behind the door they are :class:`FolderImages` like all others.

``path`` of a recipe is the folder that the archive makes, ``train`` and ``val`` name official splits, joined by ``+``.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lutbench.data.folder import LISTING_THREADS, FolderImages, fingerprint_of, printable
from lutbench.data.progress import tracked
from lutbench.errors import UserError, listed, nearest
from lutbench.recipes import DataRecipe


class Listed(NamedTuple):
    """What the official lists say of one split."""

    classes: Sequence[str]
    files: Sequence[str]
    """Relative to the set's folder, with forward slashes."""
    labels: Sequence[int]


class Format(NamedTuple):
    """How the lists of a set are read."""

    read: Callable[[Path, str], Listed]
    """From the set's folder and one official split."""
    splits: Callable[[Path], Sequence[str]]
    """Official splits, as far as they are there."""


def open_official(recipe: DataRecipe, split: str, root: Path) -> FolderImages:
    """One split of a set in its authors' layout.

    The fingerprint is over class names, labels, file names and sizes, as :func:`open_folder`'s.

    Raises:
        UserError: if the set, its lists or a split is not there, a split is empty, or listed images are missing.
    """
    folder, name = root / recipe.path, recipe.label or recipe.path
    if not folder.is_dir():
        raise UserError(
            f"{name}: expected its folder at {folder.absolute()}, and there is none. Point --data-root at the folder that "
            "holds your sets; `lutbench data list` shows the known ones and how to get them."
        )
    form = FORMATS[recipe.source]
    wanted = recipe.train if split == "train" else recipe.val
    parts = [_read(form, folder, name, part.strip()) for part in wanted.split("+")]
    if len({tuple(part.classes) for part in parts}) > 1:
        raise UserError(f"{name}: the lists of {wanted} have different classes. Are they of one version of the set?")
    files = [file for part in parts for file in part.files]
    labels = np.array([label for part in parts for label in part.labels], np.int64)
    if not files:
        raise UserError(f"{name}: the list of split {wanted} in {folder.absolute()} names no image.")
    classes = list(parts[0].classes)
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(
            f"{name}: the lists of {wanted} have labels from {labels.min()} to {labels.max()}, and {len(classes)} classes."
        )
    encoded = [os.fsencode(file) for file in files]
    sizes = _sizes(folder, encoded, name, wanted)
    names, lengths = b"".join(encoded), np.fromiter(map(len, encoded), np.int64, len(encoded))
    return FolderImages(
        name=name,
        split=split,
        folder=folder,
        classes=tuple(map(printable, classes)),
        labels=labels,
        skip_undecodable=recipe.undecodable == "skip",
        fingerprint=fingerprint_of(classes, names, lengths, sizes, labels),
        names=names,
        ends=np.cumsum(lengths),
        sizes=sizes,
    )


def _read(form: Format, folder: Path, name: str, part: str) -> Listed:
    known = list(form.splits(folder))
    if known and part not in known:
        raise UserError(
            f"{name}: there is no official split {part!r} in {folder.absolute()}.{nearest(part, known)} There: "
            f"{', '.join(known)}; several are joined by '+'."
        )
    try:
        return form.read(folder, part)
    except FileNotFoundError as error:
        raise UserError(
            f"{name}: {error.filename} is missing: the list of split {part!r}, or what names the classes. Was the set "
            f"unpacked completely? Beside it lie {listed(sorted(p.name for p in folder.iterdir()))}."
        ) from error
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{name}: the lists of split {part!r} in {folder.absolute()} cannot be read: {type(error).__name__}: "
            f"{str(error).rstrip('.')}. Was the set unpacked completely, and is it the version that "
            "`lutbench data list` describes?"
        ) from error


def _sizes(folder: Path, files: Sequence[bytes], name: str, split: str) -> NDArray[np.int64]:
    """Bytes of every listed file (n,).

    Raises:
        UserError: if some are not there; counts them.
    """
    home = os.fsencode(folder) + b"/"

    def size(file: bytes) -> int:
        try:
            return os.stat(home + file).st_size  # noqa: PTH116 - a name need not be UTF-8, and pathlib takes no bytes
        except FileNotFoundError:
            return -1

    with ThreadPoolExecutor(LISTING_THREADS) as threads:
        found = tracked(threads.map(size, files, chunksize=256), len(files), f"listing {name} {split}")
        sizes = np.fromiter(found, np.int64, len(files))
    missing = np.flatnonzero(sizes < 0)
    if len(missing):
        some = [printable(os.fsdecode(files[index])) for index in missing[:4]]
        raise UserError(
            f"{name}: {len(missing):,} of the {len(files):,} images that the list of {split} names are not in "
            f"{folder.absolute()}, first {', '.join(some)}. Was the set unpacked completely?"
        )
    return sizes


# Read by torchvision


def _of_torchvision(kind: str, home: str, files: str, splits: Sequence[str]) -> Format:
    """The format of a torchvision class ``kind``, which wants its folder to be called ``home`` and keeps paths in ``files``.

    A number behind a split is that of DTD's ten partitions.
    """

    def read(folder: Path, split: str) -> Listed:
        import torchvision.datasets  # here, because it takes seconds and most runs do without

        if folder.name != home:
            raise UserError(
                f"{folder.absolute()}: torchvision reads this set, and wants its folder to be called {home}. Rename it."
            )
        part = split.rstrip("0123456789")
        number = {"partition": int(split[len(part) :])} if part != split else {}
        made: Any = getattr(torchvision.datasets, kind)(folder.parent, split=part, **number)
        samples = getattr(made, files)
        paths = [sample[0] if isinstance(sample, tuple) else sample for sample in samples]
        labels = [sample[1] for sample in samples] if isinstance(samples[0], tuple) else made._labels
        return Listed(_distinct(made.classes), _relative(paths, folder), [int(label) for label in labels])

    return Format(read, lambda folder: splits)


def _places365(folder: Path, split: str) -> Listed:
    from torchvision.datasets import Places365

    made = Places365(folder, split="train-standard" if split == "train" else split)
    classes = sorted(made.class_to_idx, key=made.class_to_idx.__getitem__)
    return Listed(classes, _relative([path for path, _ in made.imgs], folder), [int(label) for label in made.targets])


# Read here


def _cub(folder: Path, split: str) -> Listed:
    """CUB-200-2011: lists of ``ID VALUE`` lines; ``train_test_split.txt`` has 1 for training images."""

    def table(name: str) -> dict[str, str]:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        return dict(line.split(maxsplit=1) for line in lines if line.strip())

    classes, files = table("classes.txt"), table("images.txt")
    labels, chosen = table("image_class_labels.txt"), table("train_test_split.txt")
    places = {number: place for place, number in enumerate(classes)}
    some = [image for image in files if (chosen[image] == "1") == (split == "train")]
    return Listed(
        list(classes.values()), [f"images/{files[image]}" for image in some], [places[labels[image]] for image in some]
    )


def _dogs(folder: Path, split: str) -> Listed:
    """Stanford Dogs: ``train_list.mat`` and ``test_list.mat``; class names are those of the folders."""
    from scipy.io import loadmat

    path = folder / f"{split}_list.mat"
    if not path.is_file():
        path = folder / "lists" / path.name
    content = loadmat(path, squeeze_me=True)
    files = [str(file) for file in np.atleast_1d(content["file_list"])]
    labels = [int(label) - 1 for label in np.atleast_1d(content["labels"])]
    named = {label: file.split("/")[0].split("-", 1)[-1] for file, label in zip(files, labels, strict=True)}
    classes = [named[label] for label in range(len(named))]
    return Listed(_distinct(classes), [f"Images/{file}" for file in files], labels)


def _inaturalist(folder: Path, split: str) -> Listed:
    """The competitions' ``train2018.json`` and the like, which name files relative to the folder."""
    content = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    categories = sorted(content["categories"], key=lambda category: int(category["id"]))
    places = {category["id"]: place for place, category in enumerate(categories)}
    label_of = {annotation["image_id"]: places[annotation["category_id"]] for annotation in content["annotations"]}
    files, labels = [], []
    for image in content["images"]:
        files.append(image["file_name"])
        labels.append(label_of[image["id"]])
    return Listed(_distinct([str(category["name"]) for category in categories]), files, labels)


def _annotated(folder: Path) -> Sequence[str]:
    """Annotation files of an iNaturalist that are there; test files have no labels."""
    return sorted(path.stem for path in folder.glob("*20*.json") if not path.stem.startswith("test"))


def _relative(paths: Sequence[str | Path], folder: Path) -> list[str]:
    home = len(str(folder)) + 1
    return [str(path)[home:].replace(os.sep, "/") for path in paths]


def _distinct(names: Sequence[str]) -> list[str]:
    """``names``, numbered where one stands for several classes."""
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} ({place})" for place, name in enumerate(names)]


FORMATS = {
    "cub": Format(_cub, lambda folder: ("train", "test")),
    "cars": _of_torchvision("StanfordCars", "stanford_cars", "_samples", ("train", "test")),
    "aircraft": _of_torchvision("FGVCAircraft", "fgvc-aircraft-2013b", "_image_files", ("train", "val", "trainval", "test")),
    "flowers102": _of_torchvision("Flowers102", "flowers-102", "_image_files", ("train", "val", "test")),
    "pets": _of_torchvision("OxfordIIITPet", "oxford-iiit-pet", "_images", ("trainval", "test")),
    "dogs": Format(_dogs, lambda folder: ("train", "test")),
    "inaturalist": Format(_inaturalist, _annotated),
    "food101": _of_torchvision("Food101", "food-101", "_image_files", ("train", "test")),
    "dtd": _of_torchvision(
        "DTD", "dtd", "_image_files", [f"{part}{number}" for number in range(1, 11) for part in ("train", "val", "test")],
    ),
    "places365": Format(_places365, lambda folder: ("train", "val")),
}  # fmt: skip
"""By a recipe's source."""
