"""How fast images are evaluated from files, and neighbours found among as many features as ImageNet has images."""

import os
import tempfile
from pathlib import Path

import timm
import torch
from bench import Bench
from common import MODELS, write_crops
from robustness_stage import classify

from lutbench.evaluate.neighbours import knn_classify
from lutbench.models.preprocessing import IMAGENETS
from lutbench.plan.compute import transformer
from lutbench.recipes.base import EncoderRecipe
from lutbench.recipes.reading import read_recipe
from lutbench.recipes.robustness import RobustnessDatasetRecipe, RobustnessRecipe
from robustness.classifier import Classifier
from robustness.conditions import open_condition
from robustness.labels import imagenet_1k


def inference(bench: Bench) -> None:
    """Images/s of the robustness stage from files, and the seconds of k-NN at ImageNet's size."""
    with bench.section("inference", "robustness"), tempfile.TemporaryDirectory() as folder:
        _robustness(bench, Path(folder))
    with bench.section("inference", "k-NN"):
        queries, bank, width = (8, 64, 16) if bench.toy else (50_000, 1_281_167, 768)
        asking, voting = (torch.randn(rows, width, device=bench.device) for rows in (queries, bank))
        labels, of_bank = (torch.randint(0, 10, (rows,), device=bench.device) for rows in (queries, bank))
        took = bench.in_a_row(lambda: knn_classify(asking, labels, voting, of_bank, 1000, 20, 0.07), 1)
        bench.emit("inference", what="k-NN", queries=queries, bank=bank, seconds=round(took, 2))


def _robustness(bench: Bench, folder: Path) -> None:
    count, batch, workers = (4, 4, 0) if bench.toy else (4096, 256, len(os.sched_getaffinity(0)))
    write_crops(folder, count, imagenet_1k().names[:10])
    set_settings = {"path": ".", "labels": "imagenet-1k", "preprocessing": ["crop"]}
    shifted = read_recipe(RobustnessDatasetRecipe, set_settings, "shifted")
    settings = {"classifier": {"kind": "timm", "model": MODELS["S"]}, "set": shifted.model_dump()}
    recipe = read_recipe(RobustnessRecipe, {**settings, "eval_batch": batch, "workers": workers}, "gpu")
    condition = open_condition(shifted, folder, "", imagenet_1k())
    name = "vit_tiny_patch16_224" if bench.toy else MODELS["S"]
    classifier = Classifier(timm.create_model(name).to(bench.device).eval(), 224, imagenet_1k(), IMAGENETS)
    took = bench.in_a_row(lambda: classify(classifier, condition, recipe), 1)
    bench.emit(
        "inference", what="robustness, from files", size="S", batch=batch, images_per_second=round(count / took, 1),
        flop_per_image=transformer(EncoderRecipe(model=MODELS["S"]), 224, 1000).flop,
    )  # fmt: skip
