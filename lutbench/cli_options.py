"""Arguments and options that several commands of the command line have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

SuiteName = Annotated[
    str,
    typer.Argument(
        metavar="SUITE", help="tiny, camvid, evidence, small or paper; or the path of a suite file (.toml)."
    ),
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
Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Runs whose name, or consecutive parts of it, match, such as lut, 'photographs-*' or photographs-knn/lut; or a study, "
        "such as sweep.weight, with what it starts from. May be repeated.",
    ),
]
FeatureRoom = Annotated[
    float,
    typer.Option(
        "--features",
        metavar="GB",
        min=0,
        envvar="LUTBENCH_FEATURES",
        help="Room below --runs for features of frozen encoders, which probes share, and crops, which encoders do; what was used longest ago goes first.",
    ),
]
ResultsRoot = Annotated[
    Path, typer.Option("--results", metavar="DIR", envvar="LUTBENCH_RESULTS", help="Folder for records and tables.")
]
WIDTHS = ("own", "toy")
Smoked = Annotated[
    Literal["own", "toy"] | None,
    typer.Option(
        "--smoke",
        metavar="[own|toy]",
        help="Try every run in minutes, on a few images and for a few steps, apart from the real runs and marked: with the suite's own "
        "encoders, or with toy ones of the same kinds. What of the data is not there is drawn in miniature.",
    ),
]


def with_width(arguments: list[str]) -> list[str]:
    """Return arguments in which ``--smoke`` has a width: ``own`` where none follows it."""
    found = []
    for place, argument in enumerate(arguments):
        found.append(argument)
        if argument == "--smoke" and (place + 1 == len(arguments) or arguments[place + 1] not in WIDTHS):
            found.append("own")
    return found
