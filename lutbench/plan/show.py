"""Prints the plan: a row per group of seeds, then totals, disk, and what is missing."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from lutbench.plan.costs import NO_COUNT, NO_RATE, Costs, Group, Rates, costs_of, read_rates
from lutbench.plan.counts import Counts
from lutbench.plan.disk import Item, items_of, missing, rooms_of, too_little
from lutbench.progress import console
from lutbench.recipes.suite import LoadedSuite
from lutbench.run import Workspace


def show_plan(suite: LoadedSuite, workspace: Workspace, rates: Sequence[str], flops: float | None, gpus: int) -> None:
    """Print what the suite will cost.

    Raises:
        UserError: if a rate is not understood, an encoder cannot be built, or a record is damaged.
    """
    counts = Counts(workspace)
    costs = costs_of(suite, workspace, counts, Rates(read_rates(suite, rates), flops, gpus))
    console.print(suite.suite.title, style="bold")
    console.print(_runs(costs.groups))
    for line in totals(costs):
        console.print(line, soft_wrap=False)
    items = items_of(suite, workspace, counts, costs)
    console.print(_disk(items))
    rooms = rooms_of(workspace)
    for room in rooms:
        console.print(f"{gigabytes(room.free)} free for {room.name} at {room.path}", soft_wrap=True)
    for there, wanted, free in too_little(items, rooms):
        names = " and ".join(room.name for room in there)
        console.print(
            f"It will not fit: {names} need {gigabytes(wanted)} more, and {gigabytes(free)} are free.", style="red"
        )
    told = missing(suite, workspace, counts)
    if told:
        console.print(f"\nMissing ({len(told)}):", style="bold")
    for paragraph in told:
        console.print(paragraph, soft_wrap=False)


def totals(costs: Costs) -> list[str]:
    """The sums below the table, and what they leave out."""
    to_run = len(costs.to_run)
    lines = [f"{to_run} runs to go, {costs.done} finished; {costs.images:,} images, {costs.flop:.2g} FLOP."]
    timed = [cost for cost in costs.to_run if cost.seconds is not None]
    if timed:
        lines.append(
            f"{duration(3600 * costs.hours)} one after another on {costs.gpus} GPU{'s' if costs.gpus > 1 else ''} or CPU: "
            f"{costs.gpu_hours:,.2f} GPU-hours, of {len(timed)} of the {to_run} runs."
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
    return lines


def duration(seconds: float) -> str:
    """``12 s``, ``3.4 min`` or ``1,203.5 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def gigabytes(count: int | None) -> str:
    """``1.3 GB``, or ``unknown``."""
    if count is None:
        return "unknown"
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _runs(groups: Sequence[Group]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("run", "to go", "million\nimages", "FLOP", "images\n/s", "from", "time"):
        table.add_column(column, no_wrap=True, justify="left" if column in ("run", "from") else "right")
    stage = ""
    for group in groups:
        if group.stage != stage:
            stage = group.stage
            table.add_row(Text(stage, style="bold"))
        number = f"{len(group.costs)}" if not group.done else f"{len(group.costs)} of {group.runs}"
        if not group.costs:
            table.add_row(f"  {group.name}", "done")
            continue
        table.add_row(
            f"  {group.name}",
            number,
            "" if group.images is None else f"{group.images / 1e6:,.3f}",
            "" if group.flop is None else f"{group.flop:.1e}",
            "" if group.rate is None else f"{group.rate:,.1f}",
            ", ".join(group.origins),
            "" if group.seconds is None else duration(group.seconds),
        )
    return table


def _disk(items: Sequence[Item]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("\ndisk", "\nin", "\nthere", "\nto come"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("\nthere", "\nto come") else "left")
    for item in items:
        there = "yes" if item.here is None else gigabytes(item.here) if item.here else ""
        coming = "" if item.to_come == 0 else gigabytes(item.to_come)
        table.add_row(item.what, item.folder, there, coming)
    return table
