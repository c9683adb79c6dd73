"""The segmentation task: what is checked before it runs, and its run. MMSegmentation is imported here when it is used."""

import importlib.util
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from downstream.segmentation.cost import cost
from downstream.segmentation.pyramid import check_segmentation
from lutbench.data.masks import check_masks
from lutbench.data.preflight import preflight
from lutbench.data.scenes import SegmentationDataset, check_pair
from lutbench.errors import UserError, listed
from lutbench.models.encoders import create_encoder, is_plain
from lutbench.models.meta import shapes_only
from lutbench.models.pretrained import check_encoder_weights
from lutbench.recipes.segmentation import SegmentationRecipe, WindowsRecipe
from lutbench.run import Run, row_named
from lutbench.train.batchnorm import synchronise
from lutbench.train.processes import accelerator

__all__ = ["check", "check_weights", "cost", "perform"]  # what lutbench.kinds asks for


def check(run: Run[SegmentationRecipe]) -> None:
    """Find what would stop a run before any compute is spent; every mask is read once.

    Raises:
        UserError: if MMSegmentation is not installed, data is absent, a mask does not fit its image or the classes, or
            sizes do not go together; or if the encoder has no weights that fit.
    """
    check_installed(run)
    check_weights(run)
    check_data(run)
    check_encoder(run.recipe, accelerator().num_processes)


def check_installed(run: Run[Any]) -> None:
    """Check that MMSegmentation is installed. Raises UserError that says how it is."""
    missing = [name for name in ("mmcv", "mmengine", "mmseg") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{run.name} needs MMSegmentation, but {listed(missing)} is not installed. Install it: "
            'python -m pip install -c constraints.txt -e ".[segmentation]" (nox does this automatically).'
        )


def check_data(run: Run[WindowsRecipe]) -> None:
    """Look at some of the images, and read every mask once.

    Raises:
        UserError: if data is absent, images show nothing, train and val do not go together, or a mask does not fit its image or the
            classes.
    """
    train: SegmentationDataset = run.dataset("train")
    val: SegmentationDataset = run.dataset("val")
    check_pair(train, val)
    if not run.workspace.download:  # a command that only looks
        return
    run.workspace.make()
    preflight(run, train, val, bits_can_be_set=False)
    if accelerator().is_main_process:
        for dataset in (train, val):
            absent = check_masks(dataset, run.workspace.runs / "checked")
            if absent:
                run.workspace.note(f"{dataset.name}: no mask of split {dataset.split} has pixels of {listed(absent)}.")
    accelerator().wait_for_everyone()


def check_weights(run: Run[SegmentationRecipe]) -> None:
    """Check that the encoder has maps for UPerNet, and its weights, see :func:`check_encoder_weights`."""
    with row_named(run):
        check_segmentation(run.recipe)
    check_encoder_weights(run, run.recipe.crop)


def check_encoder(recipe: SegmentationRecipe, processes: int = 1) -> None:
    """Check that a recipe's encoder gives the maps that UPerNet takes, as a backbone of MMSegmentation or of this suite.

    Raises:
        UserError: see :func:`downstream.segmentation.pyramid.check_segmentation` and
            :func:`downstream.segmentation.config.backbone_config`.
    """
    with shapes_only():
        encoder = create_encoder(recipe.encoder.architecture, recipe.crop, recipe.drop_path)
        if processes > 1 and not is_plain(recipe.encoder.architecture):
            synchronise(encoder)
    pyramid = check_segmentation(recipe, processes)
    with quiet():
        from downstream.segmentation.config import backbone_config

        backbone_config(recipe, pyramid)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what OpenMMLab's packages print when they are imported, of optional packages that they miss, and their warnings."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", UserWarning)  # of torch and OpenMMLab's packages about each other
        yield


def perform(run: Run[SegmentationRecipe]) -> None:
    """Train UPerNet on the run's encoder and evaluate it, see :func:`downstream.segmentation.segment.segment`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch and OpenMMLab's packages about each other
        with redirect_stdout(io.StringIO()):  # they print what optional packages they miss
            from downstream.segmentation.segment import segment
        segment(run)
