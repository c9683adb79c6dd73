"""What a command does with the runs of a suite: check them, run them in order, say how they stand.

The one place that knows every stage; stages are imported when their first run comes.
"""

import importlib.util
import io
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout

import torch

from lutbench.data.images import check_pair
from lutbench.data.masks import check_masks
from lutbench.data.scenes import check_scenes
from lutbench.errors import UserError, listed
from lutbench.models.encoders import create_encoder
from lutbench.progress import console
from lutbench.recipes import (
    ClassificationRecipe,
    DownstreamRecipe,
    FinetuneRecipe,
    LinearRecipe,
    PretrainRecipe,
    SegmentationRecipe,
)
from lutbench.recipes.robustness import RobustnessRecipe
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.run import NotRun, Run, RunState, checkpoint_of, needed_run, open_run
from lutbench.train.batches import Schedule
from lutbench.train.processes import accelerator
from lutbench.workspace import Workspace
from robustness.datasets import DatasetState
from robustness.labels import label_space
from robustness.making import make_shifted

THREADS = torch.get_num_threads()
"""As torch chose, from the cores and ``OMP_NUM_THREADS``."""


def run_suite(suite: LoadedSuite, stages: Sequence[str], only: Sequence[str], workspace: Workspace) -> None:
    """Run what was chosen, each run after the one it needs. A shifted set that is not there is said to be not run.

    Raises:
        UserError: before anything is run, if data is missing or unfit, an encoder or an augmentation cannot be built,
            a batch does not divide over the processes, a folder cannot be made, or a run from outside the choice is
            needed first.
    """
    main = accelerator().is_main_process
    chosen, names = [], set[str]()
    for planned in suite.chosen(stages, only):
        try:
            check(suite, planned, workspace)
        except NotRun as reason:
            if main:
                console.print(str(reason))
            continue
        if planned.needs is not None and planned.needs not in names:
            needed_run(suite, planned, workspace)
        chosen.append(planned)
        names.add(planned.name)
    workspace.make()
    for planned in chosen:
        run = open_run(suite, planned, workspace)
        with run.lock() if main else nullcontext():
            accelerator().wait_for_everyone()
            status = run.status()
            if status.state is RunState.FINISHED:
                if main:
                    run.restore_record()
                run.log(f"finished already; {run.result()} ({run.folder})")
                continue
            if status.state is RunState.STALE:
                run.log(f"stale {status.detail}; runs anew, and the old run stays in {status.folder}")
            if main:
                run.start()
            accelerator().wait_for_everyone()
            perform(run)
            accelerator().wait_for_everyone()
            run.log(run.result())


def perform(run: Run) -> None:
    """Call the stage function of a run."""
    recipe = run.planned.recipe
    assert isinstance(recipe, PretrainRecipe | DownstreamRecipe | RobustnessRecipe)
    torch.set_num_threads(recipe.threads or THREADS)
    if isinstance(recipe, PretrainRecipe):
        from pretrain.train import pretrain

        pretrain(run)
    elif isinstance(recipe, RobustnessRecipe):
        from robustness.measure import measure

        measure(run)
    elif isinstance(recipe, FinetuneRecipe):
        from downstream.finetune import finetune

        finetune(run)
    elif isinstance(recipe, LinearRecipe):
        from downstream.linear import linear_probe

        linear_probe(run)
    elif isinstance(recipe, SegmentationRecipe):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torch and OpenMMLab's packages about each other
            with redirect_stdout(io.StringIO()):  # they print what optional packages they miss
                from downstream.segmentation.train import segment
            segment(run)
    else:
        from downstream.knn import knn

        knn(run)


def check(suite: LoadedSuite, planned: PlannedRun, workspace: Workspace) -> None:
    """Find what would stop a run before any compute is spent.

    Raises:
        NotRun: if nothing of its shifted set is there.
        UserError: see :func:`run_suite`.
    """
    recipe = planned.recipe
    if isinstance(recipe, RobustnessRecipe):
        check_robustness(suite, planned, recipe, workspace)
        return
    if isinstance(recipe, SegmentationRecipe):
        check_segmentation(planned, recipe, workspace)
        return
    assert isinstance(recipe, PretrainRecipe | ClassificationRecipe)
    train = workspace.images(recipe.data, "train")
    processes = accelerator().num_processes
    if isinstance(recipe, PretrainRecipe | FinetuneRecipe):
        Schedule(len(train), recipe.epochs, recipe.batch, recipe.micro_batch or recipe.batch, 0, 0, processes)
    architecture = recipe.encoder if isinstance(recipe, PretrainRecipe) else recipe.encoder.architecture
    with torch.device("meta"):
        create_encoder(architecture, recipe.side if isinstance(recipe, ClassificationRecipe) else None)
    if isinstance(recipe, PretrainRecipe) and recipe.cache and not _has_finished(suite, planned, workspace):
        workspace.cached(recipe.data, recipe.encoder.image_size, make=True)
    if isinstance(recipe, FinetuneRecipe):
        from downstream.augment import train_transform

        train_transform(recipe)
    if isinstance(recipe, ClassificationRecipe):
        check_pair(train, workspace.images(recipe.data, "val"))


