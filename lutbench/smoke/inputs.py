"""The inputs of smoke runs: links to a suite's datasets that are present, miniatures of missing ones, and random weights.

All of them are in the folder of the smoke runs. Nothing is written below the data root, and nothing through a link.
"""

import shutil
from collections.abc import Iterator, Sequence
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
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.smoke.mark import HOME
from lutbench.smoke.shortened import FEW, SIDE, Smoke, datasets_of

OWN_SIDE = 224
"""Input size in pixels that is assumed for encoders of their own width."""


def lay_out(suite: LoadedSuite, smoke: Smoke) -> None:
    """Prepare the datasets, lists and weights that the runs of a smoke suite read; existing valid ones are kept.

    If several processes call this at the same time, they wait for each other.

    Raises:
        UserError: if an existing dataset cannot be listed, or the folder cannot be written.
    """
    with saving(smoke.home):
        smoke.data.mkdir(parents=True, exist_ok=True)
        (smoke.home / HOME).touch()
        with FileLock(smoke.home / ".lock"):
            drawn = [*_sets(suite, smoke), *_lists(suite, smoke), *_weights(suite, smoke)]
    if drawn:
        console.print(
            f"Not found in {smoke.real}, and replaced by miniatures for the smoke run: {listed(dict.fromkeys(drawn), 40)}.",
            soft_wrap=True,
        )


def _sets(suite: LoadedSuite, smoke: Smoke) -> Iterator[str]:
    """Link every dataset that is present, and write miniatures of the others; yield the names of the miniatures."""
    asked = _classes_asked(suite)
    for recipe in datasets_of(suite):
        module, home = dataset_module(recipe), smoke.data / recipe.folder
        if recipe.source == "corrupted":
            continue  # it is made from another dataset when it is first measured
        if module.built_by(recipe) is not None:
            if (smoke.real / recipe.folder / "manifest.json").is_file():
                _link(smoke.real / recipe.folder, home)
            continue  # otherwise it is built when it is first read
        if parts := module.few_files(recipe, smoke.real):
            if is_miniature(home) and not home.is_symlink():
                shutil.rmtree(home)
            for part in parts:
                _link(part, smoke.data / part.relative_to(smoke.real))
            continue
        if home.is_symlink() and not home.exists():
            home.unlink()
        at_hub = recipe.source == "huggingface" and in_hub_cache(recipe.folder)
        if not at_hub and module.write_miniature(
            recipe, smoke.data, _side(suite, recipe, smoke), _classes(suite, recipe, smoke, asked)
        ):
            yield recipe.label or recipe.folder


def _link(target: Path, link: Path) -> None:
    """Make a link to ``target``, replacing an older link or a miniature; nothing if the path leads to ``target`` already."""
    if link.exists() and link.resolve() == target.resolve():
        return
    if link.is_symlink():
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.parent.resolve().is_relative_to(link.parents[0].absolute()):
        raise UserError(
            f"{link} would be behind a link, outside the folder of the smoke runs. Remove {link.parents[0]}."
        )
    link.symlink_to(target.absolute(), target_is_directory=target.is_dir())


def _measured(suite: LoadedSuite, recipe: DatasetRecipe) -> list[PlannedRun]:
    """Return the runs that evaluate classifiers on a dataset; empty if only encoders are trained or evaluated on it."""
    return [run for run in suite.runs if run.kind.starts_from == "classifier" and run.recipe.dataset == recipe]


def _side(suite: LoadedSuite, recipe: Any, smoke: Smoke) -> int:
    """Return the side of a miniature's images in pixels: the classifiers' input size if they are stored at it, otherwise a quarter more."""
    side = SIDE if smoke.toy else OWN_SIDE
    measured: list[Any] = [run.recipe for run in _measured(suite, recipe)]
    if measured and {"whole", "crop"} & set(recipe.preprocessing):
        return next((of.image_size for of in measured if of.image_size), side)
    return side * 5 // 4


def _has_own_labels(recipe: Any) -> bool:
    """Return whether the classes of a robustness dataset are those of the classifiers, and not ImageNet-1k's thousand."""
    labels: str = recipe.labels
    return labels == "classifier" or labels.endswith(".json")


def _classes_asked(suite: LoadedSuite) -> set[str]:
    """Return the folders of the datasets whose classifiers are evaluated with labels of ImageNet-1k, which need a thousand classes."""
    measured = (run for run in suite.runs if run.kind.starts_from == "classifier" and run.needs)
    asked = {run.needs for run in measured if not _has_own_labels(run.recipe.dataset)}
    return {suite.run(name).recipe.dataset.folder for name in asked if name} | {"imagenet-1k"}


def _classes(suite: LoadedSuite, recipe: DatasetRecipe, smoke: Smoke, asked: set[str]) -> Sequence[str]:
    """Return the classes of a miniature, if other datasets determine them: those of the classifiers for a robustness dataset."""
    if not (measured := _measured(suite, recipe)):
        return [str(number) for number in range(1000)] if recipe.folder in asked else []
    name = next((run.needs for run in measured if run.needs), None)
    if name is None or not _has_own_labels(recipe):
        return []
    trained_on = suite.run(name).recipe.dataset
    return list(dataset_module(trained_on).open_dataset(trained_on, "train", smoke.data).classes)


def _lists(suite: LoadedSuite, smoke: Smoke) -> Iterator[str]:
    """Link the lists of training images that runs name, and write the missing ones; yield the names of the latter."""
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
            files = [name.rpartition("/")[2] for name in names]  # as in the lists of ImageNet
            text = "".join(f"{name}\n" for name in (files if len(set(files)) == len(files) else names)[:FEW])
            path = smoke.data / file
            if path.is_symlink():
                path.unlink()
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")
                yield file


def _weights(suite: LoadedSuite, smoke: Smoke) -> Iterator[str]:
    """Write random weights, with timm's names, where runs start from weights that are missing; yield what they replace."""
    for run in suite.runs:
        source: Any = run.recipe.source
        if source is None or source.kind != "checkpoint" or not source.path.startswith(str(smoke.home)):
            continue
        if (path := Path(source.path)).is_file():
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if run.kind.starts_from == "encoder":
                model = create_encoder(source.architecture)
            else:
                import timm  # here, because it takes seconds to import

                side: Any = {"img_size": SIDE} if smoke.toy else {}
                model = timm.create_model(source.timm_model, num_classes=1000, **side)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(model.state_dict(), path)
        yield f"the weights of {run.method}"
