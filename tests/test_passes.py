"""One pass over images gives what plain computations give, one by one: for a ViT-B on four images, every measure."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from analysis.cka import cka, grams
from analysis.passes import Passed, second_views, through_images
from analysis.similarity import alignment
from lutbench.data.images import open_dataset
from lutbench.evaluate.inference import encode_images
from lutbench.evaluate.ranks import effective_rank, participation_ratio
from lutbench.models.encoders import create_encoder
from lutbench.models.preprocessing import IMAGENETS
from lutbench.models.pretrained import load_encoder
from lutbench.recipes.analysis import MEASURES, AnalysisRecipe
from lutbench.recipes.base import DataRecipe
from lutbench.recipes.probes import KnnRecipe

IMAGES, WIDTH, PATCHES, DEPTH = 4, 768, 196, 2
ARCHITECTURE = {"model": "vit_base_patch16_224", "depth": DEPTH}
SETTINGS = {
    "data": {"path": "set", "val": "train"},
    "encoder": {"architecture": ARCHITECTURE, "kind": "scratch"},
    "workers": 0,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / f"set/train/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3)).astype(np.uint8))
        coarse.resize((224, 224), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="module")
def passed(root: Path) -> tuple[Passed, list[NDArray[np.float64]]]:
    """What the pass found, and the tokens (4, 1 + N, D) after every block and the last norm, by hooks alone."""
    recipe = AnalysisRecipe.model_validate(SETTINGS | {"eval_crop": 1.0, "eval_batch": 3})
    encoder = load_encoder(recipe.encoder).eval()
    images = open_dataset(DataRecipe.model_validate(SETTINGS["data"]), "train", root)
    found = through_images(encoder, images, np.arange(IMAGES), recipe, IMAGENETS, "", MEASURES)
    tokens: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output: tokens.append(output))
        for module in (*encoder.blocks, encoder.norm)
    ]
    pixels = torch.stack([torch.from_numpy(np.array(images.image(k))).permute(2, 0, 1) for k in range(IMAGES)]) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENETS.mean, IMAGENETS.std))
    with torch.no_grad():
        encoder((pixels - mean) / std)
    for hook in hooks:
        hook.remove()
    return found, [of.double().numpy() for of in tokens]


def test_features_are_the_mean_over_patches_and_the_class_token_of_every_block(
    passed: tuple[Passed, list[NDArray[np.float64]]],
) -> None:
    found, tokens = passed
    expected = np.stack([np.stack([of[:, 1:].mean(1), of[:, 0]], 1) for of in tokens], 1)
    np.testing.assert_allclose(found.values["features"], expected, atol=2e-4)


def test_spectra_are_those_of_the_whole_centred_matrices(passed: tuple[Passed, list[NDArray[np.float64]]]) -> None:
    found, tokens = passed
    for depth, of in enumerate(tokens):
        for rows, matrix in (("pooled", of[:, 1:].mean(1)), ("tokens", of[:, 1:].reshape(-1, WIDTH))):
            expected = np.linalg.svd(matrix - matrix.mean(0), compute_uv=False)
            values = found.spectra[rows][depth].singular_values()
            np.testing.assert_allclose(values[: len(expected)], expected, atol=2e-5 * expected[0])
            assert len(values) == WIDTH
            assert effective_rank(values) == pytest.approx(effective_rank(expected), rel=1e-3)


def test_ranks_and_similarities_of_an_images_tokens_are_those_of_plain_loops(
    passed: tuple[Passed, list[NDArray[np.float64]]],
) -> None:
    found, tokens = passed
    for depth, of in enumerate(tokens):
        for number, patches in enumerate(of[:, 1:]):
            singular = np.linalg.svd(patches - patches.mean(0), compute_uv=False)
            assert float(found.values["token_rank"][number, depth]) == pytest.approx(
                participation_ratio(singular), rel=1e-3
            )
            length = patches / np.linalg.norm(patches, axis=1, keepdims=True)
            cosines = (length @ length.T)[~np.eye(PATCHES, dtype=bool)]
            assert float(found.values["similarity"][number, depth]) == pytest.approx(cosines.mean(), abs=1e-4)


def test_amplitudes_are_those_of_a_transform_of_the_whole_map(passed: tuple[Passed, list[NDArray[np.float64]]]) -> None:
    found, tokens = passed
    for depth, of in enumerate(tokens[:-1]):
        logs = np.log(np.abs(np.fft.fft2(of[:, 1:].reshape(IMAGES, 14, 14, WIDTH), axes=(1, 2))) + 1e-6).mean(3)
        expected = np.stack([logs[:, k, k] - logs[:, 0, 0] for k in range(1, 8)], 1)
        np.testing.assert_allclose(found.values["amplitude"][:, depth], expected, atol=1e-3)


def test_cka_between_blocks_is_that_of_whole_gram_matrices(passed: tuple[Passed, list[NDArray[np.float64]]]) -> None:
    found, tokens = passed

    def hsic(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
        """The unbiased estimator of Song et al. 2012 as it is written there."""
        one, other = (matrix - np.diag(np.diag(matrix)) for matrix in (first, second))
        n, ones = len(one), np.ones(len(one))
        total = np.trace(one @ other) + (ones @ one @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
        return float(total - 2 / (n - 2) * (ones @ one @ other @ ones)) / (n * (n - 3))

    # Features of random weights differ little from image to image: centred, as CKA is the same, for the digits.
    centred = [of[:, 1:].mean(1) - of[:, 1:].mean((0, 1)) for of in tokens]
    matrices = [of @ of.T for of in centred]
    kept = grams(found.values["features"][:, :, 0].numpy())
    measured = cka(kept, kept)
    for i, one in enumerate(matrices):
        for j, other in enumerate(matrices):
            expected = hsic(one, other) / np.sqrt(hsic(one, one) * hsic(other, other))
            assert measured[i, j] == pytest.approx(expected, abs=1e-3)


def test_a_second_view_is_another_crop_and_the_same_for_every_encoder(root: Path) -> None:
    recipe = AnalysisRecipe.model_validate(SETTINGS | {"eval_crop": 1.0})
    images = open_dataset(DataRecipe.model_validate(SETTINGS["data"]), "train", root)
    encoder = load_encoder(recipe.encoder).eval()
    chosen = np.arange(IMAGES)
    views = second_views(encoder, images, chosen, recipe, IMAGENETS, "")
    seen = through_images(encoder, images, chosen, recipe, IMAGENETS, "", ["similarity"]).values["features"][:, -1, 0]
    assert alignment(seen, views).min() > 1e-4
    again = second_views(encoder, images, chosen[1:3], recipe, IMAGENETS, "")
    torch.testing.assert_close(again, views[1:3], rtol=0, atol=1e-5)


def test_equal_images_have_second_views_of_their_own(root: Path, tmp_path: Path) -> None:
    (tmp_path / "set/train").mkdir(parents=True)
    for number in range(3):
        shutil.copy(root / "set/train/a/0.png", tmp_path / f"set/train/{number}.png")
    recipe = AnalysisRecipe.model_validate(SETTINGS)
    images = open_dataset(DataRecipe.model_validate(SETTINGS["data"]), "train", tmp_path)
    views = second_views(load_encoder(recipe.encoder).eval(), images, np.arange(3), recipe, IMAGENETS, "")
    assert min(float(alignment(views[[i]], views[[j]])) for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-5


def test_the_output_of_a_classifiers_encoder_has_the_norm_behind_the_pooling(root: Path) -> None:
    recipe = AnalysisRecipe.model_validate(SETTINGS)
    encoder = create_encoder(recipe.encoder.architecture, pooled_norm=True).eval()
    torch.nn.init.constant_(encoder.fc_norm.weight, 3.0)
    images = open_dataset(DataRecipe.model_validate(SETTINGS["data"]), "train", root)
    chosen = np.arange(IMAGES)
    features = through_images(encoder, images, chosen, recipe, IMAGENETS, "", ()).values["features"][:, -1]
    for kind, pool in enumerate(("mean", "class")):
        task = KnnRecipe.model_validate(SETTINGS | {"pool": pool})
        expected = encode_images(encoder, images, task, IMAGENETS, "").values
        torch.testing.assert_close(features[:, kind], expected, rtol=1e-4, atol=1e-4)
