"""Attention is read as the blocks compute it, and without a trace in the encoder."""

import weakref
from typing import Any

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from analysis.attention import check_readable, through_blocks
from lutbench.errors import UserError

TINY: dict[str, Any] = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}

READABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", TINY),
    "no class token": ("vit_tiny_patch16_224", TINY | {"class_token": False, "global_pool": "avg"}),
    "norms of queries and keys": ("vit_tiny_patch16_224", TINY | {"qk_norm": True}),
    "class token, registers, layer scale": ("vit_small_patch14_reg4_dinov2", TINY | {"img_size": 56}),
    "registers alone": ("vit_little_patch16_reg4_gap_256", TINY),
    "relative positions, a mask": ("beit_base_patch16_224", TINY),
    "relative positions by a network": ("vit_relpos_small_patch16_rpn_224", TINY),
    "rotary positions": ("vit_small_patch16_rope_224", TINY),
    "rotary positions, SwiGLU": ("eva02_tiny_patch14_224", TINY | {"img_size": 56}),
    "attention and MLP side by side": ("vit_tiny_patch16_224", TINY | {"block_fn": timm.models.vision_transformer.ParallelScalingBlock}),
}  # fmt: skip

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "windows": ("swin_tiny_patch4_window7_224", {"embed_dim": 24}, "found SwinTransformer"),
    "convolutions": ("convnext_atto", {}, "found ConvNeXt"),
    "differences": ("vit_dwee_patch16_reg1_gap_256", TINY, r"block 1 \(Block\).* found more than one"),
    "parallel parts": ("vit_small_patch16_18x2_224", TINY, r"block 1 \(ParallelThingsBlock\).* found more than one"),
    "no attention": ("mixer_s16_224", {}, r"block 1 \(MixerBlock\).* found none"),
    "windows in a ViT": ("samvit_base_patch16_224", TINY | {"window_size": 2}, r"block 1 \(Block\).* found queries of shape"),
}  # fmt: skip


def made(model: str, arguments: dict[str, Any]) -> VisionTransformer:
    """An encoder whose attention is far from uniform: with timm's own initial weights all queries look everywhere."""
    torch.manual_seed(0)
    encoder = timm.create_model(model, **arguments).eval()
    for name, parameter in encoder.named_parameters():
        if "qkv" in name or "q_proj" in name or "k_proj" in name or "in_proj" in name:
            parameter.data *= 20
        if "relative_position_bias_table" in name or "rel_pos" in name or "gamma" in name:
            nn.init.normal_(parameter)
    return encoder


def images(encoder: nn.Module, count: int = 3) -> Tensor:
    """Noise, of the encoder's size."""
    return torch.randn(count, 3, *encoder.patch_embed.img_size, generator=torch.Generator().manual_seed(1))


class Given(TorchFunctionMode):
    """Attention that was read, taken in place of PyTorch's own."""

    def __init__(self, attention: list[Tensor]) -> None:
        super().__init__()
        self.left = list(attention)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return self.left.pop(0) @ args[2]
        return func(*args, **(kwargs or {}))


def attention_outputs(encoder: VisionTransformer, given: Tensor) -> list[Tensor]:
    """What the attention of every block gives, projected; in a block without a module of its own, what the block does."""
    outputs: list[Tensor] = []
    modules = [getattr(block, "attn", block) for block in encoder.blocks]
    hooks = [module.register_forward_hook(lambda _, __, output: outputs.append(output)) for module in modules]
    with torch.no_grad():
        encoder.forward_features(given)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize("which", READABLE)
def test_attention_that_is_read_gives_the_blocks_own_outputs(which: str) -> None:
    encoder = made(*READABLE[which])
    given = images(encoder)
    read = through_blocks(encoder, given, lambda attention: attention)
    own = attention_outputs(encoder, given)
    with Given(read.attention) as mode:
        again = attention_outputs(encoder, given)
    assert not mode.left
    assert len(own) == len(again) == 2
    for one, other, attention in zip(own, again, read.attention, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
        assert attention.amax(-1).mean() > 2 / attention.shape[-1]  # not near uniform, which would hide errors
    check_readable(encoder, given.shape[-1])


@pytest.mark.parametrize("which", READABLE)
def test_a_pass_gives_the_tokens_of_every_block_and_of_the_last_norm(which: str) -> None:
    encoder = made(*READABLE[which])
    given = images(encoder)
    expected: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, output: expected.append(output)) for block in encoder.blocks]
    with torch.no_grad():
        expected.append(encoder.forward_features(given))
    for hook in hooks:
        hook.remove()
    for read in (through_blocks(encoder, given, lambda attention: 0), through_blocks(encoder, given)):
        assert len(read.tokens) == 3
        assert all(torch.equal(one, other) for one, other in zip(read.tokens, expected, strict=True))
        assert not read.tokens[-1].requires_grad
    assert read.attention == []


