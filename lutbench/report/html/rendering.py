"""Pages from templates: their style, their scripts, and the policy that lets only these run.

A page fetches nothing: its policy forbids it, and lets no script run but the two whose hashes it names.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from lutbench.files import whole_file
from lutbench.provenance import code
from lutbench.report.html.grids import GROUPS, packed
from lutbench.report.html.vega_specs import SHAPES, Spec, ids

MARKS = dict(
    zip(
        SHAPES,
        (
            "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M-3.5-3.5h7v7h-7z", "M0-4.6 4 0 0 4.6-4 0z", "M-4 3.4 0-3.6 4 3.4z",
            "M-1.4-4h2.8v2.6h2.6v2.8h-2.6v2.6h-2.8v-2.6h-2.6v-2.8h2.6z", "M-4-3.4 0 3.6 4-3.4z", "M3.4-4-3.6 0 3.4 4z",
            "M-3.4-4 3.6 0-3.4 4z",
        ),
        strict=True,
    )
)  # fmt: skip
"""The marks of legends, as paths of SVG around 0."""


def write_page(path: Path, html: str) -> None:
    """Write a page.

    Raises:
        UserError: on a full disk.
    """
    with whole_file(path) as partial:
        partial.write_text(html, encoding="utf-8", newline="\n")


def render(template: str, *, specs: Mapping[str, Spec], **values: Any) -> str:
    """Return a page from a template, with its style, its scripts, and the policy that lets only these run.

    ``specs`` are the specifications of its plots; without any the page does without the library that draws them.
    """
    own, vega = asset("report.js"), asset("vega.min.js")
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in (vega, own))
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return (
        _environment()
        .get_template(template)
        .render(
            policy=policy,
            style=Markup(asset("report.css")),
            script=Markup(own),
            vega=Markup(vega) if specs else None,
            specs=packed(_json(specs)),
            code=str(code()),
            **values,
        )
    )


@cache
def asset(name: str) -> str:
    """Return a file that stands beside this module, with the line ends that hashes are over."""
    return files("lutbench.report.html").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("lutbench.report.html"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"shapes": MARKS, "groups": GROUPS, "ids": ids}
    return made


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
