"""The page of every command, from the command line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command

from generate.markup import markdown
from lutbench.cli import app


def command_pages() -> dict[str, str]:
    """Return the page of all commands with their arguments and options."""
    root: Any = get_command(app)
    parts = [
        "# Every command",
        "Generated from the command line; `lutbench COMMAND -h` prints the same. How the commands work together: {doc}`/running`.",
        *_command(root, "lutbench"),
    ]
    return {"commands.md": "\n\n".join(parts) + "\n"}


def _command(command: Any, name: str) -> Iterator[str]:
    """Yield the section of a command, and those of the commands below it."""
    if name != "lutbench":
        yield f"## {name}"
    yield markdown(command.help or "")
    arguments = [
        one for one in command.params if one.param_type_name == "argument" and not getattr(one, "hidden", False)
    ]
    options = [one for one in command.params if one.param_type_name == "option" and not getattr(one, "hidden", False)]
    below = getattr(command, "commands", {})
    if name != "lutbench" and not below:
        given = [_metavar(one) if one.required else f"[{_metavar(one)}]" for one in arguments]
        yield f"```sh\n{' '.join([name, *given, *(['[OPTIONS]'] if options else [])])}\n```"
    rows = [_definition(f"`{_metavar(one)}`", one) for one in arguments]
    rows += [_definition(", ".join(f"`{flag}`" for flag in [*one.opts, *one.secondary_opts]), one) for one in options]
    yield from rows
    for name_below, one in below.items():
        if not one.hidden:
            yield from _command(one, f"{name} {name_below}")


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _definition(term: str, parameter: Any) -> str:
    """Return one argument or option as a term and its definition."""
    takes = getattr(parameter, "metavar", None) if parameter.param_type_name == "option" else None
    annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    choices = (
        get_args(annotation)
        if get_origin(annotation) is Literal
        else getattr(getattr(parameter, "type", None), "choices", ())
    )
    value = f" `{takes or '|'.join(map(str, choices))}`" if takes or choices else ""
    default = parameter.default
    said = [markdown(parameter.help or "")]
    if isinstance(default, int | float | str | Path) and not isinstance(default, bool) and str(default):
        said.append(f"Default: `{default}`.")
    if variable := getattr(parameter, "envvar", None):
        said.append(f"Environment variable: `{variable}`.")
    return f"{term}{value}\n: {' '.join(said)}"
