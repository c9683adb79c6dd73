"""Legends as HTML: paragraphs, lists, names in backticks, and footnotes as links. Every text is escaped."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from textwrap import dedent

from markupsafe import Markup, escape

_INLINE = re.compile(r"`([^`\n]+)`|\*\*([^*\n]+)\*\*|\[(\d+|[a-z]+)\](?=\*? )")
"""A name in backticks, what is bold, and a footnote such as ``[12]`` or ``[b]``."""


def prose(text: str, links: Mapping[str, str]) -> Markup:
    """Return a legend as HTML. ``links`` are the anchors of names in backticks, and of footnotes by ``[12]``."""
    return Markup("\n").join(_blocks(text, links))


def _blocks(text: str, links: Mapping[str, str]) -> Iterator[Markup]:
    for kind, lines in groupby(text.splitlines(), key=_kind):
        if kind == "list":
            items = Markup("").join(Markup("<li>{}</li>").format(_inline(line[2:], links)) for line in lines)
            yield Markup("<ul>{}</ul>").format(items)
        elif kind == "code":
            yield Markup("<pre>{}</pre>").format(dedent("\n".join(lines)))
        elif kind == "text":
            yield from (Markup("<p>{}</p>").format(_inline(line, links)) for line in _paragraphs(lines))


def _kind(line: str) -> str:
    if not line.strip():
        return "nothing"
    return "list" if line.startswith("- ") else "code" if line.startswith(" ") else "text"


def _paragraphs(lines: Iterable[str]) -> list[str]:
    """Return lines as paragraphs: one that ends no sentence goes on in the next."""
    found: list[str] = []
    for line in lines:
        if found and not found[-1].rstrip().endswith((".", ":", "!", "?", "**")):
            found[-1] += f" {line}"
        else:
            found.append(line)
    return found


def _inline(text: str, links: Mapping[str, str]) -> Markup:
    parts, end = [], 0
    for found in _INLINE.finditer(text):
        parts.append(escape(text[end : found.start()]))
        name, bold, _ = found.groups()
        shown = (
            Markup("<code>{}</code>").format(name)
            if name
            else Markup("<strong>{}</strong>").format(bold)
            if bold
            else escape(found[0])
        )
        anchor = links.get(name or found[0])
        parts.append(Markup('<a href="#{}">{}</a>').format(anchor, shown) if anchor else shown)
        end = found.end()
    return Markup("").join([*parts, escape(text[end:])])
