"""What a command does with the runs of a suite: check them, run them in order, say how they stand.

The one place that knows every stage; stages are imported when their first run comes.
"""

import importlib.util
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from lutbench.batches import Schedule
from lutbench.data.images import check_pair
from lutbench.data.masks import check_masks
from lutbench.data.scenes import check_scenes
from lutbench.encoders import create_encoder
from lutbench.errors import UserError, listed
from lutbench.processes import accelerator
from lutbench.progress import console
from lutbench.recipes import ClassificationRecipe, DownstreamRecipe, FinetuneRecipe, PretrainRecipe, SegmentationRecipe
from lutbench.recipes.robustness import RobustnessRecipe
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.run import NotRun, Run, State, checkpoint_of, needed_run, open_run
from lutbench.shifted.labels import label_space
from lutbench.shifted.making import make_shifted
from lutbench.shifted.sets import State as SetState
from lutbench.workspace import Workspace

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
        with run.held() if main else nullcontext():
            accelerator().wait_for_everyone()
            standing = run.standing()
            if standing.state is State.FINISHED:
                if main:
                    run.bring_back_record()
                run.say(f"finished already; {run.result()} ({run.folder})")
                continue
            if standing.state is State.STALE:
                run.say(f"stale {standing.detail}; runs anew, and the old run stays in {standing.folder}")
            if main:
                run.start()
            accelerator().wait_for_everyone()
            perform(run)
            accelerator().wait_for_everyone()
            run.say(run.result())


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
    else:
        from downstream import perform as downstream

        downstream(run)


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
    return open_run(suite, planned, workspace).standing().state is State.FINISHED


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
    from robustness.cells import check_set
    from robustness.classifier import side_and_space

    if accelerator().is_main_process:
        make_shifted(recipe.set, workspace.data)
    accelerator().wait_for_everyone()
    found = workspace.shifted(recipe.set)
    if found.state is SetState.ABSENT:
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
        standing = run.standing()
        state = f"{standing.state} {standing.detail}".strip()
        rows.append((planned.name, state, run.result(), str(standing.folder)))
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
