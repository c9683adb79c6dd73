"""Write lutbench/report/html/vega.min.js: Vega, Vega-Lite and vega-embed in one script, from the package vl-convert-python.

``nox -s vega`` runs it with the version of that package that the file was made by; the same version makes the same bytes.
"""

from importlib.metadata import version
from pathlib import Path

import vl_convert

FILE = Path(__file__).parents[1] / "lutbench/report/html/vega.min.js"
HEADER = "/*! Vega, Vega-Lite, vega-embed and what they need, under the licences in vega.LICENSE. Made by docs/bundle_vega.py from vl-convert-python {}. */\n"

if __name__ == "__main__":
    FILE.write_text(
        HEADER.format(version("vl-convert-python")) + vl_convert.javascript_bundle() + "\n", encoding="utf-8"
    )
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")
