"""Print the plan: a row per group of seeds below the sum of its stage, then totals, disk space, and what is missing."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.table import Table

from lutbench.data.survey import DiskUse
from lutbench.errors import listed
from lutbench.files import gigabytes
from lutbench.plan.costs import (
    CANNOT,
    COUNTED,
    DONE,
    ESTIMATED,
    MEASURED,
    NO_COUNT,
    NO_FLOP,
    NO_RATE,
    ON_CARD,
    REPEATED,
    Costs,
    Rates,
    costs_of,
    narrowed,
)
from lutbench.plan.disk import by_disk, disk_uses, rooms_of
from lutbench.plan.measured import measured_cards
from lutbench.plan.surveys import foreseen, missing, survey_all
from lutbench.progress import console, print_table
from lutbench.recipes.suite import LoadedSuite
from lutbench.refusals import paragraphs
from lutbench.workspace import Workspace

NAMES = 32
"""Maximum width of the column of names, so that the table has 80 columns; longer names are wrapped."""


def show_plan(
    suite: LoadedSuite, workspace: Workspace, rates: Rates, only: Sequence[str] = (), check: bool = False
) -> None:
    """Print the costs of a suite, or of the runs that ``only`` chooses, and what keeps runs from starting.

    ``check``: also what is found by building their models.

    Raises:
        UserError: if a record is damaged, or ``only`` chooses no run.
    """
    suite = narrowed(suite, only)
    surveys = survey_all(suite, workspace)
    costs = costs_of(suite, workspace, surveys, rates, only)
    console.print(suite.config.title, style="bold")
    print_table(_runs(costs, suite.runs_of_studies()))
    for line in [
        *(budget.sentence(name, with_file=True) for name, budget in suite.budgets.items()),
        *totals(costs, rates),
        *filter(None, [suite.joined]),
    ]:
        console.print(line, soft_wrap=False)
    uses = disk_uses(costs, surveys, workspace)
    print_table(_disk(uses))
    for rooms, wanted, free in by_disk(uses, rooms_of(workspace)):
        folders = listed([f"{room.name} ({room.path})" for room in rooms])
        console.print(f"{folders}: {gigabytes(wanted)} needed, {gigabytes(free)} free.")
        if wanted > free:
            console.print("This will not fit.", style="red")
    known, refused = missing(costs, surveys, check)
    told = paragraphs(suite, refused)
    if known:
        table = table_of([f"\nmissing datasets ({len(known)})", ""])
        for name, problem in known.items():
            table.add_row(name, problem)
        print_table(table)
        told.insert(
            0,
            "How to get a dataset: lutbench data list NAME. The numbers above include all of them; runs on missing robustness datasets "
            "are left out.",
        )
    told += paragraphs(suite, foreseen(costs, surveys))
    for paragraph in filter(None, [*told, how_to_time(costs)]):
        console.print(f"\n{paragraph}", soft_wrap=False)


def totals(costs: Costs, rates: Rates) -> list[str]:
    """Return the sums below the table, what they leave out, and what they are based on."""
    to_run, timed = len(costs.to_run), len(costs.timed)
    lines = [f"{to_run} runs to do, {costs.count(DONE)} finished; {costs.images:,} images, {costs.flop:.2g} FLOP."]
    if timed:
        machine = "one GPU, or the CPU" if costs.gpus == 1 else f"{costs.gpus} GPUs"
        which = "" if timed == to_run else f", for {timed} of the {to_run} runs"
        lines.append(
            f"{duration(costs.seconds)} one after another on {machine}: {costs.gpu_hours:,.2f} GPU-hours{which}."
        )
    if uncounted := costs.count(NO_FLOP):
        lines.append(f"The FLOP of {uncounted} runs cannot be counted, see below. They are not in the sums.")
    if refused := costs.count(CANNOT):
        lines.append(f"{refused} runs cannot run, see below. They are not in the sums.")
    if uncounted := costs.count(NO_COUNT):
        lines.append(f"{uncounted} runs use missing datasets of unknown size. They are not in the sums.")
    lines += origins(costs, rates)
    return lines


def origins(costs: Costs, rates: Rates) -> list[str]:
    """Return what the hours are based on."""
    lines = []
    if rates.card and (taken := costs.count(ON_CARD)):
        lines.append(
            f"The hours of {_some(taken)} follow from training steps of the same model, measured on {rates.card} (docs/benchmarks.md) and "
            "scaled by FLOP; they do not include reading images."
        )
    if rates.flops and (assumed := costs.count(COUNTED)):
        lines.append(f"The hours of {_some(assumed)} assume {rates.flops:.2g} FLOP/s per GPU (--flops).")
    if rates.gpu and (estimated := costs.count(ESTIMATED)):
        lines.append(f"The hours of {_some(estimated)} are {rates.gpu}.")
    measured = [one for one in costs.runs if one.origin == MEASURED]
    for hardware, runs in Counter(one.hardware for one in measured).items():
        lines.append(f"{_rates(runs)} measured on {hardware}.")
    for hardware, runs in Counter(one.hardware for one in costs.runs if one.origin == REPEATED).items():
        lines.append(f"The hours of {_some(runs)} are those of another seed or draw, on {hardware}.")
    if any(one.cost.train > one.cost.evaluate > 0 for one in measured):
        lines.append("Evaluating an image is assumed to take as long as training on one, which was measured.")
    return lines


def how_to_time(costs: Costs) -> str:
    """Return how to get hours for the runs without a speed; empty if all runs have one."""
    unrated = costs.count(NO_RATE)
    some = "1 run has" if unrated == 1 else f"{unrated} runs have"
    several = len(measured_cards()) > 1 and not costs.count(ON_CARD)
    options = "--card NAME, --gpu h100" if several else "--gpu h100"
    return f"{some} no speed. For hours: {options}, --flops 4e14 or --rate NAME=N." if unrated else ""


def _some(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"


def _rates(runs: int) -> str:
    return "The speed of 1 run was" if runs == 1 else f"The speeds of {runs} runs were"


def duration(seconds: float) -> str:
    """Return a time such as ``12 s``, ``3.4 min`` or ``1,203.5 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def amount(count: int) -> str:
    """Return a number such as ``98,304`` or ``2,049.9 M``."""
    return f"{count:,}" if count < 1e5 else f"{count / 1e6:,.1f} M"


