"""Every aim of speed that this suite has, beside what this machine does, in one table.

    python benchmarks/aims.py                        # some minutes on two cores, after the README's line
    python benchmarks/aims.py --only reading
    python benchmarks/aims.py --long                 # the README's line too, anew and in a folder of its own

It measures by the other benchmarks and the command line itself. What this machine cannot show is listed as such: the aims for GPUs are
held against the cards in ``lutbench/plan/measured.json``, which ``benchmarks/gpu/measure.py --keep`` fills.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from common import MODELS, heading

from lutbench.kinds import STAGES
from lutbench.plan.measured import WHOLE_RUN, Card, Speed, measured_cards

ROOT = Path(__file__).parents[1]


class Aim(NamedTuple):
    """What is to be reached, and what is."""

    what: str
    aim: str
    measured: str
    met: bool | None = None
    """None where it was not measured."""


@dataclass(frozen=True)
class Where:
    """The folders of a finished ``tiny``, and how much is measured."""

    data: Path
    runs: Path
    results: Path
    images: int
    rounds: int


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="feed, reading, allocator, bf16 or gpu; all if not given.")
    ] = None,
    long: Annotated[bool, typer.Option("--long", help="Run the README's line as well.")] = False,
    data_root: Annotated[Path, typer.Option(help="Data of a finished tiny.")] = ROOT / "data",
    runs: Annotated[Path, typer.Option(help="Its runs.")] = ROOT / "runs",
    results: Annotated[Path, typer.Option(help="Its records.")] = ROOT / "results",
    images: Annotated[int, typer.Option(min=64, help="Images that each way of loading takes in a round.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 3,
) -> None:
    """Measure, and print a Markdown table."""
    if unknown := set(only or ()) - set(PARTS):
        raise typer.BadParameter(f"{', '.join(unknown)}: choose among {', '.join(PARTS)}.", param_hint="--only")
    where = Where(data_root.absolute(), runs.absolute(), results.absolute(), images, rounds)
    parts = {name: PARTS[name] for name in only or PARTS} | ({"the README's line": readme_line} if long else {})
    rows = [aim for name, part in parts.items() for aim in tried(name, part, where)]
    print(heading())
    print("| what | aim | measured | |")
    print("|---|---:|---:|---|")
    for row in rows:
        met = {None: "not measured", True: "met", False: "**not met**"}[row.met]
        print(f"| {row.what} | {row.aim} | {row.measured} | {met} |")


def tried(name: str, part: "Part", where: Where) -> Iterator[Aim]:
    """Yield the aims of a part; of one that fails, after those that it had measured, that it failed."""
    print(f"measuring {name}", file=sys.stderr)
    try:
        yield from part(where)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        yield Aim(name, "", f"failed: {error}")


# Loading


def feed(where: Where) -> Iterator[Aim]:
    """How much faster images become views than they did, by ``benchmarks/loader.py``."""
    from loader import AIMS, BOUNDS, measure, ratio

    rates = measure(where.images, where.rounds).rates
    for name, before, aim in AIMS:
        found = ratio(rates, name, before)
        bound = (
            f", {ratio(rates, BOUNDS[name], before):.1f}x if only decoding and resizing remained"
            if name in BOUNDS
            else ""
        )
        yield Aim(f"images/s, {name}, against {before}", f"{aim:.1f}x", f"{found:.1f}x{bound}", found >= aim)


# Commands that only read


def reading(where: Where) -> Iterator[Aim]:
    """The CPU seconds of commands that only read, the fewest of some times."""
    folders = ["--runs", str(where.runs), "--results", str(where.results), "--data-root", str(where.data)]
    status = lutbench("status", "tiny", *folders)
    states = re.findall(rf"(?m)^(?:{'|'.join(STAGES)})/\S+ +(\w+)", status.output)
    if set(states) == {"finished"}:
        yield _command("`lutbench status tiny`", 1, where.rounds, ["status", "tiny", *folders], [status.seconds])
    else:
        yield Aim("CPU seconds of `lutbench status tiny`", "1 s", "tiny has not finished: lutbench run tiny")
    with tempfile.TemporaryDirectory() as folder:
        records = next(one for one in (where.results, ROOT / "results/reference") if (one / "records/tiny").is_dir())
        shutil.copytree(records / "records/tiny", Path(folder) / "records/tiny")
        tables = ["tables", "tiny", "--results", folder, "--reference", str(ROOT / "results/reference")]
        yield _command("`lutbench tables tiny`", 4, where.rounds, tables)
        empty = ["--runs", f"{folder}/runs", "--results", f"{folder}/results"]
        to_come = ["status", "tiny", "--data-root", str(where.data), *empty]
        yield _command("`lutbench status tiny`, all runs to come", 1, where.rounds, to_come)
        nothing = ["--data-root", folder, *empty]
        yield _command("`lutbench plan paper`", 5, where.rounds, ["plan", "paper", *nothing])


class Done(NamedTuple):
    """What a command printed, and the processor's seconds that it took."""

    output: str
    seconds: float


