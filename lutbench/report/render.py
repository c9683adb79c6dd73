"""Renderers of sections, functions from sections to text: Markdown and the terminal, LaTeX and CSV."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, zip_longest
from textwrap import dedent, fill

import pandas as pd

from lutbench.report.sections import Section, heading_lines

PAGE = 40
"""Rows of a table that fit on a page."""

LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$"}
)
"""What LaTeX would stumble over, and what its fonts have in formulas only."""

_MARKUP = re.compile(r"[\\`*|<]|(?<=\])\(|!(?=\[)|&(?=#?\w+;)|~~|(?<!\w)_|_(?!\w)")
"""What Markdown would take for markup in a title, a heading or a cell, which hold none."""

_LINKS = re.compile(r"[|<\\]|(?<=\])[(:]|!(?=\[)|&(?=#?\w+;)")
_BLOCKS = re.compile(r"^[ \t]*(?=#|>|~~~|```|(=+|-+|\*+|_+)[ \t]*$)", re.MULTILINE)
"""What Markdown would take in a legend for a link, a table or HTML, and for a heading, a quotation, code or a rule. A legend
has lists, and names of runs in backticks."""

_CODE = re.compile(r"`([^`\n]+)`")
"""A name in backticks."""

_VALUE_WITH_INTERVAL = re.compile(r"^(\d[\d.]*) \[[\d-].*")
"""A value with its interval behind it; unlike a value with a source, and a difference, which begins with a sign."""


_INDENTED = re.compile(r"(?:^ +\S.*\n)+", re.MULTILINE)
"""Lines of a legend that stay as they are written, such as the layout of a dataset."""


def markdown(sections: Sequence[Section], figures: str) -> str:
    """Return all sections as Markdown, with links to the folder ``figures``. What names say is shown as they say it."""
    parts = []
    for section in sections:
        frame = _marked(section, "**{}**", "<u>{}</u>", _plain_markdown)
        frame.columns = pd.Index([_plain_markdown(", ".join(filter(None, heading_lines(name)))) for name in frame])
        parts += [f"{'#' * section.level} {_plain_markdown(section.title)}" if section.title else ""]
        parts += ["" if frame.empty else frame.to_markdown(index=False, disable_numparse=True)]
        parts += [_linked(_legend(section.whole_legend), section.links)]
        parts += [f"![{_plain_markdown(drawing.title)}]({figures}/{drawing.name})" for drawing in section.figures]
    return "\n\n".join(part for part in parts if part) + "\n"


def _legend(text: str) -> str:
    """Return a legend as Markdown: prose that no character makes anything else, and lines that are indented as they are."""
    prose = (_BLOCKS.sub(r"\g<0>\\", _LINKS.sub(r"\\\g<0>", part)) for part in _INDENTED.split(text))
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", text)), 0)
    code = [f"\n{fence}\n{dedent(lines)}{fence}\n" for lines in _INDENTED.findall(text)]
    return "".join(part for pair in zip_longest(prose, code, fillvalue="") for part in pair)


def _linked(text: str, links: Mapping[str, str]) -> str:
    """Return Markdown with its names in backticks as links to the files that they stand for, if they stand for one."""
    return _CODE.sub(lambda found: f"[{found[0]}]({links[found[1]]})" if found[1] in links else found[0], text)


def latex(sections: Sequence[Section], title: str, note: str) -> str:
    """Return the tables of sections as LaTeX, each with the suite's title and ``note`` in its caption, and a label.

    They need booktabs and adjustbox, which shrinks what is wider than the page; one that is longer than a page is a longtable.
    """
    tables: list[str] = []
    for section in sections:
        if section.frame.empty:
            continue
        heading = ": ".join(filter(None, (title, section.title)))
        caption = " ".join(filter(None, (f"{heading}.", " ".join(section.whole_legend.split()), note))).translate(LATEX)
        frame = _marked(section, r"\textbf{{{}}}", r"\underline{{{}}}", lambda text: text.translate(LATEX))
        frame = frame.loc[:, [heading_lines(name)[1] != "runs" for name in frame]]
        frame = frame.rename(columns=lambda name: str(name).translate(LATEX))
        longtable = len(frame) > PAGE
        label = f"tab:{re.sub('[^a-z0-9]+', '-', heading.lower()).strip('-')}-{len(tables) + 1}"
        text = frame.to_latex(
            index=False, escape=False, caption=caption, label=label, longtable=longtable, multicolumn_format="c"
        )
        text = text.replace(r"\begin{tabular}", "\\begin{adjustbox}{max width=\\linewidth}\n\\begin{tabular}")
        tables.append(text.replace(r"\end{tabular}", "\\end{tabular}\n\\end{adjustbox}"))
    return "\n".join(tables)


def csv(sections: Sequence[Section]) -> str:
    """Return what sections have for programs, a row per value."""
    return "".join(section.data.to_csv(index=False) for section in sections if section.data is not None)


def terminal(sections: Sequence[Section], width: int) -> str:
    """Return sections as plain text, without figures; legends are folded to ``width``, rows of tables never."""
    lines: list[str] = []
    for section in sections:
        if section.files_only:
            continue
        frame = section.frame.replace(_VALUE_WITH_INTERVAL, r"\1", regex=True)
        dropped = [] if frame.equals(section.frame) else ["Intervals: see main.md."]
        lines += ["", section.title] if section.title else []
        lines += _table(frame)
        lines += [fill(line, width) for line in [*section.legend.splitlines(), *dropped] if line]
    return "\n".join(lines[1:])


def _table(frame: pd.DataFrame) -> list[str]:
    """Return a table without its empty columns, and with a heading for every task and metric; column heads may have two lines.

    The heading says what holds for all rows of the task, so that the rest fits into 80 columns for names of usual length.
    """
    if frame.empty:
        return []
    frame = frame.loc[:, (frame != "").any()]
    named = [heading_lines(name) for name in frame]
    frame = frame.set_axis([name for _, name in named], axis=1)
    groups = [name for name in ("task", "metric") if name in frame]
    tasks = list(frame.groupby(groups, sort=False)) if groups else [((), frame)]
    shared = [*groups]
    if "encoder" in frame and all(len({*rows["encoder"]} - {""}) <= 1 for _, rows in tasks):
        shared += ["encoder"]
    left_out = {*shared, "runs"}  # footnotes are in the files
    kept = [index for index, (_, name) in enumerate(named) if name not in left_out]
    columns = [[named[index][1], *frame.iloc[:, index]] for index in kept]
    widths = [max(map(len, column)) for column in columns]
    above = []
    for text, of in groupby(range(len(kept)), key=lambda column: named[kept[column]][0]):
        *_, last = together = list(of)
        widths[last] += max(0, len(text) - sum(widths[column] + 2 for column in together) + 2)
        above.append(text.ljust(sum(widths[column] + 2 for column in together) - 2))
    head, *lines = (
        "  ".join(["", *(value.ljust(width) for value, width in zip(row, widths, strict=True))]).rstrip()
        for row in zip(*columns, strict=True)
    )
    numbers = dict(zip(frame.index, lines, strict=True))
    shown = ["", *([line] if (line := "  ".join(["", *above]).rstrip()) else []), head]
    for _, rows in tasks:
        heading = ""
        for value in rows[shared].max():  # of an encoder that some rows lack, the one that others have
            if value not in heading:
                heading = f"{heading}, {value}" if heading else value
        shown += [heading] if heading else []
        shown += [numbers[number] for number in rows.index]
    return shown


def _plain_markdown(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", text)


def _marked(section: Section, best: str, second: str, escaped: Callable[[str], str]) -> pd.DataFrame:
    """Return a section's table with its best values and the second ones marked, all of it escaped."""
    frame = section.frame.map(lambda text: escaped(str(text)))
    for (row, column), rank in section.marks.items():
        value, *rest = str(frame.iloc[row, column]).split(" ", 1)
        frame.iloc[row, column] = " ".join([(best if rank == 1 else second).format(value), *rest])
    return frame
