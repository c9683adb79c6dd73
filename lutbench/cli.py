"""The command line. Stages are imported when they are run, so that help comes at once."""

import io
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lutbench.errors import UserError
from lutbench.interruption import Interrupted, hearing, interrupt
from lutbench.kinds import STAGES, TOOLS

if TYPE_CHECKING:
    from lutbench.recipes.suite import LoadedSuite

app = typer.Typer(
    name="lutbench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(
    help="The image sets that the suite knows: what is there, whether it is whole, how to get it.", no_args_is_help=True
)
app.add_typer(data_app, name="data")

SuiteName = Annotated[
    str, typer.Argument(metavar="SUITE", help="tiny, camvid, small or paper; or the path of a suite file (.toml).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a setting of the suite file, such as pretrain.lut.epochs=20. May be repeated.",
    ),
]
DataRoot = Annotated[
    Path, typer.Option("--data-root", metavar="DIR", envvar="LUTBENCH_DATA", help="Folder that holds the image sets.")
]
RunsRoot = Annotated[
    Path,
    typer.Option(
        "--runs", metavar="DIR", envvar="LUTBENCH_RUNS", help="Folder for checkpoints, weights, logs and pictures."
    ),
]
ResultsRoot = Annotated[
    Path, typer.Option("--results", metavar="DIR", envvar="LUTBENCH_RESULTS", help="Folder for records and tables.")
]


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
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Runs whose name, or consecutive parts of it, match, such as lut, 'photographs-*' or "
            "photographs-knn/lut. May be repeated.",
        ),
    ] = None,
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
) -> None:
    """Run what a suite file says. Finished runs are reused, interrupted ones go on, changed ones start anew."""
    loaded = _load(suite, overrides)  # first, so that a mistyped name is answered at once
    from lutbench.stages import run_suite
    from lutbench.workspace import Workspace

    run_suite(loaded, stage or [], only or [], Workspace(data_root, runs, results), again or [])


@app.command()
def status(
    suite: SuiteName,
    overrides: Overrides = None,
    data_root: DataRoot = Path("data"),
    runs: RunsRoot = Path("runs"),
    results: ResultsRoot = Path("results"),
) -> None:
    """Show every run of a suite: finished, resumable, stale because a setting changed, or missing; its result and folder."""
    loaded = _load(suite, overrides)
    from lutbench.stages import show_status
    from lutbench.workspace import Workspace

    show_status(loaded, Workspace(data_root, runs, results, download=False))


@app.command()
def plan(
    suite: SuiteName,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="Images/s of all GPUs of a run together; NAME as for --only, such as pretrain/lut. May be repeated.",
        ),
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(help="FLOP/s that one GPU keeps up, for runs without a rate: 4e14 of an H100 is much."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that each run is spread over.")] = 1,
    overrides: Overrides = None,
    data_root: DataRoot = Path("data"),
    runs: RunsRoot = Path("runs"),
    results: ResultsRoot = Path("results"),
) -> None:
    """Show what a suite will cost, before anything runs: images, hours, disk, and what is missing."""
    loaded = _load(suite, overrides)
    from lutbench.plan.show import show_plan
    from lutbench.workspace import Workspace

    show_plan(loaded, Workspace(data_root, runs, results, download=False), rate or [], flops, gpus)


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
) -> None:
    """Rebuild a suite's tables from its records and the published numbers. Needs no data and no GPU.

    Where there are reference records of the same recipes, says how these compare with them.
    """
    loaded = _load(suite, overrides)
    from lutbench.report.reference import reference_section
    from lutbench.report.sections import View
    from lutbench.report.tables import all_sections, check_tables, show_tables, write_tables

    view = View.read(loaded, results)
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
            help="A finished segmentation run, such as tiny/downstream/mosaics/lut/seed0, or its folder.",
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made if it is not there.")],
    to: Annotated[Literal["mmseg"], typer.Option(help="What shall load it: MMSegmentation's init_model.")] = "mmseg",
    runs: RunsRoot = Path("runs"),
) -> None:
    """Take a finished run's model away: for MMSegmentation a config and a checkpoint that it loads by itself."""
    from lutbench.run_files import finished_folder

    config, checkpoint = import_module(TOOLS["export"]).export_mmseg(finished_folder(run, runs), folder)
    print(f"mmseg.apis.init_model({str(config)!r}, {str(checkpoint)!r})")
    if (first := config.read_text(encoding="utf-8").splitlines()[0]).startswith("# "):
        print(first.removeprefix("# "))


@data_app.command("list")
def data_list(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Everything about this set.")] = None,
    data_root: DataRoot = Path("data"),
) -> None:
    """List every known set: classes, images, metric, whether it is present; or of one set also how to get it."""
    from lutbench.data.catalogue import find, status_of
    from lutbench.data.describe import render_dataset, render_list
    from lutbench.progress import console

    console.print(render_dataset(status_of(find(name), data_root)) if name else render_list(data_root))


@data_app.command("check")
def data_check(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Every set that is there if not given.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Decode every image and compare all of train and val, not a sample.")
    ] = False,
    data_root: DataRoot = Path("data"),
) -> None:
    """Count a set's images and classes, decode some, name what is missing, broken or in both splits; fails if the set is not whole.

    What was found is kept in DIR/.lutbench/NAME.json, and compared with the next time.
    """
    from lutbench.data.catalogue import present
    from lutbench.data.verify import render_report, verify
    from lutbench.progress import console

    status = 0
    for each in [name] if name else present(data_root):
        report = verify(each, data_root, full)
        console.print(render_report(report))
        status = max(status, report.exit_status)
    if status:
        raise typer.Exit(status)


@data_app.command("prepare")
def data_prepare(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Every set that the suite builds if not given.")
    ] = None,
    side: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Short side of the cache in pixels; 224 if not given, and no cache for sets that the suite builds.",
        ),
    ] = None,
    download: Annotated[
        bool,
        typer.Option("--download", help="Download a set that is not there, where torchvision can; needs a network."),
    ] = False,
    skip_undecodable: Annotated[
        bool,
        typer.Option(
            "--skip-undecodable",
            help='Leave images out of the cache that cannot be decoded, for runs whose data has undecodable = "skip".',
        ),
    ] = False,
    data_root: DataRoot = Path("data"),
) -> None:
    """Build a set that the suite builds; of others, make the cache that pre-training reads with cache = true.

    Its training images, resized once, as bytes: large, and read many times as fast as files. Goes on where it stopped;
    of a cache that is there the checksums are compared. Of a set that is not there, says how to get it.
    """
    from lutbench.data.catalogue import CATALOGUE
    from lutbench.data.prepare import prepare_set
    from lutbench.progress import console

    ready = True
    for each in [name] if name else [known.name for known in CATALOGUE.values() if known.built]:
        prepared = prepare_set(each, data_root, side, download=download, skip_undecodable=skip_undecodable)
        console.print(prepared.text)
        ready = ready and prepared.ready
    if not ready:
        raise typer.Exit(1)


def _load(suite: str, overrides: list[str] | None) -> "LoadedSuite":
    from lutbench.recipes.loading import load_suite

    return load_suite(suite, overrides or [])


def main() -> None:
    """Entry point of ``lutbench`` and ``python -m lutbench``: what a user can mend, and Ctrl-C, is one paragraph, not a traceback."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--traceback"]
    traced = len(arguments) < len(sys.argv) - 1
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
