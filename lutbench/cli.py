"""The command line. Stages are imported when they are run, so that help comes at once."""

import io
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lutbench.cli_cluster import submit
from lutbench.cli_data import data_app
from lutbench.cli_options import (
    DataRoot,
    FeatureRoom,
    Only,
    Overrides,
    ResultsRoot,
    RunsRoot,
    Smoked,
    SuiteName,
    with_width,
)
from lutbench.cli_report import report
from lutbench.errors import UserError
from lutbench.interruption import Interrupted, hearing, interrupt
from lutbench.kinds import STAGES, TOOLS

if TYPE_CHECKING:
    from lutbench.recipes.suite import LoadedSuite

app = typer.Typer(
    name="lutbench",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")


@app.callback(
    invoke_without_command=True, epilog="--traceback, anywhere in a command: show where in the code an error came from."
)
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print version and git commit, as records have them.")
    ] = False,
) -> None:
    """Pre-train LUT and MAE, measure the encoders, and print the paper's tables beside what was measured."""
    if version:
        from lutbench.provenance import code

        print(f"lutbench {code()}")
        raise typer.Exit()


@app.command()
def run(
    suite: SuiteName,
    stage: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(STAGES[:-1])} or {STAGES[-1]}; all stages if not given. May be repeated."),
    ] = None,
    only: Only = None,
    again: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Repeat these runs if they have finished, as after a change of the code; NAME as for --only. May be repeated.",
        ),
    ] = None,
    overrides: Overrides = None,
    data_root: DataRoot = Path("data"),
    runs: RunsRoot = Path("runs"),
    results: ResultsRoot = Path("results"),
    features: FeatureRoom = 20,
    jobs: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Do N runs side by side, each as soon as what it needs has finished: on a CPU within its cores, on GPUs one run on each, "
            "and several on one where N is more than there are.",
        ),
    ] = 1,
    smoke: Smoked = None,
) -> None:
    """Run what a suite file says. Finished runs are reused, interrupted ones go on, changed ones start anew."""
    loaded = _load(suite, overrides, results, keep=True)  # first, so that a mistyped name is answered at once
    from lutbench.allocator import keep_freed_memory

    keep_freed_memory()  # before torch allocates anything
    from lutbench.progress import console
    from lutbench.stages import run_suite
    from lutbench.workspace import Workspace

    for name, budget in loaded.budgets.items() if os.environ.get("RANK", "0") == "0" and smoke is None else ():
        console.print(budget.sentence(name, with_file=True), soft_wrap=True)
    workspace = Workspace(data_root, runs, results, feature_bytes=round(features * 1e9))
    if smoke is not None:
        from lutbench.smoke.command import smoke_suite

        smoke_suite(loaded, stage or [], only or [], workspace, again or [], smoke, jobs)
        return
    run_suite(loaded, stage or [], only or [], workspace, again or [], jobs)


app.command()(submit)


@app.command()
def status(
    suite: SuiteName,
    overrides: Overrides = None,
    data_root: DataRoot = Path("data"),
    runs: RunsRoot = Path("runs"),
    results: ResultsRoot = Path("results"),
) -> None:
    """Show every run of a suite: finished, resumable, stale because a setting changed, or missing; its result and folder."""
    loaded = _load(suite, overrides, results)
    from lutbench.status import show_status
    from lutbench.workspace import Workspace

    show_status(loaded, Workspace(data_root, runs, results, download=False))


