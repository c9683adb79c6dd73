"""What ``results.jsonl`` says, as a summary and as the table of a page."""

import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- the GPU's table begins -->", "<!-- the GPU's table ends -->"
NONE = "No GPU has been measured yet: no line of this suite has run on one."
"""What the page says until one was."""

Row = dict[str, Any]


def read(results: Path) -> list[Row]:
    """Return the measurements of ``results.jsonl``, one a line, in the order in which they were made."""
    return [json.loads(line) for line in results.read_text().splitlines()]


def summary(results: Path) -> str:
    """Return every measurement in a line, errors last."""
    rows = read(results)
    good, bad = ([row for row in rows if ("error" in row) == wrong] for wrong in (False, True))
    hidden = ("part", "t", "packages", "where", "top")
    lines = [f"{row['part']}: {', '.join(f'{k} {v}' for k, v in row.items() if k not in hidden)}" for row in good]
    return "\n".join([*lines, *(f"ERROR in {row['part']}, {row.get('name')}: {row['error']}" for row in bad)]) + "\n"


def table(results: Path, command: str) -> str:
    """Return the Markdown table of the page: the machine, the versions, the command, and the speed of every step."""
    rows = read(results)
    env = next((row for row in rows if row["part"] == "env"), {})
    peak = next((r["tflops"] for r in rows if r["part"] == "peak" and r.get("what") == "matrix product, bf16"), None)
    versions = ", ".join(f"{name} {env.get('packages', {}).get(name)}" for name in ("python", "torch", "timm"))
    head = [
        f"On {env.get('card')} ({env.get('hardware')}), CUDA {env.get('cuda')}, {versions}; bf16 matrix products reach {peak} TFLOP/s:",
        f"    {command}",
        "| | ViT | batch | images/s | TFLOP/s | of matrix products | GiB |\n|---|---|---:|---:|---:|---:|---:|",
    ]
    lines = []
    for row in rows:
        if row["part"] in ("speed", "fine-tuning") and "error" not in row:
            tflops = row["tflops"]
            share = f"{tflops / peak:.0%}" if tflops and peak else ""
            what = f"pre-training, {row['kind']}" if row["part"] == "speed" else "fine-tuning"
            lines.append(
                f"| {what} | {row['size']} | {row['batch']} | {row['images_per_second']:,} | {tflops or ''} | {share} | {row['gib'] or ''} |"
            )
        elif row["part"] == "loop" and row.get("what") == "a run":
            rate = round(row["images_per_second"])
            what = f"a whole run, {row['waiting_for_data']:.0%} waiting for data"
            lines.append(f"| {what} | {row['size']} | {row['batch']} | {rate:,} | | | |")
    return "\n\n".join(head) + "\n" + "\n".join(lines)


def write_page(page: Path, results: Path, command: str) -> None:
    """Put the table into ``page``, between its markers. Of a machine without a GPU the page goes on saying that none was measured.

    Raises:
        ValueError: if the page lacks the markers.
    """
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page}: expected the lines {BEGIN} and {END}, once each.")
    measured = any(row["part"] == "env" and row.get("card") for row in read(results))
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{table(results, command) if measured else NONE}\n\n{END}{after}")
