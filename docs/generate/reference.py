"""The reference of the modules that the guide, its examples and the notebooks use."""

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from generate.modules import PACKAGES, ROOT


def reference_pages() -> dict[str, str]:
    """Return the page with every such module, its public classes and functions."""
    parts = [
        "# Modules of the guide",
        "The modules that [Extend the suite](/extending.md), its examples and tests, the other pages and the notebooks import or "
        "name, with their public classes and functions. Generated: a page that uses another module adds it here.",
    ]
    for module in used_modules():
        parts.append(f"## {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n   :no-index:\n```")
    return {"reference.md": "\n\n".join(parts) + "\n"}


def used_modules() -> list[str]:
    """Return the dotted names of these modules, in alphabetical order."""
    named = re.findall(rf"`((?:{'|'.join(PACKAGES)})/[\w/]+)\.py`", _text("docs/extending.md"))
    paths = [*named, *chain.from_iterable(map(_imported, _sources()))]
    return sorted({path.replace("/", ".") for path in paths} - {"lutbench"} | {"lutbench.api"})


def _sources() -> Iterator[str]:
    """Yield the code of the pages, the examples, the notebooks, and the stage that a test adds."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        yield from re.findall(r"(?ms)^ *```(?:\{code-cell\} )?python\n(.*?)^ *```", _text(page))
    yield from map(_text, sorted((ROOT / "docs/examples").glob("*.py")))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        yield from (
            "".join(cell["source"]) for cell in json.loads(_text(notebook))["cells"] if cell["cell_type"] == "code"
        )
    yield _text("tests/test_stage.py").split("STAGE = '''")[1].split("'''")[0]


def _imported(code: str) -> Iterator[str]:
    """Yield the modules of this suite from which the code imports, as paths."""
    for module in re.findall(r"(?m)^\s*(?:from|import) ([\w.]+)", code):
        if module.split(".")[0] in PACKAGES:
            yield module.replace(".", "/")


def _text(path: str | Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")