def _has_finished(suite: LoadedSuite, planned: PlannedRun, workspace: Workspace) -> bool:
    return open_run(suite, planned, workspace).status().state is RunState.FINISHED


def check_segmentation(planned: PlannedRun, recipe: SegmentationRecipe, workspace: Workspace) -> None:
    """:func:`check` of a segmentation run.

    Raises:
        UserError: see :func:`run_suite`; also if MMSegmentation is not installed, or a mask does not fit its image or
            the classes.
    """
    missing = [name for name in ("mmcv", "mmengine", "mmseg") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{planned.name} needs MMSegmentation, and {listed(missing)} cannot be found. Install it: "
            'python -m pip install -c constraints.txt -e ".[segmentation]" (nox does so by itself).'
        )
    train, val = workspace.scenes(recipe.data, "train"), workspace.scenes(recipe.data, "val")
    check_scenes(train, val)
    workspace.make()
    if accelerator().is_main_process:
        for scenes in (train, val):
            absent = check_masks(scenes, workspace.runs / "checked")
            if absent:
                console.print(f"{scenes.name}: no mask of split {scenes.split} has a pixel of {listed(absent)}.")
    accelerator().wait_for_everyone()
    with torch.device("meta"):
        create_encoder(recipe.encoder.architecture, recipe.crop)
    from downstream.segmentation.config import check_segmentation as check_sizes

    check_sizes(recipe, accelerator().num_processes)


def check_robustness(suite: LoadedSuite, planned: PlannedRun, recipe: RobustnessRecipe, workspace: Workspace) -> None:
    """:func:`check` of a robustness run; a set that the suite makes is made first.

    Raises:
        NotRun: if nothing of the set is there.
        UserError: if the set is not as published, its labels are no classes of the classifier, its images are stored at
            another size than the protocol takes, or the classifier cannot be had.
    """
    from robustness.classifier import side_and_space
    from robustness.conditions import check_set

    if accelerator().is_main_process:
        make_shifted(recipe.set, workspace.data)
    accelerator().wait_for_everyone()
    found = workspace.shifted(recipe.set)
    if found.state is DatasetState.ABSENT:
        raise NotRun(f"{planned.name}: not run: nothing of {found.name} is at {found.where}.")
    found.require()
    if planned.needs is None:
        side, space = side_and_space(recipe.classifier, recipe.image_size, checkpoint_of(planned))
    else:
        task = next(run for run in suite.runs if run.name == planned.needs).recipe
        assert isinstance(task, FinetuneRecipe)
        side = recipe.image_size or task.side
        space = label_space(workspace.images(task.data, "train").classes)
    check_set(recipe.set, workspace.data, found, space, side)


def show_status(suite: LoadedSuite, workspace: Workspace) -> None:
    """Print every run of the suite with its state, its result and where it lies.

    A line each; on a terminal too narrow for that, result and folder below it.
    """
    rows, problems = [], []
    for planned in suite.runs:
        try:
            run = open_run(suite, planned, workspace)
        except NotRun as reason:
            rows.append((planned.name, "not run", "", ""))
            problems.append(str(reason).partition(": not run: ")[2])
            continue
        except UserError as error:
            rows.append((planned.name, "missing", f"waits for {planned.needs}" if planned.needs else "", ""))
            problems += [] if planned.needs else [str(error)]
            continue
        status = run.status()
        state = f"{status.state} {status.detail}".strip()
        rows.append((planned.name, state, run.result(), str(status.folder)))
    console.print(f"Suite {suite.name}")
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    narrow = console.is_terminal and sum(widths) - 2 > console.width
    for row in rows:
        if narrow:
            console.print("\n    ".join(part for part in (f"{row[0]}  {row[1]}", *row[2:]) if part))
        else:
            console.print("".join(part.ljust(width) for part, width in zip(row, widths, strict=True)).rstrip())
    for problem in dict.fromkeys(problems):
        console.print(f"\n{problem}")
