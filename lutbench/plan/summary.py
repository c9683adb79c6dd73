"""Print a short plan: a row per stage, then disk space, what is missing, and what to do next."""

from collections.abc import Mapping, Sequence
from shlex import quote
from textwrap import shorten

from lutbench.data.survey import HUB, DiskUse
from lutbench.errors import listed
from lutbench.files import gigabytes
from lutbench.plan.costs import DONE, NO_COUNT, Costs, Rates, costs_of, narrowed
from lutbench.plan.disk import by_disk, disk_uses, rooms_of
from lutbench.plan.show import amount, how_to_time, origins, table_of
from lutbench.plan.surveys import foreseen, missing, survey_all
from lutbench.progress import console, print_table
from lutbench.recipes.suite import LoadedSuite
from lutbench.refusals import paragraphs
from lutbench.workspace import Workspace

NAMED = 6
"""Maximum number of missing datasets that are named."""

TOLD = 230
"""Maximum length of a problem or a warning, in characters."""


def show_summary(
    suite: LoadedSuite, workspace: Workspace, rates: Rates, only: Sequence[str] = (), check: bool = False
) -> None:
    """Print the costs of a suite, or of the runs that ``only`` chooses, on a screen of 24 lines and 80 columns.

    ``check`` as for :func:`lutbench.plan.show.show_plan`.

    Raises:
        UserError: if a record is damaged, or ``only`` chooses no run.
    """
    suite = narrowed(suite, only)
    surveys = survey_all(suite, workspace)
    costs = costs_of(suite, workspace, surveys, rates, only)
    uses = disk_uses(costs, surveys, workspace)
    with console.capture():  # notes about the weights of each row, which the long plan prints
        known, refused = missing(costs, surveys, check)
    problems = list(dict.fromkeys(refused.values()))
    console.print(suite.config.title, style="bold")
    _print_stages(costs)
    lines = [*_budgets(suite), *origins(costs, rates), *_disk(uses, workspace), suite.joined]
    if known:
        lines.append(_missing(known))
    if problems:
        causes = len(paragraphs(suite, refused))
        more = f" (and {causes - 1} more)" if causes > 1 else ""
        lines.append(f"Problem{more}: {shorten(problems[0], TOLD, placeholder=' ...')}")
    if warned := foreseen(costs, surveys):
        lines.append(f"Warning: {shorten(paragraphs(suite, warned)[0], TOLD, placeholder=' ...')}")
    lines += [_next(suite, costs, bool(known), bool(problems), only), how_to_time(costs)]
    for line in filter(None, lines):
        console.print(line, soft_wrap=False)


def _missing(known: Mapping[str, str]) -> str:
    """Return which known datasets are missing; if it is only one, also what is missing of it."""
    if len(known) > 1:
        return f"{len(known)} datasets are missing: {listed(known, NAMED)}."
    ((name, problem),) = known.items()
    return f"1 dataset is missing, {name}: {shorten(problem.removeprefix(f'{name}: '), TOLD, placeholder=' ...')}"


def _print_stages(costs: Costs) -> None:
    machine = "1 GPU" if costs.gpus == 1 else f"{costs.gpus} GPUs"
    table = table_of(["stage"], ["to do", "images", "FLOP", "GPU hours", f"days on {machine}"])
    for stage, part in [*costs.by("stage").items(), ("all", costs)]:
        to_run = len(part.to_run)
        hours = (_tenths(part.gpu_hours), _tenths(part.seconds / 86400)) if part.timed else ("", "")
        whole = to_run == len(part.timed)
        table.add_row(
            stage,
            f"{to_run} of {len(part.runs)}" if 0 < to_run < len(part.runs) else f"{to_run or DONE}",
            *((amount(part.images), f"{part.flop:.1e}") if part.count(NO_COUNT) < to_run else ("", "")),
            *(f"{cell}{'' if whole or not cell else '+'}" for cell in hours),
            style="bold" if part is costs else None,
        )
    print_table(table)
    timed, to_run = len(costs.timed), len(costs.to_run)
    if 0 < timed < to_run:
        console.print(f"+: sum over {timed} of the {to_run} runs only.", soft_wrap=False)
    if uncounted := costs.count(NO_COUNT):
        some = "1 run uses a dataset" if uncounted == 1 else f"{uncounted} runs use datasets"
        console.print(f"{some} of unknown size: not in the sums.", soft_wrap=False)


def _budgets(suite: LoadedSuite) -> list[str]:
    """Return a line for each unit of budgets, with the runs whose epochs follow from those of another run; and the first poor match."""
    found: dict[str, list[str]] = {}
    for name, one in suite.budgets.items():
        said = f"{name} {one.epochs:,} epochs = {one.like} {one.like_epochs:,} ({100 * one.excess:+.1f} %)"
        found.setdefault("FLOP" if one.unit == "flop" else one.unit, []).append(said)
    poor = [f"pretrain.{name}: {one.poor}." for name, one in suite.budgets.items() if one.poor]
    return [*(f"Equal {unit}: {listed(said, 3)}." for unit, said in found.items()), *poor[:1]]


def _tenths(number: float) -> str:
    return "<0.1" if 0 < number < 0.05 else f"{number:,.1f}"


def _disk(uses: Sequence[DiskUse], workspace: Workspace) -> list[str]:
    """Return a line for each disk, and one for the cache of the Hugging Face Hub, whose disk is not examined."""
    lines = []
    for rooms, wanted, free in by_disk(uses, rooms_of(workspace)):
        folders = listed([room.name for room in rooms])
        fits = "" if wanted <= free else ": this will not fit"
        lines.append(f"Disk space for {folders}: {gigabytes(wanted)} needed, {gigabytes(free)} free{fits}.")
    if fetched := sum(use.to_come or 0 for use in uses if use.folder == HUB):
        lines.append(f"{HUB}: {gigabytes(fetched)} needed.")
    return lines


def _next(suite: LoadedSuite, costs: Costs, missing_sets: bool, problems: bool, only: Sequence[str]) -> str:
    given = " ".join([suite.given, *(f"--only {quote(pattern)}" for pattern in only)])
    if costs.count(DONE) == len(costs.runs):
        return f"All runs have finished. Next: lutbench tables {suite.given}."
    steps = ["get the missing datasets (lutbench data list NAME says how)"] if missing_sets else []
    steps += ["fix the problems"] if problems else []
    steps.append(f"lutbench run {given}")
    return f"Next: {', then '.join(steps)}. All details: lutbench plan {given}."
