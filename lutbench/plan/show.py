"""Prints the plan: a row per group of seeds below its stage's sum, then totals, disk, and what is missing."""

from collections.abc import Sequence

from rich.table import Table

from lutbench.errors import listed
from lutbench.files import gigabytes
from lutbench.plan.costs import MEASURED, NO_COUNT, NO_RATE, Costs, Group, Rates, costs_of, read_rates
from lutbench.plan.datasets import Surveys, missing
from lutbench.plan.disk import Item, demands_of, items_of, rooms_of
from lutbench.progress import console, print_table
from lutbench.recipes.suite import LoadedSuite
from lutbench.workspace import Workspace


def show_plan(suite: LoadedSuite, workspace: Workspace, rates: Sequence[str], flops: float | None, gpus: int) -> None:
    """Print what the suite will cost.

    Raises:
        UserError: if a rate is not understood, an encoder cannot be built, or a record is damaged.
    """
    surveys = Surveys(workspace)
    costs = costs_of(suite, workspace, surveys, Rates(read_rates(suite, rates), flops, gpus))
    console.print(suite.config.title, style="bold")
    print_table(_runs(costs))
    for line in totals(costs):
        console.print(line, soft_wrap=False)
    items = items_of(suite, workspace, surveys, costs)
    print_table(_disk(items))
    rooms = rooms_of(workspace)
    for there, wanted, free in demands_of(items, rooms):
        folders = listed([f"{room.name} ({room.path})" for room in there])
        console.print(f"{folders}: {gigabytes(wanted)} to come, {gigabytes(free)} free.")
        if wanted > free:
            console.print("It will not fit.", style="red")
    known_sets, told = missing(suite, surveys)
    if known_sets:
        print_table(_missing(known_sets))
        told.insert(
            0,
            "How to get one: lutbench data list NAME. What is counted above is with all of them; a run measures "
            "on the shifted sets that are there.",
        )
    for paragraph in told:
        console.print(f"\n{paragraph}", soft_wrap=False)


def totals(costs: Costs) -> list[str]:
    """The sums below the table, what they leave out, and what they rest on."""
    to_run = len(costs.to_run)
    lines = [f"{to_run} runs to go, {costs.done} finished; {costs.images:,} images, {costs.flop:.2g} FLOP."]
    timed = [cost for cost in costs.to_run if cost.seconds is not None]
    if timed:
        machine = "one GPU, or the CPU" if costs.gpus == 1 else f"{costs.gpus} GPUs"
        which = "" if len(timed) == to_run else f", of {len(timed)} of the {to_run} runs"
        lines.append(
            f"{duration(costs.seconds)} one after another on {machine}: {costs.gpu_hours:,.2f} GPU-hours{which}."
        )
    unrated = sum(cost.origin == NO_RATE for cost in costs.to_run)
    if unrated:
        lines.append(
            f"{unrated} runs have no rate: none was measured. Give one, --rate NAME=IMAGES_PER_SECOND, or what a GPU keeps up, "
            "--flops 4e14."
        )
    uncounted = sum(cost.origin == NO_COUNT for cost in costs.to_run)
    if uncounted:
        lines.append(f"{uncounted} runs are on sets of unknown size, which are not there: they are in no sum.")
    lines += [f"Rates of {runs} runs were measured on {hardware}." for hardware, runs in costs.measured.items()]
    if any(cost.origin == MEASURED and cost.demand.train > cost.demand.evaluate > 0 for cost in timed):
        lines.append("Evaluating an image is taken to be as slow as training on one, which was measured.")
    return lines


def duration(seconds: float) -> str:
    """``12 s``, ``3.4 min`` or ``1,203.5 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def amount(count: int) -> str:
    """``98,304`` or ``2,049.9 M``."""
    return f"{count:,}" if count < 1e5 else f"{count / 1e6:,.1f} M"


def _runs(costs: Costs) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("run")
    for column in ("to go", "images", "FLOP", "images/s", "time"):
        table.add_column(column, justify="right")
    for stage, part in costs.of_stages().items():
        time = duration(part.seconds) if part.seconds else ""
        table.add_row(stage, str(len(part.to_run)), amount(part.images), f"{part.flop:.1e}", "", time, style="bold")
        task = ""
        for group in part.groups:
            if group.method and group.task != task:
                task = group.task
                table.add_row(f"  {task}")
            table.add_row(f"    {group.method}" if group.method else f"  {group.task}", *_cells(group))
    return table


def _cells(group: Group) -> Sequence[str]:
    if not group.costs:
        return ("done",)
    return (
        f"{len(group.costs)} of {group.runs}" if group.done else f"{group.runs}",
        "" if group.images is None else amount(group.images),
        "" if group.flop is None else f"{group.flop:.1e}",
        "" if group.rate is None else f"{group.rate:,.1f}",
        group.lacks if group.seconds is None else duration(group.seconds),
    )


def _disk(items: Sequence[Item]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("\ndisk", "\nin", "\nthere", "\nto come"):
        table.add_column(column, justify="right" if column in ("\nthere", "\nto come") else "left")
    for item in items:
        there = "yes" if item.present is None else gigabytes(item.present) if item.present else ""
        coming = "" if item.to_come == 0 else gigabytes(item.to_come)
        table.add_row(item.what, item.folder, there, coming)
    return table


def _missing(known_sets: dict[str, str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(f"\nmissing sets ({len(known_sets)})")
    table.add_column("")
    for name, lacks in known_sets.items():
        table.add_row(name, lacks)
    return table
