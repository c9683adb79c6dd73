"""Text of the code as Markdown: docstrings, and values as a suite file has them."""

import re


def markdown(text: str) -> str:
    """Return the Markdown of a docstring: roles and double backticks become code, and its lines one paragraph for each."""
    text = re.sub(r":\w+(?::\w+)?:`~?\.?([^`]+)`", r"`\1`", text)
    text = text.replace("``", "`")
    return "\n\n".join(re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text) if part.strip())


def toml(value: object) -> str:
    """Return a value as a suite file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{toml(key)} = {toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else str(value)
