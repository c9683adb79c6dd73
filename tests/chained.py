"""A suite whose runs start from one another: pre-training, fine-tuning, k-NN, robustness, an analysis."""

from pathlib import Path

from toy_runs import HIDDEN, SCRATCH, TOY, defaults, write_images

from lutbench.recipes.loading import load_suite
from lutbench.stages import run_suite
from lutbench.workspace import Workspace

CHAINED = f"""{TOY}
{defaults("pretrain")}
{defaults("finetune", epochs=2, base_lr=0.01, mixup=0.0, cutmix=0.0, threads=1)}
{defaults("knn", neighbours=3, threads=1)}
[defaults.robustness]
threads = 1
workers = 0
[defaults.analysis]
measures = ["attention"]
threads = 1
workers = 0
[pretrain.lut]
[method.lut]
pretrain = "lut"
[method.teacher]
pretrain = "lut"
teacher = true
{SCRATCH}
[downstream.tuned]
kind = "finetune"
methods = ["lut"]
[downstream.near]
kind = "knn"
{HIDDEN}
[robustness.shift]
tasks = ["tuned"]
sets = ["hidden"]
[analysis.looks]
data = "toy"
methods = ["lut"]
"""


def run_chain(folder: Path) -> None:
    """Run all of it; images, ``runs`` and ``results`` are below ``folder``, the suite is ``toy``.

    Four images of amber are labelled blue, so that something is wrong.
    """
    write_images(folder)
    for number in range(4):
        (folder / f"toy/val/amber/{number}.png").rename(folder / f"toy/val/blue/amber{number}.png")
    (folder / "toy.toml").write_text(CHAINED)
    run_suite(load_suite(str(folder / "toy.toml")), [], [], Workspace(folder, folder / "runs", folder / "results"))
