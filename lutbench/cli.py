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
    Check,
    DataRoot,
    FeatureRoom,
    Only,
    Overrides,
    ResultsRoot,
    RunsRoot,
    Smoked,
    SuiteName,
    suite_names,
    with_width,
)
from lutbench.cli_report import report
from lutbench.errors import UserError
from lutbench.interruption import Interrupted, hearing, interrupt
from lutbench.kinds import STAGES, TOOLS
from lutbench.system_errors import message

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
    invoke_without_command=True, epilog="Add --traceback to any command to see the Python traceback of an error."
)
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and the git commit, as in the records.")
    ] = False,
) -> None:
    """Pre-train encoders with LUT (Learning with Unmasked Tokens) and MAE (masked autoencoders), evaluate them, and print the measured results beside published ones."""
    if version:
        from lutbench.provenance import code

        print(f"lutbench {code()}")
        raise typer.Exit()


@app.command()
def run(
    suite: SuiteName,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Run only this stage: {', '.join(STAGES[:-1])} or {STAGES[-1]}. Default: all. May be repeated."
        ),
    ] = None,
    only: Only = None,
    again: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Repeat these runs even if they have finished, for example after a code change. NAME: as in --only. May be repeated.",
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
            help="Do N runs in parallel. A run starts when the runs it depends on have finished. On a CPU, the runs share the cores. With "
            "GPUs, each run has one GPU; if N is larger than the number of GPUs, several runs share one and its memory: runs for which "
            "it is not enough fail, and the others continue.",
        ),
    ] = 1,
    smoke: Smoked = None,
) -> None:
    """Run a suite. Finished runs are reused, interrupted runs resume, runs with changed settings start from the beginning."""
    loaded = _load(suite, overrides, results, keep=True)  # first, so that a mistyped name is answered at once
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
    check: Check = False,
    overrides: Overrides = None,
    data_root: DataRoot = Path("data"),
    runs: RunsRoot = Path("runs"),
    results: ResultsRoot = Path("results"),
) -> None:
    """Show the status of every run of a suite (finished, resumable, stale or missing), its result and its folder."""
    loaded = _load(suite, overrides, results)
    from lutbench.status import show_status
    from lutbench.workspace import Workspace

    show_status(loaded, Workspace(data_root, runs, results, download=False), check)


@app.command()
def plan(
    suite: SuiteName,
    only: Only = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="Speed of these runs in images/s, summed over all GPUs of a run. NAME: as in --only, such as pretrain/lut. May be "
            "repeated.",
        ),
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(min=1, help="Sustained FLOP/s of one GPU, for runs without a --rate. 4e14 is high for an H100."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Estimate the hours on this GPU, such as h100, a100 or rtx4090. Uses its data sheet for runs without a measured speed.",
        ),
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Use the speeds measured on this GPU model, see docs/benchmarks.md. Default: that of --gpu, or the only one measured.",
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs per run.")] = 1,
    summary: Annotated[bool, typer.Option("--summary", help="Show one row per stage only.")] = False,
    check: Check = False,
    overrides: Overrides = None,
    data_root: DataRoot = Path("data"),
    runs: RunsRoot = Path("runs"),
    results: ResultsRoot = Path("results"),
) -> None:
    """Show what a suite will need before it runs: images, hours, disk space, and missing data or weights."""
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
    (show_summary if summary else show_plan)(loaded, workspace, given, only or [], check)


@app.command()
def tables(
    suite: SuiteName,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if the existing tables differ from the records.")
    ] = False,
    overrides: Overrides = None,
    results: ResultsRoot = Path("results"),
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Results folder to compare with, runs of the same settings only. Default: RESULTS/reference.",
        ),
    ] = None,
    data_root: Annotated[Path | None, typer.Option(hidden=True)] = None,
    runs: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Rebuild a suite's tables from its records and the published numbers. Needs no data and no GPU.

    Also compares the records with the reference records of the same settings, if there are any.
    """
    for option, folder in (("--data-root", data_root), ("--runs", runs)):
        if folder is not None:
            raise UserError(
                f"{option} {folder}: tables are built only from the records in --results, not from images or runs. Leave {option} out."
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
            raise UserError(f"The tables of {suite} do not match its records. Rebuild them: lutbench tables {suite}.")
        print(f"The tables of {suite} match its records.")
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
            help="SUITE/RUN, such as tiny/downstream/photographs-knn/lut/seed0; or a part of it that matches one run only, such as "
            "photographs-knn/lut; or the path of a record.",
        ),
    ],
    runs: RunsRoot = Path("runs"),
    results: ResultsRoot = Path("results"),
    data_root: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Show what is behind the numbers of a run: its inputs, settings, code, machine and worst mistakes.

    Fails if the record is damaged, or if its numbers do not follow from its per-image outcomes.
    """
    if data_root is not None:
        raise UserError(
            f"--data-root {data_root}: this command reads the record only, not the images. Leave --data-root out."
        )
    from lutbench.record_search import find_record
    from lutbench.show import show_record

    if not show_record(find_record(run, results), runs, results):
        raise typer.Exit(1)


