"""Evaluate a classifier on a robustness dataset: every image once; every condition is stored as soon as it is finished."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lutbench.arrays import MAX_BYTES, Layout, read_arrays
from lutbench.data.preflight import preflight
from lutbench.evaluate.inference import check_finite, over_images
from lutbench.files import content_sha256, whole_file
from lutbench.recipes.robustness import RobustnessDatasetRecipe, RobustnessRecipe
from lutbench.run import Run
from lutbench.train.processes import accelerator
from robustness.classifier import Classifier, check_classifier, load_classifier, load_probe
from robustness.condition_outcomes import RobustnessOutcomes
from robustness.conditions import Condition, check_set, open_condition
from robustness.cost import cost
from robustness.datasets import make
from robustness.kept_conditions import CONDITIONS, ConditionOutcomes, pack, unpack
from robustness.labels import label_space
from robustness.listing import DatasetListing, condition_folders, list_condition
from robustness.occlusion import Change, occlusions
from robustness.preprocessing import all_views, preprocessing_label
from robustness.protocols import Asked

KEPT: Layout = {**CONDITIONS, "ways": (("i8",), 0), "seconds": (("f8",), 0), "seal": (("U",), 0)}
"""The arrays of a file that keeps a condition."""

__all__ = ["check", "check_weights", "cost", "perform"]  # what lutbench.kinds asks for


def check(run: Run[RobustnessRecipe]) -> None:
    """Find what would stop a run before any compute is spent; a dataset that the suite makes is made first.

    Raises:
        NotRun: if nothing of the dataset is present.
        UserError: if the dataset is not as published, its labels are no classes of the classifier, its images are blank, cut off or stored at
            another size than the protocol takes, or the classifier cannot be had.
    """
    recipe, root = run.recipe, run.workspace.data
    if run.workspace.download and accelerator().is_main_process:
        make(recipe.set, root)
    accelerator().wait_for_everyone()
    found: DatasetListing = run.dataset("test")
    found.require()
    first, folder = next(iter(condition_folders(recipe.set, root).items()))
    preflight(run, list_condition(recipe.set, first, folder), bits_can_be_set=False)
    if run.needs is None:
        side, space = check_classifier(recipe.classifier, recipe.image_size, run.weights, run.hash_of)
    else:
        tuned = run.needs.recipe
        side = recipe.image_size or tuned.side
        space = label_space(run.workspace.open(tuned.dataset, "train").classes)
    check_set(recipe.set, root, found, space, side)


def check_weights(run: Run[RobustnessRecipe]) -> None:
    """Check the weights of a classifier that no run of the suite made, see :func:`check_classifier`."""
    if run.needs is None:
        check_classifier(run.recipe.classifier, run.recipe.image_size, run.weights, run.hash_of)


def perform(run: Run[RobustnessRecipe]) -> None:
    """Measure a run's classifier on its dataset, write the record with every image's outcomes, finish the run.

    A condition that was measured before is not measured again: it is kept in the run's folder, unless it is damaged there.

    Raises:
        UserError: if the weights do not fit, an image cannot be decoded, an output is not finite, or the disk is full.
    """
    recipe, root, main = run.recipe, run.workspace.data, accelerator().is_main_process
    classifier = _classifier(run)
    if recipe.classifier.kind == "checkpoint":
        run.log(f"images are {classifier.prepared}.")
    if run.needs is not None and recipe.eval_crop == run.needs.recipe.eval_crop:
        # The table has no other crop, so images are cropped as in that task, whose weights say it: it may be the encoder's.
        crop = classifier.prepared.crop_pct or recipe.eval_crop
        recipe = recipe.model_copy(update={"eval_crop": crop})
    passes = _passes(recipe.set, root)
    for number, changes in enumerate(passes, 1):
        if all(_intact(run, name) for name in changes):
            continue
        started = time.monotonic()
        first = next(iter(changes))
        condition = open_condition(recipe.set, root, first, classifier.space)
        label = first if len(changes) == 1 else f"{len(changes)} occlusions"
        of = f" ({number} of {len(passes)})" if len(passes) > 1 else ""
        title = f"{run.name}{f' {label}' if label else ''}{of}"
        measured = measure_conditions(classifier, condition, changes, recipe, title)
        if main:
            seconds = (time.monotonic() - started) / len(changes)
            for name, outcomes in measured.items():
                _write(outcomes, seconds, run, name)
        accelerator().wait_for_everyone()
    if main:
        read = [_read(run, name) for changes in passes for name in changes]
        conditions, seconds = [one for ways, _ in read for one in ways], sum(took for _, took in read)
        samples = sum(len(one.label) for one in conditions)
        robust = RobustnessOutcomes.of(recipe.set, conditions)
        run.save_results(robust, seconds=seconds, images_per_second=samples / seconds, checkpoint=run.weights_sha256)


def _classifier(run: Run[RobustnessRecipe]) -> Classifier:
    source, size = run.recipe.classifier, run.recipe.image_size
    if run.needs is not None and source.export == "linear":
        assert run.weights is not None
        return load_probe(run.needs, size, run.weights, run.weights_sha256)
    return load_classifier(source, size, run.weights, run.weights_sha256)


@torch.no_grad()
def measure_conditions(
    classifier: Classifier, condition: Condition, changes: Mapping[str, Change], recipe: RobustnessRecipe, title: str
) -> dict[str, list[ConditionOutcomes]]:
    """Return the outcomes of one condition's images under every change of their pixels, by name, in every preprocessing.

    Images are decoded once, and all protocols answered from the same logits; on every process.

    Raises:
        UserError: if an image cannot be decoded, or an output is not finite.
    """
    asked = Asked(condition.protocols, len(classifier.space.names), accelerator().device)

    def answers(pixels: Tensor, index: Tensor) -> Tensor:
        """Return the answers (B, changes, views, protocols, 3) to uint8 pixels (B, views, S, S, 3)."""
        preprocessed = pixels.permute(0, 1, 4, 2, 3).contiguous().unbind(1)
        return torch.stack(
            [
                torch.stack([asked(classifier(change(view, index)), index) for view in preprocessed], 1)
                for change in changes.values()
            ],
            1,
        )

    images = condition.images
    views = partial(
        all_views,
        recipe=recipe.set,
        side=classifier.side,
        eval_crop=recipe.eval_crop,
        prepared=classifier.prepared,
    )
    computed = over_images(answers, images, views, recipe, title, form=recipe.form)
    values, index = computed.values.numpy(), computed.index
    check_finite(np.all(values[..., 0] >= 0, axis=(1, 2, 3)), images, index)
    names = [images.image_name(int(one)) for one in index]
    protocols, labels = [protocol.name for protocol in condition.protocols], condition.labels[index]
    scored = recipe.set.kind in ("detection", "classes")
    return {
        name: [
            ConditionOutcomes.of(
                name, preprocessing_label(how), protocols, labels, values[:, number, view], names, scored
            )
            for view, how in enumerate(recipe.set.preprocessing)
        ]
        for number, name in enumerate(changes)
    }


def _passes(recipe: RobustnessDatasetRecipe, root: Path) -> list[dict[str, Change]]:
    """Return the conditions of a dataset, each with the change of pixels that makes it; those of the same images together."""
    if recipe.kind == "occlusion":
        return [occlusions(recipe)]
    return [{name: _unchanged} for name in condition_folders(recipe, root)]


def _unchanged(pixels: Tensor, index: Tensor) -> Tensor:
    return pixels


def _kept(run: Run[RobustnessRecipe], name: str) -> Path:
    return run.parts / f"{name.replace('/', '-') or 'all'}.npz"


def _write(ways: Sequence[ConditionOutcomes], seconds: float, run: Run[RobustnessRecipe], name: str) -> None:
    arrays = {**pack(ways), "ways": np.array(len(ways)), "seconds": np.array(seconds)}
    with whole_file(_kept(run, name)) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays, seal=np.array(_seal(arrays, run)))  # type: ignore[arg-type]


def _seal(arrays: Mapping[str, NDArray[Any]], run: Run[RobustnessRecipe]) -> str:
    """Return the hash of what is kept of a condition, and of the run that it is a part of: no record proves it yet."""
    kept = {name: [str(a.dtype), list(a.shape), hashlib.sha256(a.tobytes()).hexdigest()] for name, a in arrays.items()}
    return content_sha256({"run": run.identity, **kept})


def _intact(run: Run[RobustnessRecipe], name: str) -> bool:
    """Return whether a condition is kept as it was measured; says so if it is kept and is not."""
    path = _kept(run, name)
    if not path.is_file():
        return False
    try:
        _read(run, name)
    except (KeyError, ValueError) as error:
        run.log(f"{path}: damaged or changed, so it is measured again: {error}.")
        return False
    return True


def _read(run: Run[RobustnessRecipe], name: str) -> tuple[tuple[ConditionOutcomes, ...], float]:
    """Return a condition's outcomes in every preprocessing, and the seconds that it took.

    Raises:
        KeyError, ValueError: if they are not those that were kept.
    """
    path = _kept(run, name)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has {path.stat().st_size:,} bytes")
    arrays = read_arrays(path.read_bytes(), KEPT)
    if missing := {"ways", "seconds", "seal"} - arrays.keys():
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    if str(arrays.pop("seal")) != _seal(arrays, run):
        raise ValueError("its checksum is wrong, or it belongs to another run")
    ways = unpack(arrays, int(arrays["ways"]))
    expected = [(name, preprocessing_label(how)) for how in run.recipe.set.preprocessing]
    if [(one.condition, one.preprocessing) for one in ways] != expected:
        raise ValueError("it belongs to another condition")
    return ways, float(arrays["seconds"])
