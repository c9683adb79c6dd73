"""Pictures of an analysis: images, attention maps, principal components of features, and reconstructions.

A record stores small arrays for eight images, the same for all encoders. The pictures are drawn from these arrays alone, for one encoder or
for all encoders of a table.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lutbench.report.figures import label_figure, new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

Pixels = NDArray[np.uint8]

CELL = 144
"""Pixels on a side of what is drawn of an image; a toy's image is enlarged by a whole number to at least as many."""
GAP = 4
"""Pixels between cells; between the images that rows share and what is above them twice as many."""
DPI = 120
RATIOS = 8.0
"""Attention is drawn on a logarithmic scale from 1/8 to 8 times uniform attention (our choice)."""
BLUE_TO_RED = ("#4a7fc1", "#ffffff", "#c43c39")
"""Below, at and above uniform attention: told apart by colour-blind readers, and light enough to show the image below them."""

OF_ATTENTION = (
    "Attention to each patch, mean over heads, divided by the mean over all patches; the same scale everywhere. Uniform attention leaves "
    "the image grey.\nThe marked patch has a frame."
)
OF_COMPONENTS = (
    "The first three principal components of all patches of these images, as red, green and blue, from the 1st to the 99th "
    "percentile each. Compare outlines, not colours, between encoders."
)
OF_RECONSTRUCTIONS = (
    "Visible patches show the original image; encoders with the same mask unit have the same mask.\nIf targets were normalised per patch, the "
    "mean and standard deviation of masked patches are taken from the image: coarse colours are given, not predicted."
)


class PictureRow(NamedTuple):
    """What pictures of an encoder are drawn from."""

    label: str
    images: bytes
    """PNG of the images side by side, as :func:`picture_strip` makes it."""
    arrays: Mapping[str, NDArray[Any]]
    """By the names of a record's arrays, so many as a picture needs: ``maps`` (P, 8, 2, G, G) attention of P blocks from the
    class token and from the marked patch; ``colours`` (8, G, G, 3); ``reconstructions`` (3, 8, S, S, 3)."""
    extra: Mapping[str, Any]
    """As a record's: ``drawn blocks``, ``marked`` [row, column], ``mask ratios``; ``first query`` if it is no class token."""


class _Line(NamedTuple):
    """A line of cells."""

    label: str
    cells: Sequence[Image.Image]
    is_first: bool = False
    """Whether it has the images that the lines below it are of."""


def principal_colours(tokens: "Tensor") -> Pixels:
    """Return the first three principal components of all patches together as colours (B, G, G, 3), from tokens (B, N, D) of a square grid.

    The sign of a component is such that its largest loading is positive; its values from the 1st to the 99th percentile become 0
    to 255 (our choice: a few patches do not darken the others).
    """
    images, patches, width = tokens.shape
    side = int(patches**0.5)
    features = tokens.detach().double().cpu().numpy().reshape(-1, width)
    features = features - features.mean(0)
    loadings = np.linalg.eigh(features.T @ features)[1][:, ::-1][:, :3]
    loadings = loadings * np.sign(loadings[np.abs(loadings).argmax(0), np.arange(loadings.shape[1])])
    values = features @ loadings
    low, high = np.percentile(values, (1, 99), axis=0)
    scaled = (values - low) / np.maximum(high - low, np.finfo(np.float64).tiny)
    colours: Pixels = (255 * scaled.clip(0, 1)).round().astype(np.uint8).reshape(images, side, side, 3)
    return colours


def picture_strip(images: "Tensor") -> bytes:
    """Return images (B, 3, S, S) uint8 side by side as a PNG, S x B S pixels."""
    pixels = images.cpu().numpy().transpose(2, 0, 3, 1)
    file = io.BytesIO()
    Image.fromarray(pixels.reshape(pixels.shape[0], -1, 3)).save(file, "PNG")
    return file.getvalue()


def run_pictures(
    label: str, images: bytes, arrays: Mapping[str, NDArray[Any]], extra: Mapping[str, Any], folder: Path
) -> None:
    """Write what a run leaves of its own encoder: ``attention.png``, ``components.png`` and, with a decoder, ``reconstructions.png``.

    ``images``, ``arrays`` and ``extra`` are the record's, see :class:`PictureRow`; ``label`` says which encoder it is.

    Raises:
        UserError: on a full disk.
    """
    rows = [PictureRow(label, images, arrays, extra)]
    blocks = range(len(extra["drawn blocks"]))
    write_figure(folder / "attention.png", attention_picture(f"{label}: attention", rows, blocks))
    write_figure(folder / "components.png", component_picture(f"{label}: principal components of the output", rows))
    if "reconstructions" in arrays:
        write_figure(folder / "reconstructions.png", reconstruction_picture(f"{label}: reconstructions", rows))


