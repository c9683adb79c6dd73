"""How fast classifiers evaluate on a CPU in batches of several sizes, and whether the results have the same bits.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_batches.py    # four minutes on one core

Random images of 224 x 224, float32, one thread; times are CPU times, the best of some rounds.
"""

import time
from typing import Annotated

import timm
import torch
import typer
from common import heading
from torch import Tensor

from lutbench.allocator import keep_freed_memory

MODELS = {"EfficientNet-B0": "efficientnet_b0", "ViT-S/16": "vit_small_patch16_224"}
SIZES = (32, 64, 256)


def main(
    images: Annotated[int, typer.Option(min=1, help="Images that a round evaluates.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="How often each size is measured.")] = 2,
) -> None:
    """Measure, and print a Markdown table."""
    keep_freed_memory()
    torch.set_num_threads(1)
    print(heading("float32", "one thread"))
    print(f"| images/s, batches of | {' | '.join(map(str, SIZES))} | same bits |")
    print(f"|---|{'---:|' * len(SIZES)}---|")
    for label, name in MODELS.items():
        torch.manual_seed(0)
        model, pixels = timm.create_model(name).eval(), torch.randn(images, 3, 224, 224)
        seconds: dict[int, list[float]] = {size: [] for size in SIZES}
        found: dict[int, Tensor] = {}
        with torch.inference_mode():
            model(pixels[:8])
            for _ in range(rounds):
                for size, taken in seconds.items():
                    before = time.process_time()
                    found[size] = torch.cat([model(part) for part in pixels.split(size)])
                    taken.append(time.process_time() - before)
        rates = " | ".join(f"{images / min(taken):.1f}" for taken in seconds.values())
        same = all(torch.equal(one, found[SIZES[0]]) for one in found.values())
        print(f"| {label} | {rates} | {'yes' if same else 'no'} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
