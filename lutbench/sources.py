"""The source files of lutbench that a run depends on, and whether they have changed since an earlier run.

Settings show when a recipe changes, but not when somebody edits the loss. So a finished run keeps a hash of every source file that
its kind imports, directly or indirectly. The hash is of the syntax tree: comments, docstrings, formatting, the texts of errors and
the version of Python do not matter. Runs that finished with different code are kept and not repeated automatically, but marked
wherever their numbers are shown.
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

from lutbench.errors import UserError
from lutbench.files import whole_file
from lutbench.kinds import DATASETS

if TYPE_CHECKING:
    from lutbench.recipes.suite import PlannedRun

ROOT = Path(__file__).resolve().parents[1]
"""The parent folder of the suite's packages, in a checkout or in an installation."""

PACKAGES = ("lutbench", "pretrain", "downstream", "robustness", "analysis", "suites")

BOOKKEEPING = re.compile(
    r"lutbench(\.(allocator|errors|files|finite|garbage|interruption|kinds|locks|progress|provenance|record\w*|run\w*|sources|stages|system_errors|workspace"
    r"|plan(\..*)?|data\.(catalogue|integrity|manifest|survey|verify)|models\.licences))?|\w+(\.\w+)*\.(cost|online_knn)"
)
"""Modules that results do not depend on: paths, costs, logs, and the evaluation during pre-training."""


MIXED = "changed on the way"
"""Replaces the hash of a source file that changed between the start of a run and its continuation."""


def sources_of(planned: "PlannedRun") -> dict[str, str]:
    """Return the hashes of the source files that a run depends on, by path below :data:`ROOT`, such as ``pretrain/context.py``."""
    kind = planned.kind
    roots = [kind.module_name, kind.recipe_name.partition(":")[0], DATASETS[type(planned.recipe.dataset).__name__]]
    roots += ["lutbench.data.cache_build"] if planned.recipe.cache_side else []
    roots += [name.partition(":")[0] for name in planned.recipe.chosen]
    return dict(sorted({path: digest for root in roots for path, digest in _closure(root).items()}.items()))


def differing(before: Mapping[str, str], planned: "PlannedRun") -> list[str]:
    """Return the source files of a run that have changed, such as ``pretrain/context.py``; empty if none has.

    ``before`` has the earlier hashes; for runs of earlier versions, which have none, the result is empty.
    """
    now = sources_of(planned)
    return [path for path in sorted({*before, *now}) if before.get(path) != now.get(path)] if before else []


def digest_of(module: str) -> str:
    """Return a hash of a module's source and of everything that it imports from this suite, without bookkeeping."""
    return hashlib.sha256(repr(sorted(_closure(module).items())).encode()).hexdigest()[:16]


def digest_of_source(path: Path) -> str:
    """Return the hash of a source of this suite alone."""
    digest = _read(path)[0]
    _keep()
    return digest


def digest_of_all() -> str:
    """Return the hexadecimal sha256 of all files of the suite's packages on this disk, by name and content."""
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
    """Return the hash of a source file, and the source files of this suite that it imports; parses only files that changed since the last time."""
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
"""A cache of the hashes between commands, beside Python's compiled files. It may be removed at any time."""

_fresh: set[str] = set()
"""Names of the source files that were parsed and are not cached yet."""


@cache
def _known() -> dict[str, Known]:
    """Return the cached hashes by name; empty if this module has changed since, or the file cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(_KEPT.read_text(encoding="utf-8"))
        if kept["by"] == _own_sha256():
            return {name: (sha256, digest, tuple(imported)) for name, (sha256, digest, imported) in kept["of"].items()}
    return {}


def _keep() -> None:
    """Save the cache, if the folder can be written."""
    if _fresh:
        with suppress(OSError, UserError), whole_file(_KEPT) as partial:
            partial.write_text(json.dumps({"by": _own_sha256(), "of": _known()}), encoding="utf-8")
        _fresh.clear()


@cache
def _own_sha256() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _file(module: str) -> Path | None:
    """Return the source file of a module of this suite; None if it has none, or is bookkeeping."""
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


def _plain(node: object, raised: bool = False) -> object:
    """Return a syntax tree as nested lists, without docstrings, line numbers and empty fields: later Pythons have more fields.

    Texts within a ``raise`` are left out too: what an error says changes no result.
    """
    if isinstance(node, list):
        return [_plain(item, raised) for item in node if not _is_docstring(item)]
    if isinstance(node, ast.AST):
        raised = raised or isinstance(node, ast.Raise)
        if raised and _is_text(node):
            return "text"
        fields = ((name, getattr(node, name, None)) for name in node._fields)
        return [
            type(node).__name__,
            *((name, _plain(value, raised)) for name, value in fields if value not in (None, [])),
        ]
    return repr(node)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_docstring(node: object) -> bool:
    """Return whether a statement is a bare string, that is, documentation."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and _is_text(node.value)
