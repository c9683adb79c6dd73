"""Image sets of Hugging Face `datasets`: by name on the Hub, or local (``save_to_disk``, Parquet, Arrow, ImageFolder)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from lutbench.data.decoding import Pixels, decode, decode_pixels
from lutbench.data.folder import fingerprint_of
from lutbench.data.layout import OTHER_NAMES
from lutbench.data.walking import evenly_spaced
from lutbench.errors import UserError, listed, nearest
from lutbench.files import read_json
from lutbench.recipes.base import DataRecipe

HASHED_IMAGES = 1024
"""At most this many images, evenly spaced, go into the fingerprint byte by byte."""


Encoded = TypedDict("Encoded", {"bytes": bytes | None, "path": str | None})  # noqa: UP013 - bytes would hide the type
"""An image as a row has it: its bytes, or the path of its file."""


@dataclass
class HuggingFaceImages:
    """One split of a `datasets` set."""

    name: str
    split: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64] | None
    skip_undecodable: bool
    fingerprint: str
    column: str = field(repr=False)
    rows: datasets.Dataset = field(repr=False)
    sizes: NDArray[np.int64] = field(repr=False)
    """(n,) Bytes of each encoded image; -1 for a row without one."""
    folder: Path
    """The folder from which relative paths of images lead on."""
    bits: int | None = None
    """As for :class:`lutbench.data.folder.FolderImages`."""

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        """Return an image, mode RGB.

        Raises:
            UndecodableImage: naming the row and its file.
            UserError: if a file that a row names cannot be read at all.
        """
        encoded = self.rows[index][self.column]
        return decode(self._read(index, encoded), self._label(index, encoded), self.bits)

    def pixels(self, index: int) -> Pixels:
        """Return the pixels (H, W, 3) of :meth:`image`. Raises as that does."""
        encoded = self.rows[index][self.column]
        return decode_pixels(self._read(index, encoded), self._label(index, encoded), self.bits)

    def content(self, index: int) -> bytes:
        """Return the image as its row has it, encoded; empty if there is none.

        Raises:
            UserError: if a file that the row names cannot be read.
        """
        return self._read(index, self.rows[index][self.column])

    def image_name(self, index: int) -> str:
        """Return a name made of the split and the row."""
        return f"{self.split}/{index:08d}"

    def at(self, index: NDArray[np.int64]) -> "HuggingFaceImages":
        """Return the images ``index`` (n,), ascending, with all classes."""
        return replace(
            self,
            labels=None if self.labels is None else self.labels[index],
            fingerprint=fingerprint_of([*self.classes], self.fingerprint.encode(), index),
            rows=self.rows.select(index),
            sizes=self.sizes[index],
        )

    def _read(self, index: int, encoded: Encoded | None) -> bytes:
        try:
            return _content(encoded, self.folder)
        except OSError as error:
            raise UserError(
                f"{self._label(index, encoded)} cannot be read: {error.strerror}. Its row names a file: put it back."
            ) from error

    def _label(self, index: int, encoded: Encoded | None) -> str:
        file = f" ({encoded['path']})" if encoded and encoded["path"] else ""
        return f"{self.name}, {self.image_name(index)}{file}"


def open_huggingface(recipe: DataRecipe, split: str, root: Path) -> HuggingFaceImages:
    """Open a split: of what lies at ``recipe.path`` below ``root`` if something does, else of the Hub's set of that name.

    The fingerprint is the sha256 over class names, labels, the byte length of every encoded image and the bytes of at
    most :data:`HASHED_IMAGES` of them, evenly spaced: equal on every machine and however the rows are stored,
    which `datasets`' own fingerprint (of files and the calls that made them) is not. A set of more images can change
    in a single image of the same length without its being noticed.

    Raises:
        UserError: if the set, split or column is not there, or the columns do not hold images and labels.
    """
    name = recipe.label or recipe.path
    rows = _load(recipe, recipe.train if split == "train" else recipe.val, root)
    if not len(rows):
        raise UserError(f"{name}: split {split!r} of {recipe.path} has no rows.")
    require_column(rows.column_names, recipe.image_column, f"{name}: image_column")
    kind = rows.features[recipe.image_column]
    if not _holds_images(kind):
        columns = [column for column, found in rows.features.items() if isinstance(found, datasets.Image)]
        raise UserError(
            f"{name}: image_column = {recipe.image_column!r} should hold images, their bytes or the paths of their files, and holds "
            f"{kind}.{f' Images are in {listed(columns)}.' if columns else ''}"
        )
    classes, labels = _labels(rows, recipe.label_column, name)
    rows = rows.select_columns([recipe.image_column]).cast_column(recipe.image_column, datasets.Image(decode=False))
    local = root / recipe.path
    folder = (local if local.is_dir() else local.parent).absolute()
    try:
        sizes = _sizes(rows, recipe.image_column, folder)
        hashed = evenly_spaced(len(rows), HASHED_IMAGES).tolist()
        contents = [_content(rows[index][recipe.image_column], folder) for index in hashed]
    except (OSError, ValueError) as error:
        file = getattr(error, "filename", None)
        raise UserError(
            f"{name}, split {split!r}: image_column = {recipe.image_column!r} names files, and {file or 'one of them'} cannot be read: "
            f"{getattr(error, 'strerror', None) or error}. Relative paths lead on from {folder}: does it hold the files, and "
            "is it the column of paths?"
        ) from error
    return HuggingFaceImages(
        name=name,
        split=split,
        classes=tuple(classes),
        labels=labels,
        skip_undecodable=recipe.undecodable == "skip",
        fingerprint=fingerprint_of(classes, np.array([]) if labels is None else labels, sizes, *contents),
        column=recipe.image_column,
        rows=rows,
        sizes=sizes,
        folder=folder,
    )


def _holds_images(kind: object) -> bool:
    """Return whether a column is of images, of their bytes, of their files' paths, or of ``{bytes, path}`` without saying that it is of images."""
    if isinstance(kind, dict):
        return kind.keys() == {"bytes", "path"}
    return isinstance(kind, datasets.Image) or (
        isinstance(kind, datasets.Value) and any(held in kind.dtype for held in ("binary", "string"))
    )