@app.command()
def add(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_NAME", help="A file or folder of weights, or the name of a pre-trained timm model."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="SUITE",
            help="Suite whose tables get the new row: its name or file.",
            autocompletion=suite_names,
        ),
    ],
    label: Annotated[str, typer.Option(help="Name of the row in the tables. Default: the file's name.")] = "",
    part: Annotated[
        str, typer.Option(metavar="NAME", help="Encoder to take if the file has several, such as teacher.backbone.")
    ] = "",
    model: Annotated[
        str, typer.Option(metavar="NAME", help="timm name of the architecture, if the weights do not show it.")
    ] = "",
    image_size: Annotated[
        int | None, typer.Option(min=1, metavar="PIXELS", help="Image size. Default: the encoder's own.")
    ] = None,
    like: Annotated[
        str,
        typer.Option(
            metavar="METHOD", help="Row of the suite whose settings it takes, if there is more than one choice."
        ),
    ] = "",
    heads: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Number of attention heads of a plain ViT, which its weights do not show."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Suite file to write. Default: named after the label.")
    ] = None,
) -> None:
    """Add an encoder as a row to a suite's tables: load the weights, show what was read, and write a short suite file."""
    from lutbench.adding import Choices, add_row

    add_row(weights, to, Choices(label, model, part, image_size, like, heads), file)


@app.command()
def parity(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.npz",
            help="Recorded training steps of the published model. The model's size is read from the array shapes.",
        ),
    ],
) -> None:
    """Compare this LUT training step with recorded steps of the published model: losses, outputs, gradients, weights."""
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
            help="A finished run: its name, such as tiny/pretrain/lut/seed0, a part that matches one run only, or its folder.",
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder, new or empty.")],
    to: Annotated[
        Literal["timm", "huggingface", "mmseg"] | None,
        typer.Option(
            help="Target library: timm (encoders, classifiers); huggingface (Hub and transformers, with a model card built from the "
            "records); mmseg (segmenters, or backbones for your own configs). Default: mmseg for a segmenter, else timm.",
        ),
    ] = None,
    licence: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="Licence of the weights for the model card, such as cc-by-4.0. Default: none is stated.",
        ),
    ] = "",
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Suite file of the records in the model card, if it is not in its usual place. May be repeated.",
        ),
    ] = None,
    runs: RunsRoot = Path("runs"),
    results: ResultsRoot = Path("results"),
) -> None:
    """Export the model of a finished run for use in other libraries. Prints the code that loads it."""
    from lutbench.exporting import export_run

    for line in export_run(run, folder, to, runs=runs, results=results, licence=licence, suites=suite or []):
        print(line)


@app.command()
def doctor(
    data_root: DataRoot = Path("data"), runs: RunsRoot = Path("runs"), results: ResultsRoot = Path("results")
) -> None:
    """Check the installation (Python, packages, GPU, disk, folders) and print a command that fixes each problem. Fails if there is one."""
    from lutbench.doctor import examine, show

    if not show(examine(data_root, runs, results)):
        raise typer.Exit(1)


def _load(suite: str, overrides: list[str] | None, results: Path, keep: bool = False) -> "LoadedSuite":
    from lutbench.recipes.loading import load_suite

    return load_suite(suite, overrides or [], results, keep)


def main() -> None:
    """Perform the command of ``sys.argv``: user errors and Ctrl-C print one paragraph, not a traceback. It ends with SystemExit."""
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
            text = message(error) or (str(error) if isinstance(error, UserError) else "")
            if traced or not text:
                raise
            print(f"lutbench: {text}", file=sys.stderr)
            sys.exit(1)
