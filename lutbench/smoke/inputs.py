"""What smoke runs read: links to what of a suite's sets is there, miniatures of what is not, and weights drawn at random.

All of it lies in the folder of the smoke runs. Nothing is written below the data root, and nothing through a link.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from lutbench.data.catalogue import in_hub_cache
from lutbench.data.toy.miniatures import is_miniature
from lutbench.errors import UserError, listed
from lutbench.files import saving
from lutbench.kinds import dataset_module
from lutbench.models.encoders import create_encoder
from lutbench.models.weights import save_weights
from lutbench.progress import console
from lutbench.recipes.base import DatasetRecipe
from lutbench.recipes.downstream import EncoderSource
from lutbench.recipes.robustness import RobustnessDatasetRecipe, RobustnessRecipe
from lutbench.recipes.segmentation import SegmentationDataRecipe
from lutbench.recipes.suite import LoadedSuite
from lutbench.smoke.mark import HOME
from lutbench.smoke.shortened import FEW, SIDE, Smoke, datasets_of

SCENES = {"train": 8, "val": 4}
"""The first images with masks of each split, which are linked."""

OWN_SIDE = 224
"""Side of the input of encoders of their own width, in pixels, for images that are stored at that size."""


def lay_out(suite: LoadedSuite, smoke: Smoke) -> None:
    """Lay out the sets, lists and weights that the runs of a smoked suite read; what is there as it should be is left.

    Processes that lay out at once wait for one.

    Raises:
        UserError: if a set that is there cannot be listed, or nothing can be written.
    """
    with saving(smoke.home):
        smoke.data.mkdir(parents=True, exist_ok=True)
        (smoke.home / HOME).touch()
        with FileLock(smoke.home / ".lock"):
            drawn = [*_sets(suite, smoke), *_lists(suite, smoke), *_weights(suite, smoke)]
    if drawn:
        console.print(
            f"Not below {smoke.real}, and drawn for the smoke run, in miniature: {listed(dict.fromkeys(drawn), 40)}.",
            soft_wrap=True,
        )


def _sets(suite: LoadedSuite, smoke: Smoke) -> Iterator[str]:
    """Lay out every dataset; yield the names of those that are in miniature."""
    asked = _classes_asked(suite)
    for recipe in datasets_of(suite):
        module, name = dataset_module(recipe), recipe.label or recipe.folder
        if recipe.source == "corrupted":
            continue  # made of others that are laid out, when it is first measured
        if module.built_by(recipe) is not None:
            built = smoke.real / recipe.folder
            if (built / "manifest.json").is_file():
                _link(built, smoke.data / recipe.folder)
            continue  # else it is built when it is first read
        with _linked(recipe, smoke) as there:
            if not there:
                side = _side(suite, recipe, smoke)
                module.write_miniature(recipe, smoke.data, side, _classes(suite, recipe, smoke, asked))
        if not there:
            yield name


@contextmanager
def _linked(recipe: DatasetRecipe, smoke: Smoke) -> Iterator[bool]:
    """Link what is there of a dataset, and say whether anything is or a miniature of it lies there already."""
    home = smoke.data / recipe.folder
    if isinstance(recipe, RobustnessDatasetRecipe):
        parts = dataset_module(recipe).needs(recipe, Path())
        there = _link_parts(parts.values(), smoke)
        if recipe.labels.endswith(".json") and (smoke.real / recipe.labels).is_file():
            _link(smoke.real / recipe.labels, smoke.data / recipe.labels)
        yield bool(there)
    elif isinstance(recipe, SegmentationDataRecipe):
        found = (smoke.real / recipe.folder).is_dir()
        if found:
            _link_scenes(recipe, smoke)
        yield found or is_miniature(home, current=True)
    elif recipe.source == "folder" and (smoke.real / recipe.folder).is_dir():
        whole = dataset_module(recipe).needs(recipe, Path())
        if is_miniature(home):
            shutil.rmtree(home)
        yield bool(_link_parts(whole.values(), smoke))
    elif (smoke.real / recipe.folder).exists():
        _link(smoke.real / recipe.folder, home)
        yield True
    else:
        at_hub = recipe.source == "huggingface" and in_hub_cache(recipe.folder)
        if home.is_symlink():
            home.unlink()
        yield at_hub or is_miniature(home, current=True)


def _link_parts(parts: Any, smoke: Smoke) -> list[Path]:
    """Link those parts of a dataset, relative to the data root, that are there; return them."""
    there = [part for part in dict.fromkeys(parts) if (smoke.real / part).is_dir()]
    for part in there:
        _link(smoke.real / part, smoke.data / part)
    return there


def _link_scenes(recipe: SegmentationDataRecipe, smoke: Smoke) -> None:
    """Link the first images with their masks, one by one: MMSegmentation takes all that is in a folder."""
    home = smoke.data / recipe.folder
    if is_miniature(home):
        shutil.rmtree(home)
    for split, count in SCENES.items():
        scenes = dataset_module(recipe).open_dataset(recipe.model_copy(update={"few": None}), split, smoke.real)
        for index in range(min(count, len(scenes))):
            for path in (scenes.image_path(index), scenes.mask_path(index)):
                _link(path, smoke.data / path.relative_to(smoke.real))


def _link(target: Path, link: Path) -> None:
    """Make a link to what is there, in the place of an older one or of a miniature; nothing where a folder above is a link to it."""
    if link.exists() and link.resolve() == target.resolve():
        return
    if link.is_symlink():
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.parent.resolve().is_relative_to(link.parents[0].absolute()):
        raise UserError(f"{link} would lie behind a link, outside of the smoke runs. Remove {link.parents[0]}.")
    link.symlink_to(target.absolute(), target_is_directory=target.is_dir())


def _side(suite: LoadedSuite, recipe: DatasetRecipe, smoke: Smoke) -> int:
    """Return the side of drawn images in pixels: of those that are stored at the classifiers' size that, of others a quarter more."""
    exact = isinstance(recipe, RobustnessDatasetRecipe) and {"whole", "crop"} & set(recipe.preprocessing)
    side = SIDE if smoke.toy else OWN_SIDE
    if exact:
        of = (run.recipe for run in suite.runs if run.recipe.dataset == recipe)
        return next((run.image_size for run in of if isinstance(run, RobustnessRecipe) and run.image_size), side)
    return side * 5 // 4