def _runs(costs: Costs, studied: Mapping[str, str]) -> Table:
    """Return a table with a row for the seeds of each task and method, and one for each study; ``studied`` has the study of a run, by name."""
    table = table_of(["run"], ["to do", "images", "FLOP", "images/s", "time"])
    table.columns[0].max_width, table.columns[0].overflow = NAMES, "fold"
    for stage, part in costs.by("stage").items():
        time = duration(part.seconds) if part.timed else ""
        table.add_row(stage, str(len(part.to_run)), amount(part.images), f"{part.flop:.1e}", "", time, style="bold")
        studies = dict.fromkeys(studied[one.run.name] for one in part.runs if one.run.name in studied)
        plain = Costs(tuple(one for one in part.runs if one.run.name not in studied), costs.gpus)
        for task, methods in plain.by("task").items():
            rows = methods.by("method")
            if any(rows):  # pre-training has no methods
                table.add_row(f"  {task}")
            for method, seeds in rows.items():
                table.add_row(f"    {method}" if method else f"  {task}", *_cells(seeds))
        for study in studies:
            runs = tuple(one for one in part.runs if studied.get(one.run.name) == study)
            table.add_row(f"  {study}", *_cells(Costs(runs, costs.gpus)))
    return table


def _cells(group: Costs) -> Sequence[str]:
    to_run, runs = group.to_run, len(group.runs)
    if not to_run:
        return (DONE,)
    known = not group.count(NO_COUNT)
    if without := next((origin for origin in (CANNOT, NO_FLOP) if group.count(origin)), ""):
        return (f"{runs}", "", "", "", without)
    return (
        f"{runs}" if len(to_run) == runs else f"{len(to_run)} of {runs}",
        amount(group.images) if known else "",
        f"{group.flop:.1e}" if known else "",
        "" if group.rate is None else f"{group.rate:,.1f}",
        duration(group.seconds) if group.timed else "" if known else NO_COUNT,
    )


def _disk(uses: Sequence[DiskUse]) -> Table:
    table = table_of(["\ndisk space", "\nfolder"], ["\npresent", "\nneeded"])
    for use in uses:
        present = "yes" if use.present is None else gigabytes(use.present) if use.present else ""
        to_come = "" if use.to_come == 0 else gigabytes(use.to_come)
        table.add_row(use.name, use.folder, present, to_come)
    return table


def table_of(left: Sequence[str], right: Sequence[str] = ()) -> Table:
    """Return a table without lines, with the titles of columns that are aligned left and right."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in (*left, *right):
        table.add_column(column, justify="right" if column in right else "left")
    return table
