"""The images of each task that only one method classifies correctly; shown, up to a few, if the data is there."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lutbench.errors import UserError, listed
from lutbench.evaluate.image_names import folder_of_class, labelled_names
from lutbench.evaluate.outcomes import Outcomes
from lutbench.recipes.downstream import EncoderSource
from lutbench.record import Record
from lutbench.report.entries import TableEntry
from lutbench.report.galleries import AtHand, Gallery, GallerySection, Shot, ShotRow, packed_picture, spread_out
from lutbench.report.sections import View, by_task
from lutbench.workspace import Workspace

MOST = 6
"""Images shown for each method and task at most (our choice)."""

PICTURES = 600
"""Images shown of all methods and tasks together (our choice: 2.5 MB of the page); with many rows, each has fewer than :data:`MOST`."""

SIDE = 96
"""Side of an image on the page, in pixels."""

TITLE = "Images that only one method classifies correctly"

ABOUT = (
    "Classified correctly by all runs of one method (all seeds and draws), and by no run of any other method of the task. If there are more "
    "than {most}, those shown are evenly spaced in the dataset's order; nobody chose them. The predictions of the others are those of "
    "their first runs."
)


def alone_section(view: View, at_hand: AtHand) -> GallerySection | None:
    """Return a gallery for every classification task with results of two methods or more; None if there is no such task.

    Raises:
        UserError: if the outcomes of a record are missing or damaged.
    """
    images = _Images(view, at_hand)
    tasks = [entries for of_task in by_task(view.of_methods) if len(entries := _comparable(view, of_task)) > 1]
    if not tasks:
        return None
    rows = sum(map(len, tasks))
    most = max(1, min(MOST, PICTURES // rows))
    found = [_gallery(view, entries, images, most) for entries in tasks]
    few = (
        f"No more than {most} for each of the {rows} methods and tasks, to keep the page small." if most < MOST else ""
    )
    return GallerySection(TITLE, "\n\n".join(filter(None, (ABOUT.format(most=most), few, images.left_out))), found)


def alone_right(right: Mapping[str, Sequence[NDArray[np.bool_]]]) -> dict[str, NDArray[np.int64]]:
    """Return for each method the images that all of its runs classify correctly, and no run of another method; ``right``: an array (n,) per run."""
    ever = {method: np.any(runs, 0) for method, runs in right.items()}
    times = np.sum([*ever.values()], 0)
    return {method: np.flatnonzero(np.all(runs, 0) & (times == 1)) for method, runs in right.items()}


def _gallery(view: View, entries: Sequence[TableEntry], images: "_Images", most: int) -> Gallery:
    outcomes: dict[str, list[Outcomes]] = {entry.method: [run.outcomes for run in entry.runs] for entry in entries}
    first = outcomes[entries[0].method][0]
    alone = alone_right({method: [one.right() for one in runs] for method, runs in outcomes.items()})
    names, labels = labelled_names(first.names, len(first.label)), view.method_names(entries)
    folders = folder_of_class(first.names, first.label)

    def named(label: int) -> str:
        """Return the name of a class: that of the folder that contains its images, or its number."""
        return folders.get(label) or f"class {label}"

    rows, without = [], []
    for entry in entries:
        index = alone[entry.method]
        if not len(index):
            without.append(labels[entry.method])
            continue
        chosen = index[spread_out(len(index), most)].tolist()
        pictures = images.pictures(entry, [names[place] for place in chosen])
        others = [runs[0].prediction for method, runs in outcomes.items() if method != entry.method]
        shots = []
        for place, (picture, side) in zip(chosen, pictures, strict=True):
            taken = dict.fromkeys(named(int(prediction[place])) for prediction in others)
            caption = named(int(first.label[place]))
            if not picture:
                caption = f"{names[place]} ({caption})"
            shots.append(Shot(caption, f"others: {listed(taken, 3)}", picture, (side, side)))
        shown = f", {len(shots)} of them here" if len(index) > len(shots) else ""
        counted = f"{len(index):,} of {len(names):,} images{shown}"
        runs = [run.run for of in entries for run in of.runs]
        rows.append(ShotRow(labels[entry.method], counted, shots, view.colour(entry.method), runs))
    note = f"No such image among {len(names):,}: {'; '.join(without)}." if without else ""
    return Gallery(view.task_title(entries[0]), rows, note=note)


def _comparable(view: View, of_task: Sequence[TableEntry]) -> list[TableEntry]:
    """Return one entry for each method of a task with outcomes on the same images; none for a task that includes snapshots.

    Snapshots are one pre-training run at several times, not methods of their own.
    """
    entries = [entry for entry in {e.method: e for e in of_task}.values() if entry.runs]
    sources = [run.recipe.source for run in view.suite.runs if (run.stage, run.task) == of_task[0].row[:2]]
    if any(isinstance(source, EncoderSource) and source.at < 1 for source in sources):
        return []
    kept = [e for e in entries if e.kind.outcomes is Outcomes and all(run.outcomes_file for run in e.runs)]
    images = [{run.outcomes.images for run in entry.runs} for entry in kept]
    return [entry for entry, of in zip(kept, images, strict=True) if of == images[0] and len(of) == 1]


class _Images:
    """The validation images of the suite's tasks, as far as they are there, and the reasons why others are not."""

    def __init__(self, view: View, at_hand: AtHand) -> None:
        self.view, self.missing = view, dict[str, dict[str, None]]()
        self.workspace = at_hand.data and Workspace(at_hand.data, Path("runs"), Path("results"), download=False)
        self._places = dict[str, dict[str, int]]()

    @property
    def left_out(self) -> str:
        """A line that says which images are not shown, why, and how to show them; empty if all are shown."""
        told = "; ".join(f"images of {listed(sets)} ({why})" for why, sets in self.missing.items())
        again = f"`lutbench report {self.view.suite.given} --data-root DIR` shows them if DIR contains the images of these runs."
        return f"Not shown: {told}. {again}" if told else ""

    def pictures(self, entry: TableEntry, names: Sequence[str]) -> list[tuple[str, int]]:
        """Return images as on the page, each with its side in pixels, cropped as in the evaluation of the row; empty texts if they are not there."""
        recipe: Any = next(run for run in self.view.suite.runs if run.row == entry.row).recipe
        try:
            images = self._open(recipe.dataset, entry.runs[0])
            return [_thumb(images.image(place), recipe.side, recipe.eval_crop) for place in self._placed(images, names)]
        except (_NotAtHand, UserError) as error:  # of an image too, such as one that cannot be decoded
            why = str(error) if isinstance(error, _NotAtHand) else "cannot be read"
        self.missing.setdefault(why, {})[recipe.dataset.label or recipe.dataset.path or recipe.dataset.source] = None
        return [("", 0) for _ in names]

    def _open(self, recipe: Any, record: Record) -> Any:
        """Return the validation images, checked to be those of the record's run."""
        if not self.workspace:
            raise _NotAtHand("no data root was given")
        root = self.workspace.data
        if getattr(recipe, "streaming", False):
            raise _NotAtHand("streamed datasets are not read")
        if recipe.source != "huggingface" and not (root / recipe.folder).exists():  # the suite would build its own
            raise _NotAtHand("not found in the data root")
        images = self.workspace.open(recipe, "val")
        if images.fingerprint != record.identity_inputs.get("data", {}).get("val"):
            raise _NotAtHand("the images in the data root differ from those of these runs")
        return images

    def _placed(self, images: Any, names: Sequence[str]) -> list[int]:
        if images.fingerprint not in self._places:
            self._places[images.fingerprint] = {images.image_name(place): place for place in range(len(images))}
        places = self._places[images.fingerprint]
        if not places.keys() >= set(names):
            raise _NotAtHand("the records contain no image names")  # or the fingerprint would be another
        return [places[name] for name in names]


class _NotAtHand(Exception):
    """Says why images cannot be shown."""


def _thumb(image: Image.Image, side: int, crop: float) -> tuple[str, int]:
    """Return the centre crop of the evaluation, at most :data:`SIDE` pixels on a side, and its side."""
    short = math.floor(side / crop + 1e-6)
    half = min(image.size) * min(1.0, side / short) / 2
    x, y = image.width / 2, image.height / 2
    small = min(SIDE, side)
    made = image.resize(
        (small, small), Image.Resampling.LANCZOS, (x - half, y - half, x + half, y + half), reducing_gap=3
    )
    return packed_picture(made), small
