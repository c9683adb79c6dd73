"""The picture grid shows input, masked input and reconstruction."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_student import random_views, tiny_recipe

from pretrain.reconstruction import reconstruction_grid
from pretrain.student import build_student
from pretrain.views import Views


def test_the_grid_shows_input_masked_and_reconstruction_enlarged(tmp_path: Path) -> None:
    colours = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = {"view1": colours.permute(0, 2, 3, 1), "flips": torch.zeros(6, 1, dtype=torch.bool)}
    views = Views.from_batch(batch | {"noise": random_views().noise}, torch.device("cpu"))
    student = build_student(tiny_recipe(context_weight=0.0), seed=0)
    reconstruction_grid(student, views, tmp_path / "grid.png", count=3)
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (2 * 196 + 4, 6 * 196 + 4, 3), "two images in the first row, one in the second"

    def shown(row: int, column: int) -> np.ndarray:
        top, left = 4 + 196 * row, 4 + 196 * column
        return picture[top : top + 192 : 12, left : left + 192 : 12]

    for place, (row, column) in enumerate([(0, 0), (0, 3), (1, 0)]):
        original = colours[place].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(shown(row, column) - original).max() <= 1
        kept = np.abs(shown(row, column + 1) - original).max(axis=2) <= 1
        grey = np.abs(shown(row, column + 1) - np.array([124, 116, 104])).max(axis=2) <= 1
        assert (kept | grey).all()
        assert 64 <= kept.sum() < 80, "a quarter of the pixels, and those that happen to be grey"
        rebuilt = np.abs(shown(row, column + 2) - original).max(axis=2) <= 1
        assert (rebuilt | ~kept | grey).all(), "what was seen is pasted in"
        assert rebuilt.sum() < 100


def test_large_images_are_not_enlarged(tmp_path: Path) -> None:
    recipe = tiny_recipe(context_weight=0.0)
    large = recipe.encoder.model_copy(update={"image_size": 200, "patch_size": 20})
    student = build_student(recipe.model_copy(update={"encoder": large}), seed=0)
    reconstruction_grid(student, Views(torch.randn(1, 3, 200, 200), None, torch.rand(1, 100)), tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size == (3 * 204 + 4, 208)
