"""``lutbench data``: the commands about image sets."""

from pathlib import Path
from typing import Annotated

import typer

from lutbench.cli_options import DataRoot

data_app = typer.Typer(
    help="The image sets that the suite knows: what is there, whether it is whole, how to get it.", no_args_is_help=True
)


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
