"""What a command does with the runs of a suite: check them, run them in order, say how they stand.

The one place that knows every stage; stages are imported when their first run comes.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from rich.table import Table

from lutbench.batches import Schedule
from lutbench.data.images import check_pair
from lutbench.encoders import create_encoder
from lutbench.errors import UserError
from lutbench.processes import accelerator
from lutbench.progress import console, print_table
from lutbench.recipes import ClassificationRecipe, FinetuneRecipe, PretrainRecipe
from lutbench.recipes.suite import LoadedSuite, PlannedRun
from lutbench.run import Run, State, Workspace, needed_run, open_run

THREADS = torch.get_num_threads()
"""As torch chose, from the cores and ``OMP_NUM_THREADS``."""


def run_suite(suite: LoadedSuite, stages: Sequence[str], only: Sequence[str], workspace: Workspace) -> None:
    """Run what was chosen, each run after the one it needs.

    Raises:
        UserError: before anything is run, if data is missing or unfit, an encoder cannot be built, a batch does not
            divide over the processes, or a run from outside the choice is needed first.
    """
    chosen = suite.chosen(stages, only)
    names = {planned.name for planned in chosen}
    main = accelerator().is_main_process
    for planned in chosen:
        check(planned, workspace)
        if planned.needs is not None and planned.needs not in names:
            needed_run(suite, planned, workspace)
    for planned in chosen:
        run = open_run(suite, planned, workspace)
        with run.held() if main else nullcontext():
            accelerator().wait_for_everyone()
            standing = run.standing()
            if standing.state is State.FINISHED:
                if main:
                    run.bring_back_record()
                say(run, f"finished already; {run.result()} ({run.folder})")
                continue
            if standing.state is State.STALE:
                say(run, f"stale {standing.detail}; runs anew, and the old run stays in {standing.folder}")
            if main:
                run.start()
            accelerator().wait_for_everyone()
            perform(run)
            accelerator().wait_for_everyone()
            say(run, run.result())


def say(run: Run, text: str) -> None:
    """Print a line about a run, once."""
    if accelerator().is_main_process:
        console.print(f"{run.planned.name}: {text}")


def perform(run: Run) -> None:
    """Call the stage function of a run."""
    recipe = run.planned.recipe
    assert isinstance(recipe, PretrainRecipe | ClassificationRecipe)
    torch.set_num_threads(recipe.threads or THREADS)
    if isinstance(recipe, PretrainRecipe):
        from pretrain.train import pretrain

        pretrain(run)
    else:
        from downstream import perform as downstream

        downstream(run)


def check(planned: PlannedRun, workspace: Workspace) -> None:
    """Find what would stop a run before any compute is spent.

    Raises:
        UserError: see :func:`run_suite`.
    """
    recipe = planned.recipe
    assert isinstance(recipe, PretrainRecipe | ClassificationRecipe)
    train = workspace.images(recipe.data, "train")
    processes = accelerator().num_processes
    if isinstance(recipe, PretrainRecipe | FinetuneRecipe):
        Schedule(len(train), recipe.epochs, recipe.batch, recipe.micro_batch or recipe.batch, 0, 0, processes)
    architecture = recipe.encoder if isinstance(recipe, PretrainRecipe) else recipe.encoder.architecture
    with torch.device("meta"):
        create_encoder(architecture, recipe.side if isinstance(recipe, ClassificationRecipe) else None)
    if isinstance(recipe, ClassificationRecipe):
        check_pair(train, workspace.images(recipe.data, "val"))


def show_status(suite: LoadedSuite, workspace: Workspace) -> None:
    """Print every run of the suite with its state, its result and where it lies."""
    table = Table(title=f"Suite {suite.name}", title_justify="left", box=None, pad_edge=False)
    for column in ("run", "state", "result", "folder"):
        table.add_column(column, no_wrap=True)
    problems = []
    for planned in suite.runs:
        try:
            run = open_run(suite, planned, workspace)
        except UserError as error:
            table.add_row(planned.name, "missing", f"waits for {planned.needs}" if planned.needs else "", "")
            problems += [] if planned.needs else [str(error)]
            continue
        standing = run.standing()
        table.add_row(planned.name, f"{standing.state} {standing.detail}".strip(), run.result(), str(standing.folder))
    print_table(table)
    for problem in dict.fromkeys(problems):
        console.print(f"\n{problem}")