def _load(recipe: DataRecipe, split: str, root: Path) -> datasets.Dataset:
    local, config = root / recipe.path, recipe.config or None
    try:
        if any((local / saved).is_file() for saved in (f"{split}/state.json", "state.json", "dataset_dict.json")):
            return _load_saved(local, split)
        part = split.partition("[")[0]
        if (archive := local / f"{part}.zip").is_file() and not (local / part).exists():
            # Unpacked first: given the archive itself, datasets 5.2 takes the name of its folder for the class.
            unpacked = datasets.DownloadManager().extract(str(archive.absolute()))
            return datasets.load_dataset("imagefolder", data_files={part: f"{unpacked}/**"}, split=split)
        if local.is_dir():
            return datasets.load_dataset(str(local), config, split=split)
        if local.suffix in (".parquet", ".arrow") and local.is_file():
            return datasets.load_dataset(local.suffix[1:], data_files=str(local), split=split)
        return datasets.load_dataset(recipe.path, config, split=split, revision=recipe.revision)
    except RuntimeError as error:
        raise script_refused(recipe, error) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        hub = f" (nothing is there), then for {recipe.path!r} on the Hub, which needs a network"
        role, cause = "train" if split == recipe.train else "val", cause_of(error)
        others = [name for name in OTHER_NAMES[role] if f"'{name}'" in cause and name != split]
        likely = f' Did you mean {role} = "{others[0]}"?' if others else ""
        raise UserError(
            f"{recipe.label or recipe.path}: split {split!r} could not be opened: {cause}{likely} Looked for a local set at "
            f"{local.absolute()}{'' if local.exists() else hub}. Check path, train and val; `lutbench data list` shows the known sets."
        ) from error


def script_refused(recipe: DataRecipe, error: RuntimeError) -> UserError:
    """Return the error that a set has no rows to read, but a program that makes them, which `datasets` does not run."""
    return UserError(
        f"{recipe.label or recipe.path}: {recipe.path} could not be opened: {str(error).rstrip('.')}. If a program of its authors "
        'loads it, take the rows that the Hub has made with that: revision = "refs/convert/parquet" in the suite file; or, of a '
        "folder, save them as Parquet files."
    )