def _classes_asked(suite: LoadedSuite) -> set[str]:
    """Return the folders of the datasets whose classifiers are measured by labels of ImageNet-1k, which are a thousand."""
    found = set()
    for run in suite.runs:
        recipe = run.recipe
        if not isinstance(recipe, RobustnessRecipe) or not run.needs:
            continue
        if recipe.set.labels != "classifier" and not recipe.set.labels.endswith(".json"):
            found.add(suite.run(run.needs).recipe.dataset.folder)
    return found | {"imagenet-1k"}


def _classes(suite: LoadedSuite, recipe: DatasetRecipe, smoke: Smoke, asked: set[str]) -> Sequence[str]:
    """Return the classes that a miniature has, as far as other sets say: of a robustness dataset those of its classifiers."""
    if not isinstance(recipe, RobustnessDatasetRecipe):
        return [str(number) for number in range(1000)] if recipe.folder in asked else []
    needed = (run.needs for run in suite.runs if run.recipe.dataset == recipe and run.needs)
    name = next(needed, None)
    if name is None or (recipe.labels not in ("classifier",) and not recipe.labels.endswith(".json")):
        return []
    trained_on = suite.run(name).recipe.dataset
    return list(dataset_module(trained_on).open_dataset(trained_on, "train", smoke.data).classes)


def _lists(suite: LoadedSuite, smoke: Smoke) -> Iterator[str]:
    """Lay out the lists of training images that runs name; yield those that are drawn up here."""
    for run in suite.runs:
        file = run.recipe.training_subset.file if run.recipe.training_subset else ""
        if not file:
            continue
        if (smoke.real / file).is_file():
            _link(smoke.real / file, smoke.data / file)
        else:
            dataset = run.recipe.dataset
            images = dataset_module(dataset).open_dataset(dataset, "train", smoke.data)
            names = [images.image_name(index) for index in range(len(images))]
            files = [name.rpartition("/")[2] for name in names]  # as lists of ImageNet have them
            text = "".join(f"{name}\n" for name in (files if len(set(files)) == len(files) else names)[:FEW])
            path = smoke.data / file
            if path.is_symlink():
                path.unlink()
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")
                yield file


def _weights(suite: LoadedSuite, smoke: Smoke) -> Iterator[str]:
    """Draw the weights that runs start from and that are not there, as timm names them; yield what they are in the place of."""
    for run in suite.runs:
        source = run.recipe.source
        if source is None or source.kind != "checkpoint" or not source.path.startswith(str(smoke.home)):
            continue
        if (path := Path(source.path)).is_file():
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if isinstance(source, EncoderSource):
                model = create_encoder(source.architecture)
            else:
                import timm  # here, because it takes seconds to import

                side: Any = {"img_size": SIDE} if smoke.toy else {}
                model = timm.create_model(source.timm_model, num_classes=1000, **side)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(model.state_dict(), path)
        yield f"the weights of {run.method}"
