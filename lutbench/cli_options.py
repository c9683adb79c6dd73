"""Arguments and options that several commands of the command line have."""

from pathlib import Path
from typing import Annotated

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
        help="Room below --runs for features of frozen encoders, which probes share; what was used longest ago goes first.",
    ),
]
ResultsRoot = Annotated[
    Path, typer.Option("--results", metavar="DIR", envvar="LUTBENCH_RESULTS", help="Folder for records and tables.")
]
