"""Find the licence of weights, if their files state it."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError, safe_open

from lutbench.files import CONTROL, read_json
from lutbench.models.weight_files import weight_files


def licence_of(weights: Path) -> str:
    """Return the licence of a file or folder of weights; empty if unknown.

    Looks in the metadata of safetensors, then beside the weights: in the front matter of ``README.md``, as on the Hub, and in timm's
    ``config.json``.
    """
    file = weight_files(weights)[0]
    for values in (_metadata(file), _front_matter(file.parent / "README.md"), _config(file.parent / "config.json")):
        for key in ("license", "licence", "license_name"):
            if (licence := values.get(key)) and isinstance(licence, str) and licence != "other":
                return CONTROL.sub(" ", licence)[:80]
    return ""


def timms_licence(model: str) -> str:
    """Return the licence that timm knows of its weights of a model; empty if it knows none."""
    known = timm.get_pretrained_cfg(model)
    return str(known.license or "") if known else ""


def _metadata(file: Path) -> dict[str, Any]:
    with suppress(SafetensorError, OSError), safe_open(file, framework="pt") as opened:
        return dict(opened.metadata() or {})
    return {}


def _front_matter(readme: Path) -> dict[str, Any]:
    if not readme.is_file():
        return {}
    from huggingface_hub import metadata_load  # here, because it takes long to import

    with suppress(Exception):  # a README is anybody's text, and a licence is no reason to stop
        return metadata_load(readme) or {}
    return {}


def _config(file: Path) -> dict[str, Any]:
    with suppress(Exception):
        known = read_json(file)["pretrained_cfg"]
        return known if isinstance(known, dict) else {}
    return {}
