"""Find the files of weights and compute their hashes, without loading them."""

import hashlib
from pathlib import Path

from lutbench.errors import UserError, listed
from lutbench.files import read_json

PICKLES = (".pth", ".pt", ".bin", ".tar", ".ckpt")
"""Endings of files that torch.save wrote; ``.tar`` is that of ``.pth.tar``."""

INDEX = ".index.json"
"""Ending of the list of the files that Hugging Face's libraries spread large weights over."""

IN_FOLDERS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
"""The names that Hugging Face's libraries give weights in a folder; the first that is there is read."""


def weight_files(path: Path) -> list[Path]:
    """Return the files that weights are in: the file itself, or those of a folder or of an index.

    Raises:
        UserError: if one is missing, or a folder has none of :data:`IN_FOLDERS`.
    """
    if path.is_dir() and not any((path / name).is_file() for name in IN_FOLDERS):
        inside = [file.name for file in sorted(path.iterdir())]
        raise UserError(
            f"{path}: expected a folder with {', '.join(IN_FOLDERS[:-1])} or {IN_FOLDERS[-1]}, found {listed(inside, 8) or 'nothing'}. "
            "Give the path of the weight file itself."
        )
    if index := index_of(path):
        files = [index.parent / name for name in sorted(set(weight_map(index).values()))]
    else:
        files = [next((path / name for name in IN_FOLDERS if (path / name).is_file()), path)]
    if absent := [file for file in files if not file.is_file()]:
        more = f", which is listed in {index.name}" if index else ""
        raise UserError(f"There is no weight file {absent[0]}{more}. Check the path, or make the file first.")
    return files


def index_of(path: Path) -> Path | None:
    """Return the index of weights in several files, if ``path`` is one or a folder that is read by one."""
    if path.is_dir():
        path = next((path / name for name in IN_FOLDERS if (path / name).is_file()), path)
    return path if path.name.endswith(INDEX) and path.is_file() else None


def weight_map(index: Path) -> dict[str, str]:
    """Return the file of every tensor as an index says it.

    Raises:
        UserError: if it does not, or names a file anywhere but beside it.
    """
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if isinstance(files, dict) and files and all(isinstance(f, str) and Path(f).name == f for f in files.values()):
        return files
    raise UserError(
        f"{index}: expected a weight_map from tensor names to files beside it, as Hugging Face's libraries write it. "
        "Download or save the folder again."
    )


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal; of weights in a folder that of their file, or of the names and hashes of all.

    Raises:
        UserError: if a folder or an index has no files of weights.
    """
    files = weight_files(path) if path.is_dir() or path.name.endswith(INDEX) else [path]
    hashes = []
    for one in files:
        with one.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(files) == 1:
        return hashes[0]
    together = "".join(f"{file.name}\0{digest}\n" for file, digest in zip(files, hashes, strict=True))
    return hashlib.sha256(together.encode()).hexdigest()
