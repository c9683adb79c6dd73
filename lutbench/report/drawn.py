"""Which figures are drawn already: the file that is there has the bytes that the same records and the same code drew before.

To draw the figures of a suite takes longer than all else that its tables need. So of each figure that was drawn its sha256 is kept
(:mod:`lutbench.kept`) under a hash of all that it follows from: the records, the reference's records, the suite, every source and
published number of this code, the versions of the packages that draw, and matplotlib's settings. A file that is absent, or has
any other bytes, is drawn again.
"""

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lutbench.files import content_sha256
from lutbench.kept import keep, recall
from lutbench.report.sections import View
from lutbench.sources import digest_of_all

SORT = "figures"
DRAW_WITH = ("matplotlib", "numpy", "pandas", "scipy", "pillow", "contourpy", "fonttools")


def figures_key(view: View) -> str:
    """Return a hash of all that the figures of a suite follow from."""
    reference = sorted(view.reference_dir.glob(f"records/{view.suite.name}/**/*.json")) if view.reference_dir else []
    return content_sha256(
        {
            "code": digest_of_all(),
            "machine": platform.machine(),
            "packages": dict(_versions()),
            "settings": [_sha256(path) for path in _settings()],
            "suite": [
                view.suite.name,
                view.suite.smoke,
                view.suite.config.model_dump_json(),
                [[run.name, run.recipe.model_dump_json()] for run in view.suite.runs],
            ],
            "records": [[name, record.model_dump_json()] for name, record in sorted(view.records.items())],
            "reference": [_sha256(path) for path in reference],
        }
    )


def is_drawn(path: Path, key: str) -> bool:
    """Return whether a figure is what was drawn, under this name, of what has the key of :func:`figures_key`."""
    found = _sha256(path)
    return found != "" and recall(SORT, _own(path, key)) == found


def note_drawn(path: Path, key: str) -> None:
    """Keep that a figure was drawn of what has this key."""
    keep(SORT, _own(path, key), _sha256(path))


def _own(path: Path, key: str) -> str:
    return content_sha256({"figures": key, "name": path.name})


def _sha256(path: Path) -> str:
    """Return the sha256 of a file; empty if there is none."""
    with suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return ""


def _versions() -> Iterator[tuple[str, str]]:
    for name in DRAW_WITH:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def _settings() -> Iterator[Path]:
    """Yield where matplotlib looks for a user's settings, which are not asked of itself: to import it takes a second."""
    yield Path("matplotlibrc")
    if given := os.environ.get("MATPLOTLIBRC"):
        yield from (Path(given), Path(given) / "matplotlibrc")
    configured = os.environ.get("MPLCONFIGDIR") or f"{os.environ.get('XDG_CONFIG_HOME') or '~/.config'}/matplotlib"
    with suppress(RuntimeError):  # a user without a home
        yield Path(configured).expanduser() / "matplotlibrc"
