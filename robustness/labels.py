"""Map the class folders of a test set to the classes of a classifier.

The outputs of a classifier are the classes of a :class:`LabelSpace`, in its order; ImageNet-1k is one. A test set maps each of its class
folders to an answer: the classes that are correct for its images. Usually one; several in ObjectNet, whose chairs are three ImageNet
classes; none for images that are not counted.
"""

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutbench.data.classes import composed
from lutbench.errors import UserError, listed, nearest
from lutbench.files import read_json

Answer = tuple[int, ...]
"""The classes that are right, by their position among a classifier's outputs; empty for an image that is not counted."""

VAL_IMAGES = 50_000
"""Images of ImageNet's validation set."""

_DATA = Path(__file__).parent / "data"
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.")


@dataclass(frozen=True)
class LabelSpace:
    """The classes that the outputs of a classifier stand for, in their order."""

    names: tuple[str, ...]

    @property
    def imagenet(self) -> bool:
        """Whether these are the classes of ImageNet-1k in their usual order."""
        return self == imagenet_1k()


@lru_cache(maxsize=1)
def imagenet_1k() -> LabelSpace:
    """Return the thousand classes by WordNet identifier, which is also the order of their numbers (timm ships the list)."""
    return LabelSpace(tuple(_of_timm("imagenet_synsets.txt").splitlines()))


def label_space(names: Sequence[str]) -> LabelSpace:
    """Return the space of a classifier with these class names.

    ImageNet-1k's, also where its classes are named in words, as in its copy on the Hugging Face Hub.
    """
    from timm.data import ImageNetInfo  # here, because timm takes seconds to import

    given = tuple(names)
    in_words = tuple(ImageNetInfo().label_descriptions())
    return imagenet_1k() if given == in_words else LabelSpace(given)


def imagenet_subset(name: str) -> Answer:
    """Return the 200 classes, ascending, that ``imagenet-a``, ``imagenet-r`` or ``imagenet-o`` is about.

    Sources: timm's lists for the first two, which are those of the sets' own evaluation code
    (hendrycks/natural-adv-examples eval.py, hendrycks/imagenet-r eval.py); for the last its eval_many_models.py.
    """
    if name == "imagenet-o":
        return tuple(read_json(_DATA / "imagenet_o.json"))
    return tuple(map(int, _of_timm(f"{name.replace('-', '_')}_indices.txt").split()))


def real_labels(file: Path | None = None) -> tuple[Answer, ...]:
    """Return ReaL's answers (Beyer et al. 2020) for ImageNet's validation images in the order of their numbers.

    Several for some, none for 3,163 that are not counted. From timm, or a ``real.json`` as its authors publish it.

    Raises:
        UserError: if ``file`` does not hold 50,000 lists of classes.
    """
    if file and not file.is_file():
        raise UserError(f"{file}: this file does not exist. Check the path, which is relative to the data root.")
    lists = read_json(file) if file else json.loads(_of_timm("imagenet_real_labels.json"))
    whole = isinstance(lists, list) and len(lists) == VAL_IMAGES
    if not whole or not all(isinstance(one, list) and all(_is_class(c, 1000) for c in one) for one in lists):
        raise UserError(
            f"{file}: expected {VAL_IMAGES:,} lists of class numbers from 0 to 999, one for each validation image of "
            "ImageNet in order, as real.json of google-research/reassessed-imagenet has them."
        )
    return tuple(tuple(one) for one in lists)


def val_numbers(names: Iterable[str]) -> NDArray[np.int64]:
    """Return the ranks (n,) from 0, in the order of their numbers, of ImageNet validation images with these file names.

    Raises:
        UserError: for a name that has no number between 1 and 50,000.
    """
    numbers = []
    for name in names:
        found = _VAL_NAME.search(name)
        if not found or not 1 <= int(found[1]) <= VAL_IMAGES:
            raise UserError(
                f"{name}: ReaL labels are for images named ILSVRC2012_val_00000001 to ILSVRC2012_val_00050000, but this image has "
                'another name. Restore the original file names, or set real = "".'
            )
        numbers.append(int(found[1]) - 1)
    return np.array(numbers, np.int64)


def known_folders(labels: str, subset: str = "") -> tuple[str, ...] | None:
    """Return the names that class folders can have, as far as the kind of labels tells; None if it does not."""
    wanted = set(imagenet_subset(subset) if subset else range(len(imagenet_1k().names)))
    return tuple(folder for folder, answer in _imagenet_answers(labels).items() if wanted.issuperset(answer)) or None


