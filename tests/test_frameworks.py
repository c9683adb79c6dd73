"""LUT goes around any framework: one that encodes mask tokens needs no change to student, teacher, context or pictures."""

import pytest
import torch
from timm.models import VisionTransformer
from tiny_student import random_views, tiny_recipe
from torch import Tensor, nn

import pretrain.student
from lutbench.models.encoders import create_encoder
from lutbench.recipes.pretrain import PretrainRecipe
from pretrain.frameworks.interface import Framework
from pretrain.frameworks.mae import MAE, patchify, take, unpatchify
from pretrain.masking import visible_patches
from pretrain.reconstruction import reconstruct
from pretrain.student import build_student
from pretrain.teacher import Teacher


class LinearHead(nn.Module):
    """Mask token of the encoder's width and one linear layer to a patch's pixels."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.predict = nn.Linear(width, 3 * patch_size**2)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        pixels: Tensor = self.predict(tokens[:, 1:])
        return pixels


class MaskTokensInTheEncoder:
    """A framework that encodes all N patches, masked ones as mask tokens, and predicts raw pixels linearly."""

    def __init__(self, encoder: VisionTransformer) -> None:
        self.patch_size: int = encoder.patch_embed.patch_size[0]
        self.decoder = LinearHead(encoder.embed_dim, self.patch_size)

    def encode(self, encoder: VisionTransformer, images: Tensor, visible: Tensor | None) -> Tensor:
        patches = encoder.patch_embed(images)
        if visible is not None:
            shown = torch.zeros_like(patches[..., :1]).scatter(1, visible.unsqueeze(-1), 1.0)
            patches = shown * patches + (1 - shown) * self.decoder.mask_token
        assert encoder.pos_embed is not None
        assert encoder.cls_token is not None
        tokens = torch.cat([encoder.cls_token.expand(len(images), -1, -1), patches], dim=1) + encoder.pos_embed
        encoded: Tensor = encoder.norm(encoder.blocks(encoder.norm_pre(tokens)))
        return encoded

    def unmasked(self, tokens: Tensor, visible: Tensor | None) -> Tensor:
        return tokens if visible is None else torch.cat([tokens[:, :1], take(tokens[:, 1:], visible)], dim=1)

    def loss(self, pixels: Tensor, images: Tensor, visible: Tensor) -> Tensor:
        error = (pixels - patchify(images, self.patch_size)).abs().mean(dim=2)
        return (error * torch.ones_like(error).scatter(1, visible, 0.0)).mean()

    def reconstruct(self, pixels: Tensor, images: Tensor, visible: Tensor) -> Tensor:
        index = visible.unsqueeze(-1).expand(-1, -1, pixels.shape[2])
        truth = patchify(images, self.patch_size)
        return unpatchify(pixels.scatter(1, index, truth.gather(1, index)), self.patch_size)


@pytest.fixture
def framework(monkeypatch: pytest.MonkeyPatch) -> type[MaskTokensInTheEncoder]:
    """:class:`MaskTokensInTheEncoder` takes MAE's part in :func:`build_student`."""

    def build(recipe: PretrainRecipe, seed: int) -> tuple[VisionTransformer, Framework]:
        torch.manual_seed(seed)
        encoder = create_encoder(recipe.encoder)
        return encoder, MaskTokensInTheEncoder(encoder)

    monkeypatch.setattr(pretrain.student, "build_framework", build)
    return MaskTokensInTheEncoder


@pytest.mark.parametrize("teacher_view", ["whole", "masked"])
def test_every_parameter_of_another_framework_learns(framework: type, teacher_view: str) -> None:
    student = build_student(tiny_recipe(teacher_view=teacher_view), seed=0)
    assert isinstance(student.framework, framework)
    teacher, views = Teacher(student), random_views()
    student(views, teacher(views)).total.backward()
    teacher.update(student, 0.9)
    assert all(p.grad is not None and p.grad.any() for p in student.parameters())
    parts = {name.split(".")[0] for name, _ in student.named_parameters()}
    assert parts == {"encoder", "decoder", "projector", "predictor"}
    assert {name.split(".")[0] for name in teacher.state_dict()} == {"encoder", "projector"}


def test_the_heads_read_unmasked_tokens_only(framework: type) -> None:
    student = build_student(tiny_recipe(teacher_view="masked"), seed=0)
    teacher, views = Teacher(student), random_views()
    read, read_by_teacher = list[Tensor](), list[Tensor]()
    assert student.projector is not None
    student.projector.register_forward_hook(lambda _module, inputs, _output: read.append(inputs[0]))
    teacher.projector.register_forward_hook(lambda _module, inputs, _output: read_by_teacher.append(inputs[0]))
    student(views, teacher(views))
    assert torch.allclose(torch.cat(read), torch.cat(read_by_teacher), atol=1e-6), "they start as copies"
    visible = visible_patches(views.noise, 4)
    for view, indices, pooled in zip((views.view1, views.view2), visible, read, strict=True):
        assert view is not None
        tokens = student.framework.encode(student.encoder, view, indices)
        assert tokens.shape[1] == 1 + 16
        for image in range(len(view)):
            assert torch.allclose(pooled[image], tokens[image, 1 + indices[image]].mean(0), atol=1e-6)


def test_its_reconstructions_keep_visible_patches(framework: type) -> None:
    student = build_student(tiny_recipe(context_weight=0.0), seed=0)
    views = random_views()
    rebuilt, truth = patchify(reconstruct(student, views), 4), patchify(views.view1, 4)
    same = (rebuilt == truth).all(dim=2)
    visible = visible_patches(views.noise, 4).view1
    assert torch.equal(same, torch.zeros_like(same).scatter(1, visible, True))


def test_mae_encodes_visible_patches_alone() -> None:
    student = build_student(tiny_recipe(), seed=0)
    views = random_views()
    visible = visible_patches(views.noise, 4).view1
    changed = patchify(views.view1, 4)
    hidden = torch.ones_like(changed[..., :1]).scatter(1, visible.unsqueeze(-1), 0.0)
    encoded = [
        student.framework.encode(student.encoder, images, visible)
        for images in (views.view1, unpatchify(changed + hidden, 4))
    ]
    assert isinstance(student.framework, MAE)
    assert encoded[0].shape == (6, 1 + 4, 24)
    assert torch.equal(*encoded)
