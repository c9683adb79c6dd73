"""Predictions of all methods on the same images, cut out of ``predictions.png`` in the run folders.

:mod:`downstream.segmentation.predictions` writes this file at the end of a run: image, ground truth and prediction, for six images.
The report shows the predictions of all methods beside each other.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from downstream.segmentation.confusions import Confusions, mean_iou
from downstream.segmentation.sheet import ACROSS, COUNT, FILE, GAP, HEIGHT, pictured
from lutbench.data.scene_folder import choose_palette
from lutbench.data.scenes import ade20k_colours
from lutbench.data.toy.mosaics import PALETTE
from lutbench.errors import listed
from lutbench.record import Record
from lutbench.report.entries import TableEntry
from lutbench.report.galleries import AtHand, Gallery, GallerySection, Shot, ShotRow, packed_picture, spread_out
from lutbench.report.sections import View

MOST_PIXELS = 2**25
"""Larger files are not decoded: no run writes them."""

SHOWN = 4
"""Images shown for each task (our choice)."""

TITLE = "Predictions and ground truth"

ABOUT = (
    "Validation images, evenly spaced in the dataset's order, the same for all methods; with several seeds, those of the first. Ignored "
    "pixels keep the colours of the image. The mIoU below a prediction is over the classes in this image or in its prediction."
)


def predicted_section(view: View, tasks: Sequence[Sequence[TableEntry]], at_hand: AtHand) -> GallerySection | None:
    """Return a gallery for every task with a run folder that has predictions; None if no task has results."""
    found, missing = [], dict[str, None]()
    for of_task in tasks:
        entries = {entry.method: entry for entry in of_task if entry.runs}
        measured = [entry for entry in entries.values() if entry.runs[0].outcomes_file]
        pictures = {entry.method: scenes_of(entry.runs[0], at_hand.runs) for entry in measured}
        names = view.method_names(measured)
        absent = [names[method] for method, scenes in pictures.items() if not scenes]
        shown = [entry for entry in measured if pictures[entry.method]]
        if absent:
            title = view.task_title(measured[0])
            missing[f"{title} ({listed(absent)})" if shown else title] = None
        if shown:
            found.append(_gallery(view, shown, pictures, names))
    if not found and not missing:
        return None
    left_out = (
        f"Not shown: {'; '.join(missing)}. Records contain no predictions; each run writes a few to its folder, as {FILE}. "
        f"`lutbench report {view.suite.given} --runs DIR` shows those of the runs in DIR."
    )
    return GallerySection(TITLE, "\n\n".join([ABOUT] * bool(found) + [left_out] * bool(missing)), found)


Scene = tuple[Image.Image, Image.Image, Image.Image]
"""Image, ground truth, prediction."""


def scenes_of(record: Record, runs: Path | None) -> list[Scene]:
    """Return the scenes in the file that a run wrote below ``runs``; none if there is no such file."""
    if runs is None:
        return []
    path = runs / (record.made_as or f"{record.suite}/{record.run}") / record.identity[:12] / FILE
    try:
        return cut(path.read_bytes(), min(COUNT, record.outcomes.n))
    except (OSError, ValueError, Image.DecompressionBombError):  # absent, or no picture
        return []


def cut(content: bytes, count: int) -> list[Scene]:
    """Return the ``count`` scenes in a file, without the white padding of narrow ones.

    Raises:
        ValueError: if the file does not have the size of that many scenes.
        OSError: if it is no PNG.
    """
    opened = Image.open(io.BytesIO(content), formats=["PNG"])
    across = min(ACROSS, 3 * count)
    width, rest = divmod(opened.width - GAP - across * GAP, across)
    rows = math.ceil(3 * count / across)
    if rest or width < 1 or opened.height != GAP + rows * (HEIGHT + GAP) or opened.width * opened.height > MOST_PIXELS:
        raise ValueError(f"expected a picture of {count} scenes, found one of {opened.width} x {opened.height} pixels")
    sheet = opened.convert("RGB")

    def cell(number: int) -> Image.Image:
        row, column = divmod(number, across)
        left, top = GAP + column * (width + GAP), GAP + row * (HEIGHT + GAP)
        return sheet.crop((left, top, left + width, top + HEIGHT))

    scenes = []
    for scene in range(count):
        cells = [cell(3 * scene + part) for part in range(3)]
        box = (0, 0, _filled(cells), HEIGHT)
        image, truth, prediction = (one.crop(box) for one in cells)
        scenes.append((image, truth, prediction))
    return scenes


def _filled(cells: Sequence[Image.Image]) -> int:
    """Return the width without the columns on the right that are white in all cells; the whole width if all are."""
    inked = np.any([(np.asarray(cell) != 255).any((0, 2)) for cell in cells], 0)
    return int(np.flatnonzero(inked)[-1]) + 1 if inked.any() else cells[0].width


def _gallery(
    view: View, shown: Sequence[TableEntry], pictures: Mapping[str, Sequence[Scene]], names: Mapping[str, str]
) -> Gallery:
    first: Confusions = shown[0].runs[0].outcomes
    indices = pictured(first.n)
    same = [entry for entry in shown if entry.runs[0].outcomes.images == first.images]
    scores = {entry.method: _scores(entry.runs[0].outcomes) for entry in same}
    rows = []
    for place in spread_out(len(indices), SHOWN):
        index = indices[place]
        image, truth, _ = pictures[shown[0].method][place]
        shots = [_shot("image", image), _shot("ground truth", truth)]
        for entry in same:
            prediction = pictures[entry.method][place][2]
            score = scores[entry.method][index]
            detail = "" if np.isnan(score) else f"mIoU {score:.1f} %"
            shots.append(_shot(names[entry.method], prediction, detail, view.colour(entry.method), [entry.runs[0].run]))
        rows.append(ShotRow(first.names[index] if first.names else f"row {index}", "", shots))
    return Gallery(view.task_title(shown[0]), rows, _legend(first, view.dataset(shown[0]), indices))


def _shot(caption: str, picture: Image.Image, detail: str = "", colour: str = "", runs: Sequence[str] = ()) -> Shot:
    return Shot(caption, detail, packed_picture(picture), picture.size, colour, runs)


def _scores(outcomes: Confusions) -> NDArray[np.float64]:
    """Return the mIoU (n,) of every image over the classes that occur in it, in percent; NaN if all pixels are ignored."""
    return 100 * mean_iou(outcomes.areas())


def _legend(outcomes: Confusions, recipe: Any, indices: Sequence[int]) -> list[tuple[str, str]]:
    """Return the classes in the labels or predictions of the pictured images, with their colours."""
    own = np.isin(outcomes.image, indices)
    present = np.unique(np.concatenate([outcomes.label[own], outcomes.prediction[own]])).tolist()
    palette = colours_of(recipe, len(outcomes.classes))
    return [(outcomes.classes[number], "#{:02x}{:02x}{:02x}".format(*palette[number])) for number in present]


def colours_of(recipe: Any, classes: int) -> Sequence[Sequence[int]]:
    """Return the colours of a dataset's classes in ``predictions.png``; needs no data."""
    if recipe.source == "ade20k":
        return list(ade20k_colours().values())
    chosen: Sequence[Sequence[int]] = PALETTE if recipe.source == "mosaics" else recipe.palette
    return chosen or choose_palette(classes)
