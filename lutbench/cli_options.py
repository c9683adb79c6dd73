"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from lutbench.smoke import Width


def suite_names(incomplete: str) -> list[str]:
    """Return the shipped suites and the suite files of the current folder that begin with ``incomplete``, for shell completion."""
    from importlib.resources import files

    shipped = sorted(
        path.name.removesuffix(".toml") for path in files("suites").iterdir() if path.name.endswith(".toml")
    )
    beside = sorted(path.name for path in Path().glob("*.toml") if path.name != "pyproject.toml")
    return [name for name in (*shipped, *beside) if name.startswith(incomplete)]


SuiteName = Annotated[
    str,
    typer.Argument(
        metavar="SUITE",
        help="tiny, camvid, evidence, small or paper, or the path of a suite file (.toml).",
        autocompletion=suite_names,
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
    Path, typer.Option("--data-root", metavar="DIR", envvar="LUTBENCH_DATA", help="Folder of the datasets.")
]
RunsRoot = Annotated[
    Path,
    typer.Option(
        "--runs", metavar="DIR", envvar="LUTBENCH_RUNS", help="Folder of checkpoints, weights, logs and pictures."
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Only runs with this name, or these consecutive parts of it, such as lut, 'photographs-*' or photographs-knn/lut; or a "
        "study, such as sweep.weight, with the runs it depends on. May be repeated.",
    ),
]
FeatureRoom = Annotated[
    float,
    typer.Option(
        "--features",
        metavar="GB",
        min=0,
        envvar="LUTBENCH_FEATURES",
        help="Disk space in --runs for cached features of frozen encoders, shared by probes, and cached crops, shared by encoders. The "
        "least recently used are removed first.",
    ),
]
ResultsRoot = Annotated[
    Path, typer.Option("--results", metavar="DIR", envvar="LUTBENCH_RESULTS", help="Folder of records and tables.")
]
Check = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Also find what would stop the runs to come, as lutbench run does before it starts. Builds their models: takes seconds.",
    ),
]
Smoked = Annotated[
    Width | None,
    typer.Option(
        "--smoke",
        metavar="[own|toy]",
        help="Test every run in minutes, with few images and few steps: own uses the suite's encoders, toy small ones of the same kind. "
        "Missing datasets are replaced by tiny synthetic ones. The results are marked and kept apart from real runs.",
    ),
]


def with_width(arguments: list[str]) -> list[str]:
    """Return the arguments with ``own`` added after a ``--smoke`` that has no value."""
    found = []
    for place, argument in enumerate(arguments):
        found.append(argument)
        if argument == "--smoke" and (place + 1 == len(arguments) or arguments[place + 1] not in get_args(Width)):
            found.append("own")
    return found
