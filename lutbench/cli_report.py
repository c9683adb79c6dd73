"""``lutbench report``: a suite on a page, or two folders of results beside each other."""

from pathlib import Path
from typing import Annotated

import typer

from lutbench.cli_options import Overrides, ResultsRoot
from lutbench.errors import UserError


def report(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="SUITE | A B",
            help="A suite: tiny, camvid, evidence, small or paper, or the path of a suite file (.toml). Or two folders of results to compare, "
            "such as results results/reference.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="The file to write; reports/SUITE.html, or reports/comparison.html, in the (first) folder of results if not given.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--suite", metavar="NAME", help="Of two folders, the suites to compare; all if not given. May be repeated."
        ),
    ] = None,
    overrides: Overrides = None,
    results: ResultsRoot = Path("results"),
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Records whose loss curves stand behind these; RESULTS/reference if not given."
        ),
    ] = None,
) -> None:
    """Write a suite's tables, charts and pictures as one HTML file, with what is behind every number. Needs no data, GPU or network.

    With two folders of results, how their records compare.
    """
    if len(names) > 2:
        raise UserError(
            f"report: expected one suite or two folders of results, found {len(names)} names: {' '.join(names)}."
        )
    if len(names) == 2:
        if overrides or reference:
            raise UserError(
                "report: --set and --reference are for one suite; two folders are compared by what their records say."
            )
        first, second = map(Path, names)
        from lutbench.report.html.folder_comparison import comparison_page
        from lutbench.report.html.page import FOLDER, write_page

        path = output or first / FOLDER / "comparison.html"
        write_page(path, comparison_page(first, second, only or []))
    else:
        if only:
            raise UserError(
                "report: --suite is for two folders of results. Give the one suite as it is: lutbench report SUITE."
            )
        if Path(names[0]).is_dir() and (Path(names[0]) / "records").is_dir():
            raise UserError(
                f"{names[0]} is a folder of results. Name the suite, and the folder by --results; or give a second folder to compare it with."
            )
        from lutbench.recipes.loading import load_suite

        suite = load_suite(names[0], overrides or [], results)
        from lutbench.report.html.page import report_path, write_report
        from lutbench.report.sections import View
        from lutbench.report.tables import all_sections

        view = View.read(suite, results, reference)
        path = output or report_path(results, suite.name)
        write_report(view, all_sections(view), results, path)
    from lutbench.progress import console

    console.print(
        f"Report: {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser: {path.absolute().as_uri()}",
        soft_wrap=True,
    )