def answers_of(labels: str, folders: Sequence[str], space: LabelSpace, file: Path) -> tuple[Answer, ...]:
    """Return the answer of every class folder for a classifier with the classes of ``space``.

    ``labels`` is that of :class:`RobustnessDatasetRecipe`; ``file`` the map from folders, where labels name one.

    Raises:
        UserError: if the classifier's classes are not ImageNet's where the labels are, a folder's name is not known,
            or the map is missing or unfit.
    """
    of = _WHOSE.get(labels, f"{labels}'s classes")
    if labels == "classifier":
        answers = _by_name(space)
    elif labels.endswith(".json"):
        answers, of = _own_map(file, space), str(file)
    elif space.imagenet:
        answers = _imagenet_answers(labels)
    else:
        raise UserError(
            f"The test set has labels of ImageNet-1k ({labels}), but the classifier has {len(space.names)} other classes: "
            f'{listed(space.names, 3)}. Use a classifier of ImageNet-1k, or set labels = "MAP.json" to map each folder to '
            "one of the classifier's classes."
        )
    answers = {composed(name): answer for name, answer in answers.items()}
    folders = [*map(composed, folders)]
    unknown = [folder for folder in folders if folder not in answers]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(folders)} class folders are not among {of}: {listed(unknown)}."
            f"{nearest(unknown[0], answers)} Rename them, or set labels to the meaning of their names."
        )
    return tuple(answers[folder] for folder in folders)


_WHOSE = {
    "classifier": "the classifier's classes",
    "imagenet-1k": "ImageNet-1k's WordNet identifiers",
    "imagenet-1k-numbers": "the numbers 0 to 999",
}
"""What messages call the names that folders can have."""

_SHIPPED = {"imagenet-9": "imagenet_9.json", "objectnet": "objectnet.json", "si-score": "si_score.json"}
"""Class folders and their ImageNet classes.

imagenet-9: 9 folders, 370 classes; in_to_in9.json of MadryLab/backgrounds_challenge, read in its copy in bytedance/ibot
(Apache-2.0), turned round. objectnet: 113 folders, 125 classes; imagenet_pytorch_id_to_objectnet_id.json and
folder_to_imagenet_1k.json in mapping_files of abarbu/objectnet-template-tensorflow, which say the same (its PyTorch twin:
MIT). si-score: the 61 classes of the published sets, label_str_to_imagenet_classes.py of google-research/si-score
(Apache-2.0).
"""


def _imagenet_answers(labels: str) -> dict[str, Answer]:
    """Return the ImageNet classes of every class folder, by its name; nothing if the labels are not ImageNet's."""
    if labels == "imagenet-1k":
        return _by_name(imagenet_1k())
    if labels == "imagenet-1k-numbers":
        # By value: sorted as text, 10 comes before 2, and a folder's position in the listing says nothing.
        return {str(index): (index,) for index in range(1000)}
    shipped = read_json(_DATA / _SHIPPED[labels]) if labels in _SHIPPED else {}
    return {folder: tuple(classes) for folder, classes in shipped.items()}


def _own_map(file: Path, space: LabelSpace) -> dict[str, Answer]:
    """Read a user's JSON file: of every folder a class, or a list of classes, by name or by number."""
    if not file.is_file():
        raise UserError(
            f"labels: the file {file} does not exist. Expected a JSON file that maps each class folder to a class or a list of classes."
        )
    found = read_json(file)
    if not isinstance(found, dict):
        raise UserError(
            f'{file}: expected {{"FOLDER": "CLASS", ...}}, with a class or a list of classes for each folder.'
        )
    return {folder: _answer(classes, space, f"{file}: {folder}") for folder, classes in found.items()}


def _answer(classes: Any, space: LabelSpace, where: str) -> Answer:
    by_name = _by_name(space)
    answer: set[int] = set()
    for one in classes if isinstance(classes, list) else [classes]:
        if isinstance(one, str) and one in by_name:
            answer.update(by_name[one])
        elif _is_class(one, len(space.names)):
            answer.add(one)
        else:
            hint = nearest(one, by_name) if isinstance(one, str) else ""
            raise UserError(
                f"{where}: the classifier has no class {one!r}.{hint} Give one of its {len(space.names)} classes by "
                f"name ({listed(space.names, 3)}) or by number from 0."
            )
    return tuple(sorted(answer))


def _by_name(space: LabelSpace) -> dict[str, Answer]:
    """Return every class by its name; a name that two classes share is left out, since it does not say which."""
    times = Counter(space.names)
    return {name: (index,) for index, name in enumerate(space.names) if times[name] == 1}


def _is_class(value: Any, classes: int) -> bool:
    """Return whether a value is the number of one of so many classes."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < classes


def _of_timm(name: str) -> str:
    """Return the text of a file that timm ships, which is found without importing timm: that takes seconds."""
    found = importlib.util.find_spec("timm")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0], "data", "_info", name).read_text(encoding="utf-8")