def _load_saved(folder: Path, split: str) -> datasets.Dataset:
    """Open a split, or a part of it such as ``train[:80%]``, of what ``save_to_disk`` wrote: a dictionary of sets, or one set.

    One set is the split that it was when it was saved, ``train`` if none; it is also what an empty name stands for.

    Raises:
        ValueError: if there is no such split.
    """
    if (folder / split / "state.json").is_file():
        return datasets.load_from_disk(folder / split)
    if (folder / "state.json").is_file():
        parts = {read_json(folder / "state.json").get("_split") or "train": folder}
    else:
        parts = {name: folder / name for name in read_json(folder / "dataset_dict.json")["splits"]}
    opened = {name: datasets.load_from_disk(part) for name, part in parts.items()}
    try:
        ranges = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(opened[name]) for name in opened})
    except ValueError:
        only = next(iter(opened))
        advice = f'. Parts are {only}[:80%] and {only}[80%:]; val = "" is for a set that is only pre-trained on'
        raise ValueError(f"it is saved with the splits {list(opened)}{advice if len(opened) == 1 else ''}") from None
    return datasets.concatenate_datasets([opened[r.splitname].select(range(r.from_, r.to)) for r in ranges])


def cause_of(error: BaseException) -> str:
    """Return the innermost cause of an error of `datasets` as a sentence, with a suite's setting in the place of Python's calls."""
    while (inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = inner
    message = re.split(r"\n?\s*Example of usage", str(error))[0].strip().rstrip(".") or type(error).__name__
    if "onfig name is missing" in message or "BuilderConfig" in message:
        message += ". Name one of them with config in the data table of the suite file"
    return " ".join(message.split()) + "."


def require_column(columns: Sequence[str], column: str, setting: str, where: str = "the set") -> None:
    """Raise UserError if ``column``, which the message calls ``setting``, is none of the ``columns`` that are ``where``."""
    if column not in columns:
        raise UserError(
            f"{setting} = {column!r}: {where} has no such column.{nearest(column, columns)} Columns: {', '.join(columns)}."
        )


def _labels(rows: datasets.Dataset, column: str, name: str) -> tuple[list[str], NDArray[np.int64] | None]:
    """Class names and labels: of a ClassLabel column its own, of any other its sorted distinct values."""
    if not column:
        return [], None
    require_column(rows.column_names, column, f"{name}: label_column")
    values = rows.select_columns([column]).with_format("arrow")[:][column]
    kind = rows.features[column]
    if not isinstance(kind, datasets.ClassLabel | datasets.Value) or pa.types.is_floating(values.type):
        raise UserError(f"{name}: label_column = {column!r} should hold one class per row, and holds {kind}.")
    unknown = values.null_count
    if isinstance(kind, datasets.ClassLabel):
        unknown += pc.sum(pc.less(values, 0)).as_py() or 0
    if unknown:
        raise UserError(
            f"{name}: {unknown} of {len(rows)} rows have no label in column {column!r}. "
            'Choose a split with labels, or set label_column = "" to use the images without labels.'
        )
    if isinstance(kind, datasets.ClassLabel):
        return list(kind.names), values.to_numpy().astype(np.int64)
    known, labels = np.unique(values.to_numpy(), return_inverse=True)
    return [str(value) for value in known], labels.astype(np.int64)


def _sizes(rows: datasets.Dataset, column: str, folder: Path) -> NDArray[np.int64]:
    """Return the bytes (n,) of every encoded image; -1 for a row without one. Raises OSError if a file is not there."""
    encoded = rows.with_format("arrow")[:][column] if rows._indices is not None else rows.data.column(column)
    lengths: NDArray[np.int64] = (
        pc.fill_null(pc.binary_length(pc.struct_field(encoded, "bytes")), -1).to_numpy().astype(np.int64)
    )
    paths = pc.struct_field(encoded, "path")
    for index in np.flatnonzero(lengths < 0):  # rows that name a file instead of holding it
        path = paths[int(index)].as_py()
        lengths[index] = (folder / path).stat().st_size if path else -1
    return lengths


def _content(encoded: Encoded | None, folder: Path) -> bytes:
    """Return the encoded image of a row; empty if there is none."""
    if encoded is None:
        return b""
    content, path = encoded["bytes"], encoded["path"]
    if content is not None:
        return content
    return (folder / path).read_bytes() if path else b""
