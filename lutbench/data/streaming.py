"""Stream Hugging Face datasets that are larger than the disk, for pre-training: Parquet files, on the Hub or local.

A stream cannot be shuffled as a whole. In every epoch the files are shuffled, and their rows pass through a shuffle buffer of
:data:`BUFFER` images (our choice, as `datasets` shuffles its streams). The order depends only on the seed and the epoch: every process and
loader worker computes the whole order, without reading images, and then reads only the row groups with its own images. So neither the number
of workers nor an interruption changes the images of a step. A row group holds images of many workers, so it may be read up to workers
times processes times; each image is decoded once.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from lutbench.data.decoding import Pixels, decode, decode_pixels
from lutbench.data.folder import LISTING_THREADS, fingerprint_of
from lutbench.data.huggingface import cause_of, require_column, script_refused
from lutbench.data.walking import in_threads
from lutbench.errors import UserError, nearest
from lutbench.recipes.base import DataRecipe
from lutbench.train.randomness import RngStream, generator

BUFFER = 8192
"""Size of the shuffle buffer in images (our choice), summed over the workers of all processes: 1 GB for ImageNet."""

ROWS_AT_ONCE, READ_AT_ONCE = 64, 8 << 20
"""Maximum rows and bytes of a row group in memory at once, as far as its pages allow: a group may be a whole file."""
PLACES_AT_ONCE = 1 << 20
"""Number of positions of an epoch's order that are drawn at once: Python's integers need ten times the memory of an array's."""


class ParquetFile(NamedTuple):
    """One file of a split, with information from its footer and file system."""

    path: str
    """Local path, or ``hf://datasets/NAME@COMMIT/...``."""
    name: str
    """Path relative to the dataset's folder, or with the commit: the same on every machine."""
    bytes: int
    groups: tuple[int, ...]
    """Number of rows in every row group."""

    @property
    def rows(self) -> int:
        """Number of rows of all groups together."""
        return sum(self.groups)