def lutbench(*arguments: str) -> Done:
    """Give a command to ``lutbench`` in a process of its own.

    Raises:
        RuntimeError: if it fails.
    """
    before = _seconds_of_children()
    done = subprocess.run(
        [sys.executable, "-m", "lutbench", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"lutbench {' '.join(arguments)} failed: {done.stderr.strip()}")
    return Done(done.stdout, _seconds_of_children() - before)


def _seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _command(name: str, aim: float, rounds: int, arguments: Sequence[str], taken: Sequence[float] = ()) -> Aim:
    """Return how a command stands that has ``taken`` so many seconds already, given again up to so many ``rounds``."""
    seconds = min([*taken, *(lutbench(*arguments).seconds for _ in range(rounds - len(taken)))])
    return Aim(f"CPU seconds of {name}", f"{aim:g} s", f"{seconds:.1f} s", seconds <= aim)


# Memory and precision

EVALUATING = """
import sys, time
if sys.argv[1] == "kept":
    from lutbench.allocator import keep_freed_memory
    assert keep_freed_memory()
import timm, torch
model, images = timm.create_model("efficientnet_b0").eval(), torch.randn(32, 3, 224, 224)
with torch.inference_mode():
    model(images)
    start = time.perf_counter()
    for _ in range(3):
        model(images)
print(3 * len(images) / (time.perf_counter() - start))
"""


def allocator(where: Where) -> Iterator[Aim]:
    """How much faster an EfficientNet evaluates where malloc keeps what is freed, as ``lutbench run`` tells it to."""
    name, aim = "images/s of an EfficientNet-B0, batch 32, freed memory kept, against glibc's way", 66 / 27
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        yield Aim(name, f"{aim:.1f}x", "glibc is not here")
        return
    rates: dict[str, list[float]] = {"kept": [], "given back": []}
    for _ in range(where.rounds):
        for how, found in rates.items():
            done = subprocess.run(
                [sys.executable, "-c", EVALUATING, how], cwd=ROOT, check=True, capture_output=True, text=True
            )
            found.append(float(done.stdout))
    ratio = max(rates["kept"]) / max(rates["given back"])
    yield Aim(name, f"{aim:.1f}x", f"{ratio:.1f}x", ratio >= aim)


def bf16(where: Where) -> Iterator[Aim]:
    """Whether ``precision = "auto"`` takes the faster of float32 and bf16 for a ViT-S, by ``benchmarks/pretrain_step.py``."""
    from pretrain_step import in_own_process

    from lutbench.train.precision import processors_multiply_bf16

    chosen, other, aim = ("bf16", "fp32", 1.3) if processors_multiply_bf16() else ("fp32", "bf16", 1.0)
    best = dict.fromkeys((chosen, other), 0.0)
    for _ in range(where.rounds):
        for precision in best:
            rate = in_own_process("S", "ours", 8, 2, 1, precision).images_per_second
            best[precision] = max(best[precision], rate)
    ratio = best[chosen] / best[other]
    yield Aim(
        f"LUT steps of ViT-S in {chosen}, which auto is here, against {other}",
        f"{aim:.1f}x",
        f"{ratio:.1f}x",
        ratio >= aim,
    )


# GPUs


def gpu(where: Where) -> Iterator[Aim]:
    """What the cards reach that were measured; of several the best."""
    return gpu_aims(measured_cards())


def gpu_aims(cards: Sequence[Card]) -> Iterator[Aim]:
    """Yield the aims for GPUs: shares of the matrix products' FLOP/s, of steps and of runs from files, a ViT-L's first step and memory."""

    def steps(size: str, variant: str = "") -> list[tuple[Card, Speed]]:
        return [
            (card, speed)
            for card in cards
            for speed in card.speeds
            if (speed.kind, speed.model, speed.variant) == ("pretrain", MODELS[size], variant)
        ]

    for what, variant in {"step": "", "run from files": f"{WHOLE_RUN} from files"}.items():
        for size, aim in {"S": 0.4, "B": 0.5, "L": 0.55}.items():
            shares = [
                (speed.images_per_second * speed.flop_per_image / card.matrix_flops, card.card)
                for card, speed in steps(size, variant)
                if card.matrix_flops
            ]
            name = f"LUT {what} of ViT-{size}, share of the FLOP/s of matrix products"
            yield _on_cards(name, aim, "{:.0%}", shares, max)
    firsts = [(speed.first_step_s, card.card) for card, speed in steps("L") if speed.first_step_s]
    yield _on_cards("seconds of the first step of ViT-L, compiled block by block", 60, "{:.0f} s", firsts, min)
    memory = [
        (speed.memory_gib * 2**30 / 1e9, card.card)
        for card, speed in steps("L", "checkpointed")
        if speed.batch == 1024 and speed.memory_gib
    ]
    yield _on_cards("memory of ViT-L with 1,024 images a step, checkpointed", 80, "{:.0f} GB", memory, min)


def _on_cards(
    what: str, aim: float, form: str, found: Sequence[tuple[float, str]], best: Callable[..., tuple[float, str]]
) -> Aim:
    """Return how the ``best`` of what was ``found`` on cards stands, the greatest or the least."""
    if not found:
        return Aim(what, form.format(aim), "no GPU was measured")
    value, card = best(found)
    return Aim(what, form.format(aim), f"{form.format(value)} ({card})", best((value, ""), (aim, "")) == (value, ""))


# The README's line


def readme_line(where: Where) -> Iterator[Aim]:
    """The seconds of what the README's line does after installation: every stage of ``tiny``, two runs at a time, its tables and its report."""
    with tempfile.TemporaryDirectory() as folder:
        folders = ["--data-root", f"{folder}/data", "--runs", f"{folder}/runs", "--results", f"{folder}/results"]
        reference = Path(folder, "results/reference")  # as in a clone: it says how long runs take
        reference.parent.mkdir()
        reference.symlink_to(ROOT / "results/reference")
        start = time.perf_counter()
        for stage in STAGES:
            lutbench("run", "tiny", *folders, "--jobs", "2" if (os.cpu_count() or 1) > 1 else "1", "--stage", stage)
        lutbench("tables", "tiny", "--results", f"{folder}/results")
        lutbench("report", "tiny", *folders)
        taken = time.perf_counter() - start
    yield Aim("seconds of the README's line after installation", "100 s", f"{taken:.0f} s", taken <= 100)


Part = Callable[[Where], Iterator[Aim]]

PARTS: dict[str, Part] = {
    "feed": feed,
    "reading": reading,
    "allocator": allocator,
    "bf16": bf16,
    "gpu": gpu,
}
"""Every part but the long one, in the order of the table."""


if __name__ == "__main__":
    typer.run(main)
