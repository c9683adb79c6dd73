"""``lutbench report``: one HTML page for a suite, or for the comparison of two results folders."""

from pathlib import Path
from typing import Annotated

import typer

from lutbench.cli_options import DataRoot, Overrides, ResultsRoot, RunsRoot, suite_names
from lutbench.errors import UserError

LARGE = 15_000_000
"""Bytes beyond which the command says that a page is large."""


def report(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="SUITE | A B",
            help="A suite: tiny, camvid, evidence, small or paper, or the path of a suite file (.toml). Or two results folders to "
            "compare, such as results results/reference.",
            autocompletion=suite_names,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="File to write. Default: reports/SUITE.html or reports/comparison.html in the (first) results folder.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            metavar="SUITE",
            help="With two folders: compare only this suite, a name or the path of its file (.toml). Default: all. May be repeated.",
        ),
    ] = None,
    overrides: Overrides = None,
    data: DataRoot = Path("data"),
    runs: RunsRoot = Path("runs"),
    results: ResultsRoot = Path("results"),
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Results folder for the reference band of the loss curves. Default: RESULTS/reference."
        ),
    ] = None,
) -> None:
    """Write the tables, charts and pictures of a suite as one HTML file, with the origin of every number. Needs no data, GPU or network.

    Images and predicted masks are shown if --data-root and --runs contain those of the records. With two results folders, compare their records instead.
    """
    if len(names) > 2:
        raise UserError(
            f"report: expected one suite or two results folders, found {len(names)} names: {' '.join(names)}."
        )
    if len(names) == 2:
        if overrides or reference:
            raise UserError(
                "report: --set and --reference are for one suite, not for two results folders. Leave them out."
            )
        path = _report_folders(Path(names[0]), Path(names[1]), only or [], data, runs, output)
    else:
        if only:
            raise UserError("report: --suite is for two results folders. For one suite: lutbench report SUITE.")
        if Path(names[0]).is_dir() and (Path(names[0]) / "records").is_dir():
            raise UserError(
                f"{names[0]} is a results folder. For the report of a suite: lutbench report SUITE --results {names[0]}. To compare two "
                f"results folders, give both."
            )
        path = _report_suite(names[0], overrides or [], data, runs, results, reference, output)
    from lutbench.progress import console

    size = path.stat().st_size
    console.print(
        f"Report: {path} ({size / 1e6:.1f} MB); open it in a browser: {path.absolute().as_uri()}", soft_wrap=True
    )
    if size > LARGE:
        console.print(
            f"The page is larger than {LARGE / 1e6:.0f} MB: a browser may take long to open it, and mail servers may refuse it. A suite "
            "file with fewer tasks or methods has a smaller one.",
            soft_wrap=True,
        )


def _report_folders(first: Path, second: Path, suites: list[str], data: Path, runs: Path, output: Path | None) -> Path:
    """Write the comparison of two results folders; return the path of the page."""
    from lutbench.report.html.folder_comparison import comparison_page
    from lutbench.report.html.page import FOLDER
    from lutbench.report.html.rendering import write_page

    path = output or first / FOLDER / "comparison.html"
    write_page(path, comparison_page(first, second, suites, data, runs))
    return path


def _report_suite(
    name: str, overrides: list[str], data: Path, runs: Path, results: Path, reference: Path | None, output: Path | None
) -> Path:
    """Write the report of a suite; return the path of the page."""
    from lutbench.recipes.loading import load_suite

    suite = load_suite(name, overrides, results)
    from lutbench.report.galleries import AtHand
    from lutbench.report.html.page import report_path, write_report
    from lutbench.report.sections import View
    from lutbench.report.tables import all_sections
    from lutbench.workspace import Workspace

    view = View.read(suite, results, reference)
    path = output or report_path(results, suite.name)
    options = Workspace(data, runs, results).options
    write_report(view, all_sections(view), results, path, AtHand(data, runs), options)
    return path
