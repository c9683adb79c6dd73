"""Tables as the command line makes them: from the records of a suite to files and to the terminal."""

from pathlib import Path

from lutbench.recipes.suite import LoadedSuite
from lutbench.report import tables
from lutbench.report.sections import Section, View


def sections(suite: LoadedSuite, results: Path) -> list[Section]:
    return tables.all_sections(View.read(suite, results))


def section(suite: LoadedSuite, results: Path, name: str) -> Section:
    """The first section of the files of this name."""
    return next(one for one in sections(suite, results) if one.name == name)


def build_tables(suite: LoadedSuite, results: Path) -> dict[str, str]:
    view = View.read(suite, results)
    return tables.build_tables(view, tables.all_sections(view))


def write_tables(suite: LoadedSuite, results: Path) -> None:
    view = View.read(suite, results)
    tables.write_tables(view, tables.all_sections(view), results)


def check_tables(suite: LoadedSuite, results: Path) -> list[str]:
    view = View.read(suite, results)
    return tables.check_tables(view, tables.all_sections(view), results)


def show_tables(suite: LoadedSuite, results: Path) -> None:
    view = View.read(suite, results)
    tables.show_tables(view, tables.all_sections(view), results)
