"""Pages of the documentation that follow from the code: every setting, command, dataset and module; the reference of modules; the notebooks.

Settings are read from the recipes, as they check a suite file; commands from the command line itself; modules from their sources,
without importing them. What is written is MyST Markdown.
"""

from pathlib import Path

from generate.commands import command_pages
from generate.datasets import dataset_pages
from generate.modules import ROOT, module_pages
from generate.reference import reference_pages
from generate.settings import settings_pages

__all__ = ["write_pages"]


def write_pages(folder: Path) -> None:
    """Write all generated pages into ``folder``, anew; a page that is already as it should be keeps its time, so that it isn't built again."""
    pages = {
        **settings_pages(),
        **command_pages(),
        **dataset_pages(),
        **module_pages(),
        **reference_pages(),
        **_notebooks(),
    }
    for path in [path for kind in ("*.md", "*.ipynb") for path in folder.rglob(kind)]:
        if path.relative_to(folder).as_posix() not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _notebooks() -> dict[str, str]:
    """Return the notebooks, which lie beside the documentation, and are run when it is built."""
    found = sorted((ROOT / "notebooks").glob("*.ipynb"))
    return {f"notebooks/{path.name}": path.read_text(encoding="utf-8") for path in found}
