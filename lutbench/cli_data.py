"""``lutbench data``: the commands about datasets."""

from pathlib import Path
from typing import Annotated

import typer

from lutbench.cli_options import DataRoot

data_app = typer.Typer(
    help="Datasets: which are present, whether they are complete, how to get them.", no_args_is_help=True
)


@data_app.command("list")
def data_list(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the details of this dataset.")] = None,
    data_root: DataRoot = Path("data"),
) -> None:
    """List the known datasets: classes, images, metric, and whether they are present. With NAME, also how to get it."""
    from lutbench.data.catalogue import find, status_of
    from lutbench.data.describe import render_dataset, render_list
    from lutbench.progress import console

    console.print(render_dataset(status_of(find(name), data_root)) if name else render_list(data_root))


@data_app.command("check")
def data_check(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Dataset to check. Default: every dataset present.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Decode every image and compare all of train and val, not only a sample.")
    ] = False,
    data_root: DataRoot = Path("data"),
) -> None:
    """Check a dataset: count images and classes, decode a sample, find images that are missing, broken or in both splits.

    Fails if the dataset is not complete. Saves the result in DIR/.lutbench/NAME.json and compares it with the next check.
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
        str | None,
        typer.Argument(metavar="NAME", help="Dataset to prepare. Default: every dataset that lutbench builds itself."),
    ] = None,
    side: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Short side of the cached images in pixels. Default: 224; no cache for datasets that lutbench builds itself.",
        ),
    ] = None,
    download: Annotated[
        bool,
        typer.Option("--download", help="Download a missing dataset, if torchvision can. Needs a network."),
    ] = False,
    skip_undecodable: Annotated[
        bool,
        typer.Option(
            "--skip-undecodable",
            help='Leave images that cannot be decoded out of the cache, for runs whose dataset has undecodable = "skip".',
        ),
    ] = False,
    data_root: DataRoot = Path("data"),
) -> None:
    """Prepare a dataset: build it if lutbench builds it itself, else build the cache that pre-training reads with cache = true.

    The cache has the training images, resized once, as raw bytes: large, but much faster to read than image files. An
    interrupted build resumes. The checksums of an existing cache are verified. For a missing dataset, prints how to get it.
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