@app.command()
def plan(
    suite: SuiteName,
    only: Only = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="Images/s of all GPUs of a run together; NAME as for --only, such as pretrain/lut. May be repeated.",
        ),
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(min=1, help="FLOP/s that one GPU keeps up, for runs without a rate: 4e14 of an H100 is much."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Estimate the hours on a GPU, such as h100, a100 or rtx4090, from its data sheet, where it was not measured.",
        ),
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Take what was measured on this card, see docs/benchmarks.md; if not given, on that of --gpu, or on the only one.",
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that each run is spread over.")] = 1,
    summary: Annotated[bool, typer.Option("--summary", help="Show what fits a screen: a row per stage.")] = False,
    overrides: Overrides = None,
    data_root: DataRoot = Path("data"),
    runs: RunsRoot = Path("runs"),
    results: ResultsRoot = Path("results"),
) -> None:
    """Show what a suite, or a part of it, will cost, before anything runs: images, hours, disk, and what is missing."""
    loaded = _load(suite, overrides, results)
    from lutbench.plan.gpus import find_gpu

    asked = find_gpu(gpu) if gpu else None
    from lutbench.plan.costs import Rates, read_rates
    from lutbench.plan.measured import choose_card, measured_cards
    from lutbench.plan.show import show_plan
    from lutbench.plan.summary import show_summary
    from lutbench.workspace import Workspace

    measured = choose_card(measured_cards(), card, gpu, flops)
    given = Rates(read_rates(loaded, rate or []), flops, gpus, asked, measured, named=card is not None)
    workspace = Workspace(data_root, runs, results, download=False)
    (show_summary if summary else show_plan)(loaded, workspace, given, only or [])


@app.command()
def tables(
    suite: SuiteName,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if the tables there differ from the records.")
    ] = False,
    overrides: Overrides = None,
    results: ResultsRoot = Path("results"),
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Records to compare these with, of the same recipes; RESULTS/reference if not given, as the repository has.",
        ),
    ] = None,
    data_root: Annotated[Path | None, typer.Option(hidden=True)] = None,
    runs: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Rebuild a suite's tables from its records and the published numbers. Needs no data and no GPU.

    Where there are reference records of the same recipes, says how these compare with them.
    """
    for option, folder in (("--data-root", data_root), ("--runs", runs)):
        if folder is not None:
            raise UserError(
                f"{option} {folder}: tables are made from records alone, in --results, and need no images and no runs. Leave {option} out."
            )
    loaded = _load(suite, overrides, results)
    from lutbench.report.reference import reference_section
    from lutbench.report.sections import View
    from lutbench.report.tables import all_sections, check_tables, show_tables, write_tables

    view = View.read(loaded, results, reference)
    sections = all_sections(view)
    if check:
        differences = check_tables(view, sections, results)
        if differences:
            print("\n".join(differences))
            raise UserError(
                f"The tables of {suite} are not what its records say. Rebuild them: lutbench tables {suite}."
            )
        print(f"The tables of {suite} are what its records say.")
        return
    beside = reference_section(view, results, reference)  # refuses a folder without records before anything is written
    write_tables(view, sections, results)
    show_tables(view, [*sections, *([beside] if beside else [])], results)


app.command()(report)


@app.command()
def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="SUITE/RUN, such as tiny/downstream/photographs-knn/lut/seed0, or a part of it that no other run has, such as "
            "photographs-knn/lut; or the path of a record.",
        ),
    ],
    runs: RunsRoot = Path("runs"),
    results: ResultsRoot = Path("results"),
    data_root: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Show everything behind a run's numbers: what it came from, its recipe, code and machine, and what it is most wrong about.

    Fails if its record is not whole, or its outcomes do not give its numbers.
    """
    if data_root is not None:
        raise UserError(f"--data-root {data_root}: a record is shown as it is, without images. Leave --data-root out.")
    from lutbench.record_search import find_record
    from lutbench.show import show_record

    if not show_record(find_record(run, results), runs, results):
        raise typer.Exit(1)


