"""The pages of every module, from the sources."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from generate.markup import markdown

ROOT = Path(__file__).parents[2]
PACKAGES = ("lutbench", "pretrain", "downstream", "robustness", "analysis")


def module_pages() -> dict[str, str]:
    """Return a page for each package that lists its modules, from their sources."""
    pages = {}
    for package in PACKAGES:
        parts = [f"# {package}"]
        for path in sorted((ROOT / package).rglob("*.py"), key=lambda path: (path.parent, path.name)):
            if path.name != "__main__.py":
                parts += _module(path)
        pages[f"modules/{package}.md"] = "\n\n".join(parts) + "\n"
    entries = "\n".join(PACKAGES)
    pages["modules/index.md"] = (
        "# Every module\n\n"
        "Each file of the code, with its public functions and classes and the first sentence of their docstrings. Generated from "
        "the sources. Where to start reading: {doc}`/reading`. What you can use from your own code: {doc}`/python`.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"
    )
    return pages


def _module(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name = path.relative_to(ROOT).as_posix()
    said = ast.get_docstring(tree)
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node)
    ]
    if not said and not public:
        return
    yield f"## {name}"
    if said:
        yield markdown(re.split(r"::\n|\n\s*\n(?=>>>|- )", said)[0])
    for node in public:
        signature = node.name if isinstance(node, ast.ClassDef) else f"{node.name}({_arguments(node.args)})"
        first = markdown(ast.get_docstring(node) or "").split("\n\n")[0]
        yield f"`{signature}`\n: {first}"


def _arguments(arguments: ast.arguments) -> str:
    names = [one.arg for one in [*arguments.posonlyargs, *arguments.args]]
    if arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        names.append("*")
    names += [one.arg for one in arguments.kwonlyargs]
    return ", ".join(names + ([f"**{arguments.kwarg.arg}"] if arguments.kwarg else []))