class Attending(nn.Module):
    """An encoder whose one block calls PyTorch's attention with given arguments, on its tokens as they are."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments
        self.blocks = nn.Sequential(self.Block(arguments))

    class Block(nn.Module):
        def __init__(self, arguments: dict[str, Any]) -> None:
            super().__init__()
            self.arguments = arguments

        def forward(self, tokens: Tensor) -> Tensor:
            heads = tokens[:, None]
            return functional.scaled_dot_product_attention(heads, heads, heads, **self.arguments)[:, 0]

    def forward_features(self, tokens: Tensor) -> Tensor:
        return self.blocks(tokens)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"scale": 1.7},
        {"is_causal": True},
        {"attn_mask": torch.eye(6, dtype=torch.bool).roll(1, 0) | torch.eye(6, dtype=torch.bool)},
        {"attn_mask": torch.linspace(-3, 3, 36).reshape(6, 6), "scale": 0.5},
    ],
    ids=["plain", "scale", "causal", "boolean mask", "mask and scale"],
)
def test_masks_and_scales_are_pytorchs(arguments: dict[str, Any]) -> None:
    tokens = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    read = through_blocks(Attending(**arguments), tokens, lambda attention: attention)  # type: ignore[arg-type]
    torch.testing.assert_close(read.attention[0][:, 0] @ tokens, read.tokens[0], rtol=0, atol=1e-5)


def test_attention_outside_of_the_blocks_is_not_read() -> None:
    class Around(Attending):
        def forward_features(self, tokens: Tensor) -> Tensor:
            pooled = functional.scaled_dot_product_attention(tokens, tokens, tokens)
            return functional.scaled_dot_product_attention(self.blocks(tokens), pooled, pooled)

    tokens = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    read = [through_blocks(encoder, tokens, lambda of: of).attention for encoder in (Attending(), Around())]  # type: ignore[arg-type]
    assert torch.equal(*(attention for (attention,) in read))


@pytest.mark.parametrize("which", REFUSED)
def test_an_encoder_whose_attention_cannot_be_read_is_refused_by_name(which: str) -> None:
    model, arguments, said = REFUSED[which]
    with torch.device("meta"):
        encoder = timm.create_model(model, **arguments)
    with pytest.raises(UserError, match=said) as refused:
        check_readable(encoder, arguments.get("img_size", 224))
    assert type(encoder).__name__ in str(refused.value)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules())


@pytest.mark.parametrize("which", READABLE)
def test_encoders_without_memory_can_be_checked(which: str) -> None:
    model, arguments = READABLE[which]
    with torch.device("meta"):
        encoder = timm.create_model(model, **arguments)
    check_readable(encoder, arguments["img_size"])
    assert all(tensor.is_meta for tensor in encoder.state_dict().values())


def test_tokens_of_an_encoder_of_differences_can_be_had_without_its_attention() -> None:
    encoder = made("vit_dwee_patch16_reg1_gap_256", TINY)
    assert len(through_blocks(encoder, images(encoder)).tokens) == 3


def test_how_modules_are_set_to_compute_attention_is_put_back() -> None:
    encoder = made(*READABLE["plain"])
    given = images(encoder)
    expected = through_blocks(encoder, given, lambda attention: attention).attention
    for fused in (False, True):
        encoder.blocks[0].attn.fused_attn = fused
        read = through_blocks(encoder, given, lambda attention: attention).attention
        torch.testing.assert_close(read, expected)
        assert [block.attn.fused_attn for block in encoder.blocks] == [fused, True]
        with pytest.raises(ZeroDivisionError):
            through_blocks(encoder, given, lambda attention: 1 // 0)
        assert [block.attn.fused_attn for block in encoder.blocks] == [fused, True]
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in encoder.blocks)


def test_attention_of_one_block_is_gone_before_the_next_is_read() -> None:
    encoder = made("vit_tiny_patch16_224", TINY | {"depth": 4})
    seen: list[weakref.ref[Tensor]] = []

    def reduce(attention: Tensor) -> int:
        assert all(reference() is None for reference in seen)
        seen.append(weakref.ref(attention))
        return len(seen)

    assert through_blocks(encoder, images(encoder), reduce).attention == [1, 2, 3, 4]


def test_attention_of_a_network_in_bfloat16_is_float32() -> None:
    encoder = made(*READABLE["plain"])
    products: list[Tensor] = []
    encoder.blocks[0].attn.qkv.register_forward_hook(lambda _, __, output: products.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        read = through_blocks(encoder, images(encoder), lambda attention: (attention, attention @ attention))
    assert products[0].dtype == torch.bfloat16
    query, key, _ = products[0].reshape(3, 17, 3, 2, 16).permute(2, 0, 3, 1, 4).double()
    expected = (query @ key.mT / 4).softmax(-1)
    attention, product = read.attention[0]
    assert attention.dtype == product.dtype == torch.float32  # what `reduce` computes is not in bfloat16 either
    torch.testing.assert_close(attention.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(product.double(), expected @ expected, rtol=0, atol=1e-6)
