"""A classifier on a shifted set: every image once, every cell kept as soon as it is measured."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lutbench.errors import UserError
from lutbench.evaluate.inference import Computed, over_images
from lutbench.files import whole_file
from lutbench.recipes.robustness import RobustnessDatasetRecipe, RobustnessRecipe
from lutbench.run import Run
from lutbench.train.processes import accelerator
from robustness.classifier import Classifier, load_classifier, side_and_space
from robustness.condition_outcomes import ConditionOutcomes, RobustnessOutcomes
from robustness.conditions import Condition, check_set, open_condition
from robustness.cost import cost  # noqa: F401 - asked for by lutbench.kinds
from robustness.datasets import make
from robustness.labels import label_space
from robustness.listing import DatasetListing, condition_folders
from robustness.occlusion import Change, occlusions
from robustness.preprocessing import all_views, seen_as
from robustness.protocols import Asked


def check(run: Run[RobustnessRecipe]) -> None:
    """Find what would stop a run before any compute is spent; a dataset that the suite makes is made first.

    Raises:
        NotRun: if nothing of the dataset is present.
        UserError: if the dataset is not as published, its labels are no classes of the classifier, its images are stored at
            another size than the protocol takes, or the classifier cannot be had.
    """
    recipe, root = run.recipe, run.workspace.data
    if accelerator().is_main_process:
        make(recipe.set, root)
    accelerator().wait_for_everyone()
    found: DatasetListing = run.dataset("test")
    found.require()
    if run.needs is None:
        side, space = side_and_space(recipe.classifier, recipe.image_size, run.weights)
    else:
        tuned = run.needs.recipe
        side = recipe.image_size or tuned.side
        space = label_space(run.workspace.open(tuned.dataset, "train").classes)
    check_set(recipe.set, root, found, space, side)


def perform(run: Run[RobustnessRecipe]) -> None:
    """Measure a run's classifier on its dataset, write the record with every image's outcomes, finish the run.

    A condition that was measured before is not measured again: it is kept in the run's folder.

    Raises:
        UserError: if the weights do not fit, an image cannot be decoded, an output is not finite, or the disk is full.
    """
    recipe, root, main = run.recipe, run.workspace.data, accelerator().is_main_process
    classifier = load_classifier(recipe.classifier, recipe.image_size, run.weights, run.weights_sha256)
    passes = list(_passes(recipe.set, root))
    for number, names in enumerate(passes, 1):
        kept = {name: _kept(run, name) for name in names}
        if all(path.is_file() for path in kept.values()):
            continue
        started = time.monotonic()
        cell = open_condition(recipe.set, root, names[0], classifier.space)
        label = names[0] if len(names) == 1 else f"{len(names)} occlusions"
        of = f" ({number} of {len(passes)})" if len(passes) > 1 else ""
        title = f"{run.name}{f' {label}' if label else ''}{of}"
        changes = {name: occlusions(recipe.set)[name] if recipe.set.kind == "occlusion" else None for name in names}
        measured = measure_conditions(classifier, cell, changes, recipe, title)
        if main:
            seconds = (time.monotonic() - started) / len(names)
            for name, outcomes in measured.items():
                _write(outcomes, seconds, kept[name])
        accelerator().wait_for_everyone()
    if main:
        read = [_read(_kept(run, name)) for names in passes for name in names]
        cells, seconds = [one for ways, _ in read for one in ways], sum(took for _, took in read)
        samples = sum(len(one.label) for one in cells)
        robust = RobustnessOutcomes.of(recipe.set, cells)
        run.save_results(robust, seconds=seconds, images_per_second=samples / seconds, checkpoint=run.weights_sha256)


@torch.no_grad()
def measure_conditions(
    classifier: Classifier, cell: Condition, changes: Mapping[str, Change | None], recipe: RobustnessRecipe, title: str
) -> dict[str, list[ConditionOutcomes]]:
    """Return the outcomes of one condition's images under every change of their pixels, by name, in every preprocessing.

    Images are decoded once, and all protocols answered from the same logits; on every process.

    Raises:
        UserError: if an image cannot be decoded, or an output is not finite.
    """
    asked = Asked(cell.protocols, len(classifier.space.names), accelerator().device)

    def answers(pixels: Tensor, index: Tensor) -> Tensor:
        """Return the answers (B, changes, views, protocols, 3) to uint8 pixels (B, views, 3, S, S)."""
        return torch.stack(
            [
                torch.stack([asked(classifier(_changed(view, index, change)), index) for view in pixels.unbind(1)], 1)
                for change in changes.values()
            ],
            1,
        )

    computed = over_images(
        answers,
        cell.images,
        lambda image: all_views(image, recipe.set, classifier.side, recipe.eval_crop),
        recipe,
        title,
    )
    _check_finite(computed, cell)
    names = [cell.images.image_name(int(index)) for index in computed.index]
    protocols, labels = [protocol.name for protocol in cell.protocols], cell.labels[computed.index]
    return {
        name: [
            ConditionOutcomes.of(
                name,
                seen_as(how),
                protocols,
                labels,
                computed.values[:, number, view].numpy(),
                names,
                scored=recipe.set.kind == "detection",
            )
            for view, how in enumerate(recipe.set.preprocessing)
        ]
        for number, name in enumerate(changes)
    }


def _changed(pixels: Tensor, index: Tensor, change: Change | None) -> Tensor:
    return pixels if change is None else change(pixels, index)


def _passes(recipe: RobustnessDatasetRecipe, root: Path) -> Iterator[list[str]]:
    """Yield the conditions of a dataset; those of the same images together."""
    if recipe.kind == "occlusion":
        yield list(recipe.occlusions)
    else:
        yield from ([name] for name in condition_folders(recipe, root))


def _check_finite(computed: Computed, cell: Condition) -> None:
    wrong = (computed.values[..., 0] < 0).flatten(1).any(1).numpy()
    if wrong.any():
        first = cell.images.image_name(int(computed.index[wrong][0]))
        raise UserError(
            f"{cell.images.name}: the classifier's outputs are not finite for {wrong.sum()} of {len(wrong)} images, "
            f"first for {first}. Training went wrong, or its weights are not usable."
        )


def _kept(run: Run[RobustnessRecipe], cell: str) -> Path:
    return run.parts / f"{cell.replace('/', '-') or 'all'}.npz"


def _write(ways: list[ConditionOutcomes], seconds: float, path: Path) -> None:
    arrays = {f"{number}.{name}": array for number, one in enumerate(ways) for name, array in one.arrays().items()}
    arrays |= {"ways": np.array(len(ways)), "seconds": np.array(seconds)}
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _read(path: Path) -> tuple[list[ConditionOutcomes], float]:
    """Return a condition's outcomes in every preprocessing, and the seconds that it took."""
    with np.load(path, allow_pickle=False) as arrays:
        ways = [
            ConditionOutcomes.from_arrays(
                {
                    name.removeprefix(f"{number}."): arrays[name]
                    for name in arrays.files
                    if name.startswith(f"{number}.")
                }
            )
            for number in range(int(arrays["ways"]))
        ]
        return ways, float(arrays["seconds"])