@dataclass
class StreamedImages:
    """One split of a dataset in Parquet files, without labels. Random access works but is slow; streaming is fast."""

    name: str
    split: str
    skip_undecodable: bool
    fingerprint: str
    column: str = field(repr=False)
    files: tuple[ParquetFile, ...] = field(repr=False)
    classes: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None
    bits: int | None = None
    """As for :class:`lutbench.data.folder.FolderImages`."""

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n,) All -1: sizes are unknown until an image is read."""
        return np.full(len(self), -1)

    def image(self, index: int) -> Image.Image:
        """Return an image, mode RGB; reads its whole row group. Raises UndecodableImage."""
        return self.decoded(index, self.content(index))

    def pixels(self, index: int) -> Pixels:
        """Return the pixels (H, W, 3) of :meth:`image`; as slow."""
        return self.decoded_pixels(index, self.content(index))

    def decoded(self, index: int, content: bytes) -> Image.Image:
        """Decode an image whose content was read already. Raises UndecodableImage."""
        return decode(content, f"{self.name}, {self.image_name(index)}", self.bits)

    def decoded_pixels(self, index: int, content: bytes) -> Pixels:
        """Return the pixels (H, W, 3) of :meth:`decoded`. Raises UndecodableImage."""
        return decode_pixels(content, f"{self.name}, {self.image_name(index)}", self.bits)

    def content(self, index: int) -> bytes:
        """Return the encoded image; reads its whole row group."""
        for first, file, group, rows in self._groups(range(len(self.files))):
            if first <= index < first + rows:
                return self._read(file, group)[index - first]
        raise IndexError(index)

    def image_name(self, index: int) -> str:
        """Return a name made of the split and the row."""
        return f"{self.split}/{index:08d}"

    def contents(self, seed: int, epoch: int, ranks: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        """Yield index and content of the images at the ascending positions ``ranks`` (m,) of an epoch's order.

        Row groups without such images are not read, so resuming in the middle of an epoch does not read earlier images.
        """
        turns, order = _order(tuple(file.rows for file in self.files), seed, epoch)
        wanted = np.zeros(len(order), bool)
        wanted[order[ranks]] = True
        held: dict[int, bytes] = {}
        coming = iter(order[ranks].tolist())
        index = next(coming, None)
        for first, file, group, count in self._groups(turns.tolist()):
            some = np.flatnonzero(wanted[first : first + count]).tolist()
            if some:
                contents = self._read(file, group, some)
                held |= {first + row: content for row, content in zip(some, contents, strict=True)}
            while index in held:
                yield index, held.pop(index)
                index = next(coming, None)
            if index is None:
                return

    def first_contents(self, count: int) -> list[bytes]:
        """Return the first ``count`` encoded images of the first row group (or all of it); the group is read once."""
        file, group = next((file, group) for file in self.files for group, rows in enumerate(file.groups) if rows)
        return self._read(file, group, list(range(min(count, file.groups[group]))))

    def _groups(self, turns: "list[int] | range") -> Iterator[tuple[int, ParquetFile, int, int]]:
        """Yield every row group, file by file in the order ``turns``: index of its first image, file, number in the file, rows."""
        firsts = np.cumsum([0, *(file.rows for file in self.files)]).tolist()
        for turn in turns:
            file, first = self.files[turn], firsts[turn]
            for group, rows in enumerate(file.groups):
                yield first, file, group, rows
                first += rows

    def _read(self, file: ParquetFile, group: int, rows: list[int] | None = None) -> list[bytes]:
        """Return the contents of all or some images of a row group."""
        wanted = np.arange(file.groups[group]) if rows is None else np.array(rows)
        contents, first = list[bytes](), 0
        try:
            opened = _opened(file.path, os.getpid())
            for batch in opened.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[self.column]):
                inside = wanted[(first <= wanted) & (wanted < first + len(batch))] - first
                contents += map(_bytes, batch.column(0).take(pa.array(inside)).to_pylist())
                first += len(batch)
        except Exception as error:  # the Hub's client has its own error types for network failures
            raise UserError(
                f"{self.name}: {file.path} cannot be read: {type(error).__name__}: {error}. Check the network connection, and that the file did not "
                "change since the run started. The same command then resumes from the last checkpoint."
            ) from error
        if len(contents) != len(wanted):
            raise UserError(
                f"{self.name}: {file.path} changed since the run started: row group {group} has {first} rows, expected "
                f"{file.groups[group]}. Restore the file, or start the run again."
            )
        return contents


def open_streamed(recipe: DataRecipe, split: str, root: Path) -> StreamedImages:
    """Open a split of the Parquet files at ``recipe.path`` below ``root``, or of the dataset of that name on the Hub.

    Reads the files' footers, but no images. The fingerprint is computed from names, sizes and row counts of the files, and on the
    Hub from the commit; it does not change if a local file changes within the same number of bytes and rows.

    Raises:
        UserError: if dataset, split or column does not exist, or the files are not Parquet.
    """
    name = recipe.label or recipe.path
    local = (root / recipe.path).absolute()
    paths = _paths(recipe, split, local)
    wrong = [path for path in paths if not path.endswith(".parquet")]
    if wrong or not paths:
        raise UserError(
            f"{name}: streaming needs Parquet files, but split {split!r} has {wrong[0] if wrong else 'no files'}. Remove streaming, "
            "convert the dataset with to_parquet of datasets, or use the Hub's revision 'refs/convert/parquet'."
        )
    title = f"reading the footers of {name}"
    footer = partial(_footer, local=local, name=name, column=recipe.image_column)
    files = tuple(in_threads(footer, paths, title, threads=LISTING_THREADS))
    if not any(file.rows for file in files):
        raise UserError(f"{name}: split {split!r} of {recipe.path} has no rows.")
    inputs = json.dumps([recipe.image_column, *([file.name, file.bytes, file.groups] for file in files)])
    return StreamedImages(
        name, split, recipe.undecodable == "skip", fingerprint_of([], inputs.encode()), recipe.image_column, files
    )


def _paths(recipe: DataRecipe, split: str, local: Path) -> list[str]:
    """Return the files of a split that `datasets` finds in a folder or on the Hub."""
    place = str(local) if local.is_dir() else recipe.path
    try:
        revision = None if local.is_dir() else recipe.revision
        builder = datasets.load_dataset_builder(place, recipe.config or None, revision=revision)
        found: dict[str, Any] = dict(builder.config.data_files or {})
    except RuntimeError as error:
        raise script_refused(recipe, error) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{recipe.label or recipe.path} could not be opened: {cause_of(error)} Looked for a folder of Parquet files "
            f"at {local}, then for {recipe.path!r} on the Hub (which needs a network connection)."
        ) from error
    if split not in found:
        raise UserError(
            f"{recipe.label or recipe.path}: there is no split {split!r}.{nearest(split, found)} Splits: {', '.join(found) or 'none'}."
        )
    return [str(path) for path in found[split]]


def _footer(path: str, local: Path, name: str, column: str) -> ParquetFile:
    """Read the footer of a file. Raises UserError if the file is incomplete, or has no column with image bytes."""
    try:
        with fsspec.open(path) as content:
            footer = pq.ParquetFile(content)
            metadata, schema = footer.metadata, footer.schema_arrow
        size = int(fsspec.core.url_to_fs(path)[0].size(path))
    except pa.ArrowInvalid as error:
        raise UserError(f"{name}: {path} is not a complete Parquet file: {error}. Download it again.") from error
    except Exception as error:  # as above
        raise UserError(
            f"{name}: {path} cannot be read: {type(error).__name__}: {error}. Check the network connection or the disk."
        ) from error
    require_column(schema.names, column, f"{name}: image_column", path)
    kind = schema.field(column).type
    held = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(held) or pa.types.is_large_binary(held)):
        raise UserError(f"{name}: image_column = {column!r}: expected image bytes, found {kind} in {path}.")
    relative = path.removeprefix(f"{local}/")
    return ParquetFile(
        path, relative, size, tuple(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))
    )


@lru_cache(maxsize=2)
def _opened(path: str, process: int) -> pq.ParquetFile:
    """Open a file, cached while its row groups are read one after another; per process, because file positions cannot be shared."""
    return pq.ParquetFile(fsspec.open(path).open(), buffer_size=READ_AT_ONCE)


@lru_cache(maxsize=2)
def _order(rows: tuple[int, ...], seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order of the files, and the image indices (n,) in the order in which they leave the shuffle buffer."""
    draw = generator(RngStream.ORDER, seed, epoch)
    turns = draw.permutation(len(rows))
    firsts = np.cumsum([0, *rows])
    read = np.concatenate([np.arange(firsts[turn], firsts[turn + 1]) for turn in turns])
    size = min(BUFFER, len(read))
    picks = draw.integers(size, size=len(read))
    buffer, order = read[:size].tolist(), read.copy()
    for first in range(0, len(read) - size, PLACES_AT_ONCE):
        last = min(first + PLACES_AT_ONCE, len(read) - size)
        leaving = []
        for pick, index in zip(picks[first:last].tolist(), read[size + first : size + last].tolist(), strict=True):
            leaving.append(buffer[pick])
            buffer[pick] = index
        order[first:last] = leaving
    order[len(read) - size :] = draw.permutation(buffer)
    return turns, order


def _bytes(value: Any) -> bytes:
    """Return the encoded image of a row; image columns of `datasets` hold ``bytes`` and ``path``."""
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else b""
