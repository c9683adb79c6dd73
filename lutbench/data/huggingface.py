"""Image sets of Hugging Face `datasets`: by name on the Hub, or local (``save_to_disk``, Parquet, Arrow, ImageFolder)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from lutbench.data.decoding import decode
from lutbench.data.folder import fingerprint_of
from lutbench.data.walking import evenly_spaced
from lutbench.errors import UserError, nearest
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

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        """Return an image, mode RGB.

        Raises:
            UndecodableImage: naming the row and its file.
            UserError: if a file that a row names cannot be read at all.
        """
        encoded = self.rows[index][self.column]
        return decode(self._read(index, encoded), self._label(index, encoded))

    def content(self, index: int) -> bytes:
        """Return the image as its row has it, encoded; empty if there is none.

        Raises:
            UserError: if a file that the row names cannot be read.
        """
        return self._read(index, self.rows[index][self.column])

    def image_name(self, index: int) -> str:
        """Return a name made of the split and the row."""
        return f"{self.split}/{index:08d}"

    def _read(self, index: int, encoded: Encoded | None) -> bytes:
        try:
            return _content(encoded)
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
    if not (isinstance(kind, datasets.Image) or (isinstance(kind, datasets.Value) and "binary" in kind.dtype)):
        raise UserError(f"{name}: image_column = {recipe.image_column!r} should hold images, and holds {kind}.")
    classes, labels = _labels(rows, recipe.label_column, name)
    rows = rows.select_columns([recipe.image_column]).cast_column(recipe.image_column, datasets.Image(decode=False))
    sizes = _sizes(rows, recipe.image_column)
    contents = (
        _content(rows[index][recipe.image_column]) for index in evenly_spaced(len(rows), HASHED_IMAGES).tolist()
    )
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
    )


def _load(recipe: DataRecipe, split: str, root: Path) -> datasets.Dataset:
    local = root / recipe.path
    try:
        if (local / split / "state.json").is_file():  # a saved set, or one split of a saved dictionary of sets
            return datasets.load_from_disk(local / split)
        if local.is_dir():
            return datasets.load_dataset(str(local), split=split)
        if local.suffix in (".parquet", ".arrow") and local.is_file():
            return datasets.load_dataset(local.suffix[1:], data_files=str(local), split=split)
        return datasets.load_dataset(recipe.path, split=split, revision=recipe.revision)
    except RuntimeError as error:
        raise script_refused(recipe, error) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        message = str(error).rstrip(".")
        raise UserError(
            f"{recipe.label or recipe.path}: split {split!r} could not be opened: {message}. Looked for a local set at "
            f"{local.absolute()}{'' if local.exists() else ' (nothing is there)'}, then for {recipe.path!r} on the Hub, "
            "which needs a network. Check path, train and val; `lutbench data list` shows the known sets."
        ) from error


def script_refused(recipe: DataRecipe, error: RuntimeError) -> UserError:
    """Return the error that a set has no rows to read, but a program that makes them, which `datasets` does not run."""
    return UserError(
        f"{recipe.label or recipe.path}: {recipe.path} could not be opened: {str(error).rstrip('.')}. If a program of its authors "
        'loads it, take the rows that the Hub has made with that: revision = "refs/convert/parquet" in the suite file; or, of a '
        "folder, save them as Parquet files."
    )


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


def _sizes(rows: datasets.Dataset, column: str) -> NDArray[np.int64]:
    """Return the bytes (n,) of every encoded image; -1 for a row without one."""
    encoded = rows.with_format("arrow")[:][column] if rows._indices is not None else rows.data.column(column)
    lengths: NDArray[np.int64] = (
        pc.fill_null(pc.binary_length(pc.struct_field(encoded, "bytes")), -1).to_numpy().astype(np.int64)
    )
    paths = pc.struct_field(encoded, "path")
    for index in np.flatnonzero(lengths < 0):  # rows that name a file instead of holding it
        path = paths[int(index)].as_py()
        lengths[index] = Path(path).stat().st_size if path else -1
    return lengths


def _content(encoded: Encoded | None) -> bytes:
    """Return the encoded image of a row; empty if there is none."""
    if encoded is None:
        return b""
    content, path = encoded["bytes"], encoded["path"]
    if content is not None:
        return content
    return Path(path).read_bytes() if path else b""
