"""The folders of datasets, runs and results, and the datasets that a command has opened."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any, Self

from lutbench.data.catalogue import in_hub_cache
from lutbench.data.images import ImageDataset
from lutbench.data.subsets import SubsetImages, restricted
from lutbench.errors import UserError
from lutbench.kinds import dataset_module
from lutbench.progress import console, is_first_process
from lutbench.recipes.base import Recipe, TrainingSubset
from lutbench.run_files import list_runs

FEATURE_BYTES = 20 * 10**9
"""20 GB (our choice): of ImageNet-1K the features of five ViT-B, or of three ViT-L."""


@dataclass(frozen=True)
class Workspace:
    """The three folders of the suite, and the datasets opened so far."""

    data: Path
    """Folder of the datasets."""
    runs: Path
    """Folder in which runs keep checkpoints, weights, logs and pictures."""
    results: Path
    """Folder of records and tables."""
    download: bool = True
    """Whether opening a missing dataset of the Hugging Face Hub downloads it, and missing folders and built-in datasets are created:
    not in commands that only read, such as ``status`` and ``plan``."""
    feature_bytes: int = FEATURE_BYTES
    """Bytes that the features of frozen encoders, and crops, may take below ``runs``, see :mod:`lutbench.evaluate.feature_store`."""
    _noted: set[str] = field(default_factory=set, repr=False, compare=False)
    _opened: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False, compare=False)
    passed_over: dict[Path, str] = field(default_factory=dict, repr=False, compare=False)
    """Folders of damaged runs, with what is wrong with each."""

    def make(self) -> None:
        """Create the folders of runs and results.

        Raises:
            UserError: if one cannot be created or written to.
        """
        for option, folder in (("--runs", self.runs), ("--results", self.results)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{option} {folder}: the folder cannot be created: {error.strerror}. Choose another folder."
                ) from error
            if not os.access(folder, os.W_OK | os.X_OK):
                raise UserError(
                    f"{option} {folder}: no permission to write there. Change its permissions, or choose another folder."
                )

    @property
    def options(self) -> str:
        """The command-line options for these folders, ``" --data-root DIR"``; empty for default folders."""
        given = (("data-root", self.data, "data"), ("runs", self.runs, "runs"), ("results", self.results, "results"))
        return "".join(f" --{name} {quote(str(folder))}" for name, folder, usual in given if folder != Path(usual))

    @property
    def features(self) -> Path:
        """The folder of the features of frozen encoders."""
        return self.runs / "features"

    @property
    def run_folders(self) -> dict[str, list[Path]]:
        """The folders of all runs below ``runs``, of any suite, by the first 12 digits of the identity.

        Listed once per command; runs that finish later are added.
        """
        folders: dict[str, list[Path]] = self._once(("runs", "listed"), lambda: list_runs(self.runs))
        return folders

    def list_again(self) -> None:
        """List the folders of runs again when they are next needed, because other processes may have finished some."""
        self._opened.pop(("runs", "listed"), None)

    def offline(self) -> Self:
        """Return the same workspace for a look at what is present, which downloads and creates nothing."""
        return replace(self, download=False)

    def unopened(self) -> Self:
        """Return the same workspace for another process: no dataset is open yet, and notes are not printed again."""
        return replace(self, _noted=set(self._noted), _opened={}, passed_over={})

    def note(self, text: str) -> None:
        """Print a note about a dataset, once per command and for all its processes."""
        if text not in self._noted and is_first_process():
            console.print(text)
        self._noted.add(text)

    def look(self, what: str, notes: Callable[[], Iterable[str]]) -> None:
        """Print the ``notes`` about ``what``, computed once per command; an error stops every run that needs it.

        Raises:
            UserError: if ``notes`` does.
        """

        def looked() -> None:
            for note in notes():
                self.note(note)

        self._once((what, "looked at"), looked)

    def first_said(self, what: str, value: Any) -> Any:
        """Return the ``value`` of the first call with ``what`` in this command."""
        return self._opened.setdefault((what, "said"), value)

    def open(self, recipe: Recipe, split: str) -> Any:
        """Open one split of a dataset, as its module does; files are listed once per command.

        Raises:
            NotRun: if it is absent and optional.
            UserError: if it is absent or not as expected, or would have to be downloaded and ``download`` is False.
        """
        if not self.download:  # asked each time: a refusal must not keep a run of the same command from downloading
            refuse_to_download(recipe, self.data)
        return self._once(
            (recipe.model_dump_json(), split), lambda: dataset_module(recipe).open_dataset(recipe, split, self.data)
        )

    def subset(self, recipe: Recipe, chosen: TrainingSubset) -> SubsetImages:
        """Return a subset of the training images of a recipe; computed once per command.

        Raises:
            UserError: as :meth:`open` and :func:`lutbench.data.subsets.subset_of`.
        """
        key = recipe.model_dump_json(), repr(chosen)
        few = getattr(recipe, "few", None) if chosen.file else None
        whole = recipe.model_copy(update={"few": None}) if few else recipe  # a list names images of the whole split
        found: SubsetImages = self._once(key, lambda: restricted(self.open(whole, "train"), chosen, self.data, few))
        return found

    def _once(self, key: tuple[str, str], opened: Callable[[], Any]) -> Any:
        """Return the result of ``opened``, called once per key and command."""
        if key not in self._opened:
            try:
                self._opened[key] = opened()
            except UserError as error:  # kept too: another try would take as long
                self._opened[key] = error
        if isinstance(self._opened[key], UserError):
            raise self._opened[key]
        return self._opened[key]

    def cached(self, recipe: Recipe, side: int) -> ImageDataset:
        """Return the training images in their cache of short side ``side``, which is built if it is absent.

        Raises:
            UserError: if it is damaged, or cannot be built.
        """
        from lutbench.data.cache_build import make_cache  # here, because datasets takes a second to import

        key = recipe.model_dump_json(), f"cache {side}"
        opened: ImageDataset = self._once(key, lambda: make_cache(self.open(recipe, "train"), side, self.data))
        return opened


def refuse_to_download(recipe: Any, root: Path) -> None:
    """Raise UserError if a dataset would have to be downloaded from the Hub."""
    if recipe.source == "huggingface" and not (root / recipe.path).exists() and not in_hub_cache(recipe.path):
        raise UserError(
            f"{recipe.label or recipe.path} is not at {(root / recipe.path).absolute()}. It will be downloaded from the Hugging Face "
            "Hub when a run first uses it."
        )