def attention_picture(title: str, rows: Sequence[PictureRow], drawn: Sequence[int], note: str = "") -> "Figure":
    """Draw where the class token and the marked patch look, a line of images for each, encoder and block.

    ``drawn`` are the blocks by their places among those that are in a record, from 0.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    colours = LinearSegmentedColormap.from_list("attention", BLUE_TO_RED)
    scale = ScalarMappable(LogNorm(1 / RATIOS, RATIOS), colours)
    lines = []
    for images, of_images in _by_images(rows, "marked"):
        marked, grid = of_images[0].extra["marked"], of_images[0].arrays["maps"].shape[-1]
        lines.append(_Line("images", [_framed(image, marked, grid) for image in images], is_first=True))
        grey = [np.asarray(image.convert("L").convert("RGB"), np.float64) for image in images]
        for row in of_images:
            queries = (row.extra.get("first query", "class token"), "marked patch")
            for place in drawn:
                maps = row.arrays["maps"][place].astype(np.float64)  # (8, 2, G, G)
                ratios = maps / maps.mean((-2, -1), keepdims=True)
                laid = scale.to_rgba(ratios.reshape(-1), bytes=True)[:, :3].reshape(*ratios.shape, 3)  # (8, 2, G, G, 3)
                for number, query in enumerate(queries):
                    cells = [_over(image, of[number]) for image, of in zip(grey, laid, strict=True)]
                    if number:
                        cells = [_framed(cell, marked, grid) for cell in cells]
                    lines.append(_Line(f"{row.label}\nblock {row.extra['drawn blocks'][place]}, {query}", cells))
    figure = _picture(title, lines, OF_ATTENTION, note)
    bar = figure.colorbar(scale, ax=figure.axes, location="bottom", shrink=0.5, aspect=50, pad=0.01, extend="both")
    ticks = [2.0**power for power in range(-3, 4)]
    bar.set_ticks(ticks, labels=["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    bar.minorticks_off()
    bar.set_label("attention / uniform attention", fontsize="small")
    return figure


def component_picture(title: str, rows: Sequence[PictureRow], note: str = "") -> "Figure":
    """Draw the first three principal components of the output's patches as colours, a line for each encoder."""
    lines = []
    for images, of_images in _by_images(rows, "marked"):
        lines.append(_Line("images", images, is_first=True))
        lines += [_Line(row.label, _cells(row.arrays["colours"], images[0].width)) for row in of_images]
    return _picture(title, lines, OF_COMPONENTS, note)


def reconstruction_picture(title: str, rows: Sequence[PictureRow], note: str = "") -> "Figure":
    """Draw what decoders make of images of which patches are masked: for each share that is masked a line for each encoder."""
    lines = []
    for images, of_images in _by_images(rows, "mask ratios"):
        lines.append(_Line("images", images, is_first=True))
        for place, share in enumerate(of_images[0].extra["mask ratios"]):
            lines += [
                _Line(
                    f"{row.label}\n{100 * share:.0f} % masked",
                    _cells(row.arrays["reconstructions"][place], images[0].width),
                )
                for row in of_images
            ]
    return _picture(title, lines, OF_RECONSTRUCTIONS, note)


def _by_images(rows: Sequence[PictureRow], alike: str) -> Iterator[tuple[list[Image.Image], list[PictureRow]]]:
    """Yield rows that have the same images, and in ``extra`` the same under the name ``alike``, with the images, enlarged."""
    groups: dict[Any, list[PictureRow]] = {}
    for row in rows:
        groups.setdefault((row.images, tuple(row.extra[alike])), []).append(row)
    for (strip, *_), of_images in groups.items():
        pixels = np.asarray(Image.open(io.BytesIO(strip)).convert("RGB"))
        side = len(pixels)
        images = pixels.reshape(side, -1, side, 3).swapaxes(0, 1)
        yield _cells(images, side * -(-CELL // side) if side < CELL else CELL), of_images


def _cells(arrays: NDArray[np.uint8], side: int) -> list[Image.Image]:
    """Return pictures (B, S, S, 3) with ``side`` pixels on a side: every pixel a square where they are enlarged."""
    how = Image.Resampling.NEAREST if arrays.shape[1] <= side else Image.Resampling.LANCZOS
    return [Image.fromarray(np.ascontiguousarray(one)).resize((side, side), how) for one in arrays]


def _over(grey: NDArray[np.float64], colours: NDArray[np.uint8]) -> Image.Image:
    """Return an image (S, S, 3) in grey with colours (G, G, 3) laid over it: multiplied, so that white changes nothing."""
    (laid,) = _cells(colours[None], len(grey))
    pale = 0.5 * grey + 0.5 * 255  # dark images would swallow the colours
    return Image.fromarray((pale * np.asarray(laid, np.float64) / 255).round().astype(np.uint8))


def _framed(image: Image.Image, marked: Sequence[int], grid: int) -> Image.Image:
    """Return an image with a frame around the patch ``marked`` (row, column): black and yellow, which is seen on anything."""
    copy = image.copy()
    side = image.width / grid
    top, left = (round(place * side) for place in marked)
    box = (left, top, round(left + side) - 1, round(top + side) - 1)
    draw = ImageDraw.Draw(copy)
    draw.rectangle((box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3), outline="black", width=1)
    draw.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), outline="#ffe600", width=2)
    return copy


def _picture(title: str, lines: Sequence[_Line], *below: str) -> "Figure":
    """Return a figure of lines of cells, one below the other, each with its label at the left."""
    width = max(GAP + sum(cell.width + GAP for cell in line.cells) for line in lines)
    tops: list[int] = []
    height = 0
    for line in lines:
        height += 2 * GAP if line.is_first and tops else 0
        tops.append(height)
        height += line.cells[0].height + GAP
    canvas = Image.new("RGB", (width, height), "white")
    for line, top in zip(lines, tops, strict=True):
        for number, cell in enumerate(line.cells):
            canvas.paste(cell, (GAP + number * (cell.width + GAP), top))
    longest = max(len(part) for line in lines for part in line.label.split("\n"))
    figure = new_figure(width / DPI + 0.3 + 0.075 * longest, height / DPI + 1.2)
    figure.set_layout_engine("compressed")  # for axes whose shape is given
    axes = figure.subplots()
    axes.imshow(np.asarray(canvas))
    middles = [top + line.cells[0].height / 2 for line, top in zip(lines, tops, strict=True)]
    axes.set_yticks(middles, [line.label for line in lines], fontsize="small")
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    label_figure(figure, title, *below)
    return figure
