"""Which of this suite's own sources a run depends on, and whether they are those that an earlier run was made by.

Settings tell when a recipe changed, but not when somebody edits the loss. So a finished run keeps a hash of every source
that its kind imports, directly or not. Hashes are of the syntax tree: comments, docstrings and formatting do not count, nor does
the version of Python. What was finished by other code is not lost or repeated by itself, but said wherever its number is shown.
"""

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path
from typing import TYPE_CHECKING

from lutbench.kinds import DATASETS

if TYPE_CHECKING:
    from lutbench.recipes.suite import PlannedRun

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds the suite's packages, in a checkout as where it is installed."""

PACKAGES = ("lutbench", "pretrain", "downstream", "robustness", "analysis", "suites")

BOOKKEEPING = re.compile(
    r"lutbench(\.(allocator|errors|files|finite|interruption|kinds|locks|progress|provenance|record\w*|run\w*|sources|stages|workspace"
    r"|plan(\..*)?|data\.(catalogue|integrity|manifest|survey|verify)|models\.licences))?|\w+(\.\w+)*\.(cost|online_knn)"
)
"""Modules that say where things are, what they cost and what happened, and compute nothing that a result depends on: how a
pre-training does on the way neither."""


MIXED = "changed on the way"
"""In place of the hash of a source that was another when a run went on than when it began."""


def sources_of(planned: "PlannedRun") -> dict[str, str]:
    """Return the hashes of the sources that a run depends on, by path below :data:`ROOT`, such as ``pretrain/context.py``."""
    kind = planned.kind
    roots = [kind.module_name, kind.recipe_name.partition(":")[0], DATASETS[type(planned.recipe.dataset).__name__]]
    roots += ["lutbench.data.cache_build"] if planned.recipe.cache_side else []
    roots += [name.partition(":")[0] for name in planned.recipe.chosen]
    return dict(sorted({path: digest for root in roots for path, digest in _closure(root).items()}.items()))


def differing(before: Mapping[str, str], planned: "PlannedRun") -> list[str]:
    """Return which sources of a run are not what they were, such as ``pretrain/context.py``; none if all are.

    ``before`` are its hashes at the time; runs of before there were any have none, of which nothing is said.
    """
    now = sources_of(planned)
    return [path for path in sorted({*before, *now}) if before.get(path) != now.get(path)] if before else []


def digest_of(module: str) -> str:
    """Return a hash of a module's source and of all that it imports of this suite, bookkeeping left out."""
    return hashlib.sha256(repr(sorted(_closure(module).items())).encode()).hexdigest()[:16]


def digest_of_source(path: Path) -> str:
    """Return the hash of a source of this suite alone."""
    digest = _read(path)[0]
    _keep()
    return digest


def digest_of_all() -> str:
    """Return the sha256, hexadecimal, of all files of the suite's packages as they lie on this disk, by name and content."""
    total = hashlib.sha256()
    for path in sorted(
        path for package in PACKAGES for end in ("py", "toml") for path in (ROOT / package).rglob(f"*.{end}")
    ):
        total.update(f"{path.relative_to(ROOT).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


@cache
def _closure(module: str) -> dict[str, str]:
    """Return the hash of a module's source and of all that it imports of this suite, bookkeeping left out."""
    found: dict[Path, str] = {}
    waiting = [path] if (path := _file(module)) else []
    while waiting:
        if (path := waiting.pop()) not in found:
            found[path], imported = _read(path)
            waiting += imported
    _keep()
    return {path.relative_to(ROOT).as_posix(): digest for path, digest in found.items()}


@cache
def _read(path: Path) -> tuple[str, tuple[Path, ...]]:
    """Return the hash of a source, and the sources of this suite that it imports; parsed only if its content is not that which was kept."""
    content, name = path.read_bytes(), path.relative_to(ROOT).as_posix()
    sha256 = hashlib.sha256(content).hexdigest()
    if (known := _known().get(name)) and known[0] == sha256:
        return known[1], _files(known[2])
    tree = ast.parse(content)
    digest, imported = hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()[:16], tuple(_imported(tree))
    _known()[name] = (sha256, digest, imported)
    _fresh.add(name)
    return digest, _files(imported)


def _files(modules: Iterable[str]) -> tuple[Path, ...]:
    """Return the sources of modules, of those that have one, each once."""
    return tuple(dict.fromkeys(path for module in modules if (path := _file(module)) is not None))


Known = tuple[str, str, tuple[str, ...]]
"""sha256 of a source's content, its hash, and the modules that it imports."""

_KEPT = Path(cache_from_source(__file__)).with_name("sources.kept")
"""Where what was found of sources is kept between commands: beside what Python keeps that it compiled. It may be removed at any time."""

_fresh: set[str] = set()
"""Names of the sources that were parsed and are not kept yet."""


@cache
def _known() -> dict[str, Known]:
    """Return what is kept of sources by name; nothing if this module was another when it was kept, or the file cannot be used."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(_KEPT.read_text(encoding="utf-8"))
        if kept["by"] == _own_sha256():
            return {name: (sha256, digest, tuple(imported)) for name, (sha256, digest, imported) in kept["of"].items()}
    return {}


def _keep() -> None:
    """Keep what was parsed, if the folder can be written."""
    if not _fresh:
        return
    partial = _KEPT.with_name(f".{_KEPT.name}.{os.getpid()}")
    with suppress(OSError):
        _KEPT.parent.mkdir(exist_ok=True)
        partial.write_text(json.dumps({"by": _own_sha256(), "of": _known()}), encoding="utf-8")
        partial.replace(_KEPT)
    _fresh.clear()


@cache
def _own_sha256() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _file(module: str) -> Path | None:
    """Return the source of a module of this suite; None if it has none, or is bookkeeping."""
    if BOOKKEEPING.fullmatch(module):
        return None
    stem = f"{ROOT}{os.sep}{module.replace('.', os.sep)}"  # not by pathlib: every status asks for two thousand
    found = (f"{stem}{end}" for end in (".py", f"{os.sep}__init__.py"))
    return next((Path(file) for file in found if os.path.isfile(file)), None)  # noqa: PTH113


def _imported(tree: ast.AST) -> Iterator[str]:
    """Yield the names of modules that a source imports of this suite, those for types alone left out."""
    if isinstance(tree, ast.If) and isinstance(tree.test, ast.Name) and tree.test.id == "TYPE_CHECKING":
        return
    if isinstance(tree, ast.ImportFrom) and tree.module and tree.module.split(".")[0] in PACKAGES:
        yield tree.module
        yield from (f"{tree.module}.{alias.name}" for alias in tree.names)
    elif isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names if alias.name.split(".")[0] in PACKAGES)
    for child in ast.iter_child_nodes(tree):
        yield from _imported(child)


def _plain(node: object) -> object:
    """Return a syntax tree as nested lists, without docstrings and places, and without what is empty: later Pythons have more fields."""
    if isinstance(node, list):
        return [_plain(item) for item in node if not _is_docstring(item)]
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields)
        return [type(node).__name__, *((name, _plain(value)) for name, value in fields if value not in (None, []))]
    return repr(node)


def _is_docstring(node: object) -> bool:
    """Return whether a statement is a bare string, which documents what it is below."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
