"""The settings in which two recipes, or the identity inputs of two runs, differ."""

import re
from collections.abc import Mapping
from typing import Any


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the fields in which two identity inputs or recipes differ: ``epochs changed from 10 to 20``.

    The preprocessing settings of a recipe appear a second time in ``encoder.preprocessing``, the values in effect; they are listed once.
    """
    before, after = flat(old), flat(new)
    changed = [key for key in {**before, **after} if before.get(key, flat) != after.get(key, flat)]
    return [
        f"{key} changed from {_shown(before.get(key, 'not set'))} to {_shown(after.get(key, 'not set'))}"
        for key in changed
        if f"recipe.{key.replace('.preprocessing.', '.', 1)}" not in changed
    ]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _shown(value: Any) -> str:
    """Return a value for a message; a sha256 is cut to 12 digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", str(value))
