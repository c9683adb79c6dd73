"""What ``results.jsonl`` says, as a summary; and as the table of a card, which ``lutbench plan`` reads and ``docs/benchmarks.md`` shows."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import MODELS

from lutbench.files import write_json
from lutbench.plan.measured import TABLE, WHOLE_RUN, Card, measured_cards

PAGE = Path(__file__).parents[2] / "docs/benchmarks.md"
BEGIN, END = "<!-- the GPU's table begins -->", "<!-- the GPU's table ends -->"
NONE = "Nothing was measured on a GPU yet: no line of this suite has run on one."
"""What the page says until one was."""

KINDS = {"speed": "pretrain", "loop": "pretrain", "fine-tuning": "finetune", "inference": "robustness"}
"""The kind of run whose images/s a part measures."""

TITLES = {"pretrain": "pre-training", "finetune": "fine-tuning", "robustness": "evaluation from files"}
VARIANTS = {"regional": "", "ours": "eager"}
"""How the ways of a step are named; one that is compiled block by block is a run's own."""

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


def card_of(results: Path, command: str) -> Card | None:
    """Return the card that was measured; None if there was no GPU."""
    rows = [row for row in read(results) if "error" not in row]
    env = next((row for row in rows if row["part"] == "env"), {})
    if not env.get("card"):
        return None
    peaks = [row["tflops"] * 1e12 for row in rows if row.get("what") == "matrix product, bf16"]
    speeds = [
        {
            "kind": KINDS[row["part"]],
            "variant": _variant(row),
            "waiting_for_data": row.get("waiting_for_data"),
            "model": MODELS[row["size"]],
            "first_step_s": row.get("first_s"),
            "memory_gib": row.get("gib"),
            **{name: row[name] for name in ("batch", "images_per_second", "flop_per_image")},
        }
        for row in rows
        if row["part"] in KINDS and "flop_per_image" in row
    ]
    return Card.model_validate(
        {
            "card": env["card"], "memory_gib": env["memory_gib"], "machine": env["hardware"], "cuda": env["cuda"], "code": env["code"],
            "versions": {name: env["packages"][name] for name in ("python", "torch", "timm")},
            "date": datetime.now(UTC).date().isoformat(), "command": command, "matrix_flops": next(filter(None, peaks), None), "speeds": speeds,
        }
    )  # fmt: skip


def _variant(row: Row) -> str:
    if row["part"] == "loop":
        return f"{WHOLE_RUN} from {row['source']}"
    return VARIANTS.get(row.get("way", "regional"), row.get("way", ""))


def keep(card: Card, table: Path = TABLE, page: Path = PAGE) -> None:
    """Put a card into the table, in place of what was measured on one of this name before, and show the table on the page."""
    cards = sorted([*(one for one in measured_cards(table) if one.card != card.card), card], key=lambda one: one.card)
    write_json(table, {"cards": [one.model_dump(mode="json") for one in cards]})
    write_page(page, cards)


def write_page(page: Path, cards: Sequence[Card]) -> None:
    """Put the cards into a page, between its markers.

    Raises:
        ValueError: if the page lacks the markers.
    """
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page}: expected the lines {BEGIN} and {END}, once each.")
    page.write_text(f"{text.split(BEGIN)[0]}{BEGIN}\n\n{shown(cards)}\n\n{END}{text.split(END)[1]}")


def shown(cards: Sequence[Card]) -> str:
    """Return what the page shows: of every card the machine, the versions, the command, and the speed of every step."""
    return "\n\n".join(map(_markdown, cards)) or NONE


def _markdown(card: Card) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    peak = card.matrix_flops
    reached = f"; bf16 matrix products reach {peak / 1e12:,.1f} TFLOP/s" if peak else ""
    lines = [
        f"On {card.card} of {card.memory_gib:g} GiB ({card.machine}), CUDA {card.cuda}, {versions}, lutbench {card.code}, {card.date}{reached}:",
        "",
        f"    {card.command}",
        "",
        "| | model | batch | images/s | TFLOP/s | of matrix products | GiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for speed in card.speeds:
        waiting = None if speed.waiting_for_data is None else f"{speed.waiting_for_data:.0%} waiting for data"
        what = ", ".join(filter(None, (TITLES[speed.kind], speed.variant, waiting)))
        flops = speed.images_per_second * speed.flop_per_image
        share = f"{flops / peak:.0%}" if peak else ""
        lines.append(
            f"| {what} | `{speed.model}` | {speed.batch} | {speed.images_per_second:,.1f} | {flops / 1e12:,.1f} | {share} | "
            f"{speed.memory_gib or ''} |"
        )
    return "\n".join(lines)
