"""Datasets of Hugging Face `datasets`: by name on the Hub, or local (``save_to_disk``, Parquet, Arrow, ImageFolder)."""

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
"""Maximum number of images, evenly spaced, whose bytes go into the fingerprint."""


Encoded = TypedDict("Encoded", {"bytes": bytes | None, "path": str | None})  # noqa: UP013 - bytes would hide the type
"""An image in a row: its bytes, or the path of its file."""


@dataclass
class HuggingFaceImages:
    """One split of a Hugging Face dataset."""

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
    """The folder to which relative image paths refer."""
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
        """Return the pixels (H, W, 3) of :meth:`image`. Raises the same errors."""
        encoded = self.rows[index][self.column]
        return decode_pixels(self._read(index, encoded), self._label(index, encoded), self.bits)

    def content(self, index: int) -> bytes:
        """Return the encoded image of a row; empty if there is none.

        Raises:
            UserError: if a file that the row names cannot be read.
        """
        return self._read(index, self.rows[index][self.column])

    def image_name(self, index: int) -> str:
        """Return a name made of the split and the row."""
        return f"{self.split}/{index:08d}"

    def at(self, index: NDArray[np.int64]) -> "HuggingFaceImages":
        """Return the subset with the ascending indices ``index`` (n,); all classes are kept."""
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
                f"{self._label(index, encoded)} cannot be read: {error.strerror}. The row refers to this file: restore it."
            ) from error

    def _label(self, index: int, encoded: Encoded | None) -> str:
        file = f" ({encoded['path']})" if encoded and encoded["path"] else ""
        return f"{self.name}, {self.image_name(index)}{file}"


def open_huggingface(recipe: DataRecipe, split: str, root: Path) -> HuggingFaceImages:
    """Open a split of the dataset at ``recipe.path`` below ``root`` if it exists there, else of the dataset of that name on the Hub.

    The fingerprint is the sha256 over class names, labels, the byte length of every encoded image and the bytes of at
    most :data:`HASHED_IMAGES` of them, evenly spaced. It is the same on every machine and for every storage format,
    unlike the fingerprint of `datasets` itself. In larger datasets, a change to a single image of the same length may go unnoticed.

    Raises:
        UserError: if the dataset, split or column does not exist, or the columns do not hold images and labels.
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
            f"{name}: image_column = {recipe.image_column!r}: expected images, their bytes or their file paths, found "
            f"{kind}.{f' Columns with images: {listed(columns)}.' if columns else ''}"
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
            f"{name}, split {split!r}: image_column = {recipe.image_column!r} holds file paths, but {file or 'a file'} cannot be read: "
            f"{getattr(error, 'strerror', None) or error}. Paths are relative to {folder}: check that the files are there, and "
            "that image_column is the right column."
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
    """Return whether a column holds images, image bytes, file paths, or plain ``{bytes, path}`` structures."""
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
            # Unpack it first: from the archive itself, datasets 5.2 would use the name of its folder as the class.
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
        hub = f" (which does not exist), then for {recipe.path!r} on the Hub (which needs a network connection)"
        role, cause = "train" if split == recipe.train else "val", cause_of(error)
        others = [name for name in OTHER_NAMES[role] if f"'{name}'" in cause and name != split]
        likely = f' Did you mean {role} = "{others[0]}"?' if others else ""
        raise UserError(
            f"{recipe.label or recipe.path}: split {split!r} could not be opened: {cause}{likely} Looked for a local dataset at "
            f"{local.absolute()}{'' if local.exists() else hub}. Check path, train and val; `lutbench data list` shows the known datasets."
        ) from error


def script_refused(recipe: DataRecipe, error: RuntimeError) -> UserError:
    """Return the error for a dataset that consists of a loading script, which `datasets` no longer runs."""
    return UserError(
        f"{recipe.label or recipe.path}: {recipe.path} could not be opened: {str(error).rstrip('.')}. If the dataset uses a loading script, "
        'use its Parquet version on the Hub: set revision = "refs/convert/parquet" in the suite file. Convert a local dataset to Parquet '
        "files."
    )


def _load_saved(folder: Path, split: str) -> datasets.Dataset:
    """Open a split, or a part such as ``train[:80%]``, of what ``save_to_disk`` wrote: a dictionary of splits, or one split.

    A single split has the name it was saved with, ``train`` if none; an empty ``split`` also selects it.

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
        advice = f'. Divide it with {only}[:80%] and {only}[80%:], or set val = "" for pre-training only'
        raise ValueError(f"it was saved with the splits {list(opened)}{advice if len(opened) == 1 else ''}") from None
    return datasets.concatenate_datasets([opened[r.splitname].select(range(r.from_, r.to)) for r in ranges])


def cause_of(error: BaseException) -> str:
    """Return the innermost cause of an error of `datasets` as a sentence, in terms of suite settings instead of Python calls."""
    while (inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = inner
    message = re.split(r"\n?\s*Example of usage", str(error))[0].strip().rstrip(".") or type(error).__name__
    if "onfig name is missing" in message or "BuilderConfig" in message:
        message += ". Set config to one of them in the suite file's [data] table"
    return " ".join(message.split()) + "."


def require_column(columns: Sequence[str], column: str, setting: str, where: str = "the set") -> None:
    """Raise UserError if ``column`` is not one of ``columns``; the message names the ``setting`` and ``where`` the columns are."""
    if column not in columns:
        raise UserError(
            f"{setting} = {column!r}: {where} has no such column.{nearest(column, columns)} Columns: {', '.join(columns)}."
        )


def _labels(rows: datasets.Dataset, column: str, name: str) -> tuple[list[str], NDArray[np.int64] | None]:
    """Return class names and labels; for a column without ClassLabel, the classes are its sorted distinct values."""
    if not column:
        return [], None
    require_column(rows.column_names, column, f"{name}: label_column")
    values = rows.select_columns([column]).with_format("arrow")[:][column]
    kind = rows.features[column]
    if not isinstance(kind, datasets.ClassLabel | datasets.Value) or pa.types.is_floating(values.type):
        raise UserError(f"{name}: label_column = {column!r}: expected one class per row, found {kind}.")
    unknown = values.null_count
    if isinstance(kind, datasets.ClassLabel):
        unknown += pc.sum(pc.less(values, 0)).as_py() or 0
    if unknown:
        raise UserError(
            f"{name}: {unknown} of {len(rows)} rows have no label in column {column!r}. "
            'Use a split with labels, or set label_column = "" to use the images without labels.'
        )
    if isinstance(kind, datasets.ClassLabel):
        return list(kind.names), values.to_numpy().astype(np.int64)
    known, labels = np.unique(values.to_numpy(), return_inverse=True)
    return [str(value) for value in known], labels.astype(np.int64)


def _sizes(rows: datasets.Dataset, column: str, folder: Path) -> NDArray[np.int64]:
    """Return the bytes (n,) of every encoded image; -1 for a row without one. Raises OSError if a file is missing."""
    encoded = rows.with_format("arrow")[:][column] if rows._indices is not None else rows.data.column(column)
    lengths: NDArray[np.int64] = (
        pc.fill_null(pc.binary_length(pc.struct_field(encoded, "bytes")), -1).to_numpy().astype(np.int64)
    )
    paths = pc.struct_field(encoded, "path")
    for index in np.flatnonzero(lengths < 0):  # rows with a file path instead of bytes
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