@app.command()
def add(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_NAME", help="A file or folder of weights, or timm's name of a model that has some."
        ),
    ],
    to: Annotated[str, typer.Option(metavar="SUITE", help="The suite whose tables the row is for, by name or file.")],
    label: Annotated[str, typer.Option(help="How tables name the row; the file's name if not given.")] = "",
    part: Annotated[
        str, typer.Option(metavar="NAME", help="Which of several encoders in the file, such as teacher.backbone.")
    ] = "",
    model: Annotated[
        str, typer.Option(metavar="NAME", help="timm's name of the architecture, if the weights do not tell it.")
    ] = "",
    image_size: Annotated[
        int | None, typer.Option(min=1, metavar="PIXELS", help="Side of the images that it sees; its own if not given.")
    ] = None,
    like: Annotated[
        str, typer.Option(metavar="METHOD", help="The row of the suite beside which it stands, if that is not clear.")
    ] = "",
    heads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="How many heads a plain ViT has, which its weights do not show."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="The suite file to write; named by the label if not given.")
    ] = None,
) -> None:
    """Make somebody's encoder a row of a suite's tables: try the weights, say what was read, and write a suite file of a few lines."""
    from lutbench.adding import Choices, add_row

    add_row(weights, to, Choices(label, model, part, image_size, like, heads), file)


@app.command()
def parity(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.npz", help="Steps of the published model; its geometry is read from the shapes in the file."
        ),
    ],
) -> None:
    """Compare the LUT step with recorded steps of the published model: losses, outputs, gradients, weights."""
    from lutbench.progress import print_table

    parity = import_module(TOOLS["parity"])
    rows = parity.check_parity(file)
    print_table(parity.parity_table(rows))
    if not all(row.passed for row in rows):
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A finished run: tiny/pretrain/lut/seed0, parts of that which no other has, or its folder.",
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder to write to.")],
    to: Annotated[
        Literal["timm", "huggingface", "mmseg"] | None,
        typer.Option(
            help="What shall load it: timm (encoders and classifiers), the Hugging Face Hub and transformers, with a model card made "
            "from the records, or MMSegmentation (segmenters; backbones for your own configs). If not given, mmseg for a segmenter, "
            "else timm.",
        ),
    ] = None,
    licence: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="Licence of the weights in the model card, such as cc-by-4.0; none is stated if not given.",
        ),
    ] = "",
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="Suite file that the model card's records are of, if it is elsewhere. May be repeated."
        ),
    ] = None,
    runs: RunsRoot = Path("runs"),
    results: ResultsRoot = Path("results"),
) -> None:
    """Take a finished run's model away, for libraries that know nothing of this suite; prints the lines that load it."""
    from lutbench.exporting import export_run

    for line in export_run(run, folder, to, runs=runs, results=results, licence=licence, suites=suite or []):
        print(line)


@app.command()
def doctor(
    data_root: DataRoot = Path("data"), runs: RunsRoot = Path("runs"), results: ResultsRoot = Path("results")
) -> None:
    """Say what is wrong with this installation, and the line that mends it: Python, packages, GPU, disk, folders. Fails if something is."""
    from lutbench.doctor import examine, show

    if not show(examine(data_root, runs, results)):
        raise typer.Exit(1)


def _load(suite: str, overrides: list[str] | None, results: Path, keep: bool = False) -> "LoadedSuite":
    from lutbench.recipes.loading import load_suite

    return load_suite(suite, overrides or [], results, keep)


def main() -> None:
    """Entry point of ``lutbench`` and ``python -m lutbench``: what a user can mend, and Ctrl-C, is one paragraph, not a traceback."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--traceback"]
    traced = len(arguments) < len(sys.argv) - 1
    arguments = with_width(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    with hearing(interrupt):
        try:
            app(arguments)
        except Interrupted as stop:
            if traced:
                raise
            if os.environ.get("RANK", "0") == "0":  # torchrun interrupts all processes
                print(f"lutbench: {stop}", file=sys.stderr)
            sys.exit(stop.exit_status)
        except Exception as error:
            from lutbench.files import explanation  # here, because it needs pydantic

            found = explanation(error)
            if traced or not (found or isinstance(error, UserError)):
                raise
            file = f": {name}" if (name := getattr(error, "filename", None)) else ""
            print(
                f"lutbench: {f'{found[0]}{file}. {found[1]}, and give the same command again.' if found else error}",
                file=sys.stderr,
            )
            sys.exit(1)
