"""Remember which runs could start, so that ``status`` and ``plan`` need not try them again.

What would stop a run is found by building its model, for which packages are imported that take seconds. A run that passed leaves an empty file
``checked/could-start-KEY`` below ``--runs``. KEY is the hash of everything that decides: the settings of the run and of those that it
depends on, data, code and packages. ``run`` itself tries every run anew, and runs that start from timm's or the user's weights always are.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutbench.errors import NotRun, UserError
from lutbench.files import content_sha256
from lutbench.provenance import packages

if TYPE_CHECKING:
    from lutbench.run import Run


def could_start(run: "Run[Any]") -> bool:
    """Return whether a run passed with everything as it is now."""
    return _is_lasting(run) and _mark(run).exists()


def remember(run: "Run[Any]") -> None:
    """Remember that a run passed, if ``--runs`` exists and can be written to: commands that only read do not create it."""
    if not _is_lasting(run):
        return
    mark = _mark(run)
    with suppress(OSError):
        mark.parent.mkdir(exist_ok=True)
        mark.touch()


def _is_lasting(run: "Run[Any]") -> bool:
    """Return whether nothing decides but what is in the key: other weights are judged by files beside them, too."""
    source = run.recipe.source
    return source is None or source.kind in ("run", "scratch")


def _mark(run: "Run[Any]") -> Path:
    decides = {
        "runs": [
            (of.planned.kind.name, of.seed, of.recipe.model_dump(mode="json"), of.sources) for of in _with_needs(run)
        ],
        "smoke": run.planned.smoke,
        "data": {split: _found(lambda split=split: run.fingerprint(split)) for split in run.recipe.splits},  # type: ignore[misc]
        "packages": packages(),
    }
    return run.workspace.runs / "checked" / f"could-start-{content_sha256(decides)[:32]}"


def _with_needs(run: "Run[Any] | None") -> "Iterator[Run[Any]]":
    """Yield a run and those that it depends on."""
    while run is not None:
        yield run
        run = run.needs


def _found(look: Callable[[], str]) -> str:
    """Return what is found, or why nothing is."""
    try:
        return look()
    except (NotRun, UserError, OSError) as absent:
        return str(absent)
