"""``lutbench run SUITE --smoke``: prepare the inputs, run, and build the tables and the report."""

from collections.abc import Sequence

from lutbench.errors import UserError
from lutbench.progress import console
from lutbench.recipes.suite import LoadedSuite
from lutbench.report.galleries import AtHand
from lutbench.report.html.page import report_path, write_report
from lutbench.report.sections import View
from lutbench.report.tables import all_sections, show_tables, write_tables
from lutbench.smoke import Width
from lutbench.smoke.inputs import lay_out
from lutbench.smoke.shortened import Smoke, smoke_workspace, smoked
from lutbench.stages import run_suite
from lutbench.train.processes import accelerator
from lutbench.workspace import Workspace


def smoke_suite(
    suite: LoadedSuite,
    stages: Sequence[str],
    only: Sequence[str],
    workspace: Workspace,
    again: Sequence[str],
    width: Width,
    jobs: int = 1,
) -> None:
    """Do smoke runs of the chosen runs of a suite, up to the tables and the report, apart from real runs, see :mod:`lutbench.smoke`.

    Raises:
        UserError: at the end, like :func:`lutbench.stages.run_suite`, after the tables of the completed runs.
    """
    processes = accelerator()
    apart = smoke_workspace(workspace, width)
    smoke = Smoke(width, apart.runs, workspace.data, processes.num_processes)
    changed = smoked(suite, smoke)
    changed.chosen(stages, only)  # a mistyped name is answered before anything is written
    apart.make()
    if processes.is_main_process:
        lay_out(changed, smoke)
    processes.wait_for_everyone()
    failure: UserError | None = None
    try:
        run_suite(changed, stages, only, apart, again, jobs)
    except UserError as error:
        failure = error
    if processes.is_main_process:
        view = View.read(changed, apart.results)
        sections = all_sections(view)
        write_tables(view, sections, apart.results)
        show_tables(view, sections, apart.results)
        path = report_path(apart.results, changed.name)
        write_report(view, sections, apart.results, path, AtHand(apart.data, apart.runs), apart.options)
        console.print(f"Report: {path}", soft_wrap=True)
    if failure is not None:
        raise failure
