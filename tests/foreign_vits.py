"""Vision Transformers as their papers define them, from named tensors alone: what encoders read from other formats must agree with."""

import math

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]
SIDE, PATCH, HEADS = 32, 8, 2


def drawn(*shape: int, of: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=of) * 0.2


def random_vit(
    width: int = 24,
    depth: int = 2,
    *,
    class_token: bool = True,
    hidden: int | None = None,
    scaled: bool = False,
    seed: int = 1,
) -> Weights:
    """Random weights of a plain ViT (Dosovitskiy et al. 2021) with 4 x 4 patches, under the names that MAE, DINO and MoCo v3 give them."""
    of, hidden, tokens = torch.Generator().manual_seed(seed), hidden or 4 * width, (SIDE // PATCH) ** 2 + class_token
    weights = {"cls_token": drawn(1, 1, width, of=of)} if class_token else {}
    weights |= {"pos_embed": drawn(1, tokens, width, of=of)}
    weights |= {
        "patch_embed.proj.weight": drawn(width, 3, PATCH, PATCH, of=of),
        "patch_embed.proj.bias": drawn(width, of=of),
    }
    for i in range(depth):
        for name, size in {"attn.qkv": 3 * width, "attn.proj": width, "mlp.fc1": hidden}.items():
            weights |= {
                f"blocks.{i}.{name}.weight": drawn(size, width, of=of),
                f"blocks.{i}.{name}.bias": drawn(size, of=of),
            }
        weights |= {
            f"blocks.{i}.mlp.fc2.weight": drawn(width, hidden, of=of),
            f"blocks.{i}.mlp.fc2.bias": drawn(width, of=of),
        }
        for name in ("norm1", "norm2"):
            weights |= {
                f"blocks.{i}.{name}.weight": 1 + drawn(width, of=of),
                f"blocks.{i}.{name}.bias": drawn(width, of=of),
            }
        weights |= {f"blocks.{i}.ls{j}.gamma": 1 + drawn(width, of=of) for j in (1, 2) if scaled}
    return weights | {"norm.weight": 1 + drawn(width, of=of), "norm.bias": drawn(width, of=of)}


def norm(x: Tensor, weights: Weights, name: str, eps: float = 1e-6) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def embedded(weights: Weights, images: Tensor) -> Tensor:
    """Patches (B, N, D): each a linear map of its pixels."""
    kernel = weights["patch_embed.proj.weight"]
    pixels = functional.unfold(images, kernel.shape[-1], stride=kernel.shape[-1]).transpose(1, 2)
    return pixels @ kernel.flatten(1).T + weights["patch_embed.proj.bias"]


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Heads (B, H, N, d) to tokens (B, N, H d)."""
    shares = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
    return (shares @ v).transpose(1, 2).flatten(2)


def heads_of(x: Tensor, heads: int) -> list[Tensor]:
    """Query, key and value (B, H, N, d) of (B, N, 3 H d)."""
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in x.chunk(3, -1)]


def vit_tokens(weights: Weights, images: Tensor, heads: int = HEADS) -> Tensor:
    """Tokens (B, N, D) behind the last norm, of a ViT with what DINOv2 adds: registers, LayerScale, SwiGLU."""
    x = embedded(weights, images)
    if "cls_token" in weights:
        x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + weights["pos_embed"]
    if (registers := weights.get("register_tokens")) is not None:
        x = torch.cat([x[:, :1], registers.expand(len(x), -1, -1), x[:, 1:]], 1)
    for i in range(len({name.split(".")[1] for name in weights if name.startswith("blocks.")})):
        block = f"blocks.{i}"
        scales = [weights.get(f"{block}.ls{j}.gamma", torch.tensor(1.0)) for j in (1, 2)]
        mixed = attention(*heads_of(linear(norm(x, weights, f"{block}.norm1"), weights, f"{block}.attn.qkv"), heads))
        x = x + scales[0] * linear(mixed, weights, f"{block}.attn.proj")
        y = norm(x, weights, f"{block}.norm2")
        if f"{block}.mlp.w12.weight" in weights:
            gate, value = linear(y, weights, f"{block}.mlp.w12").chunk(2, -1)
            y = linear(gate * gate.sigmoid() * value, weights, f"{block}.mlp.w3")
        else:
            y = linear(gelu(linear(y, weights, f"{block}.mlp.fc1")), weights, f"{block}.mlp.fc2")
        x = x + scales[1] * y
    return norm(x, weights, "norm")


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def random_beit(width: int = 24, depth: int = 2, *, shared: bool) -> Weights:
    """Random weights of a pre-trained BEiT (Bao et al. 2022), whose blocks may share their relative position biases."""
    weights, of = random_vit(width, depth), torch.Generator().manual_seed(2)
    table = (2 * SIDE // PATCH - 1) ** 2 + 3
    del weights["pos_embed"]
    for i in range(depth):
        bias = weights.pop(f"blocks.{i}.attn.qkv.bias")
        weights |= {f"blocks.{i}.attn.q_bias": bias[:width], f"blocks.{i}.attn.v_bias": bias[2 * width :]}
        weights |= {f"blocks.{i}.gamma_{j}": 1 + drawn(width, of=of) for j in (1, 2)}
        if not shared:
            weights[f"blocks.{i}.attn.relative_position_bias_table"] = drawn(table, HEADS, of=of)
            weights[f"blocks.{i}.attn.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
    if shared:
        weights["rel_pos_bias.relative_position_bias_table"] = drawn(table, HEADS, of=of)
        weights["rel_pos_bias.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
    return weights | {"mask_token": drawn(1, 1, width, of=of)}


def beit_tokens(weights: Weights, images: Tensor) -> Tensor:
    """Tokens behind the last norm: biases by relative position, three of them of the class token to, from and with itself."""
    x = embedded(weights, images)
    side, width = SIDE // PATCH, x.shape[-1]
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], 1)
    rows, columns = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    entry = (rows[:, None] - rows + side - 1) * (2 * side - 1) + columns[:, None] - columns + side - 1
    last = (2 * side - 1) ** 2
    index = torch.full((side**2 + 1, side**2 + 1), last + 2)
    index[0, 1:], index[1:, 0], index[1:, 1:] = last, last + 1, entry
    for i in range(2):
        block = f"blocks.{i}"
        own = f"{block}.attn.relative_position_bias_table"
        table = weights.get(own, weights.get("rel_pos_bias.relative_position_bias_table"))
        assert table is not None
        biases = [weights[f"{block}.attn.q_bias"], torch.zeros(width), weights[f"{block}.attn.v_bias"]]
        qkv = norm(x, weights, f"{block}.norm1") @ weights[f"{block}.attn.qkv.weight"].T + torch.cat(biases)
        mixed = attention(*heads_of(qkv, HEADS), table[index].permute(2, 0, 1))
        x = x + weights[f"{block}.gamma_1"] * linear(mixed, weights, f"{block}.attn.proj")
        y = linear(norm(x, weights, f"{block}.norm2"), weights, f"{block}.mlp.fc1")
        x = x + weights[f"{block}.gamma_2"] * linear(gelu(y), weights, f"{block}.mlp.fc2")
    return norm(x, weights, "norm")


def random_dinov3(width: int = 32, registers: int = 4) -> Weights:
    """Random weights as DINOv3 (Simeoni et al. 2025) publishes them: rotary positions, biases of qkv that are zero."""
    weights, of = random_vit(width, scaled=True), torch.Generator().manual_seed(3)
    del weights["pos_embed"]
    for i in range(2):
        weights[f"blocks.{i}.attn.qkv.bias"] = torch.zeros(3 * width)
        weights[f"blocks.{i}.attn.qkv.bias_mask"] = torch.ones(3 * width)
    depth = width // HEADS // 4
    weights["rope_embed.periods"] = 100 ** (torch.arange(depth) / depth)
    return weights | {"storage_tokens": drawn(1, registers, width, of=of), "mask_token": drawn(1, width, of=of)}


def dinov3_tokens(weights: Weights, images: Tensor) -> Tensor:
    """Tokens behind the last norm: query and key of a patch are turned by its place, from -1 to 1 on each axis."""
    x = embedded(weights, images)
    side = SIDE // PATCH
    before = torch.cat([weights["cls_token"], weights["storage_tokens"]], 1)
    x = torch.cat([before.expand(len(x), -1, -1), x], 1)
    centres = (torch.arange(side) + 0.5) / side * 2 - 1
    places = torch.stack([centres.repeat_interleave(side), centres.repeat(side)], -1)
    angles = (2 * math.pi * places[:, :, None] / weights["rope_embed.periods"]).flatten(1).repeat(1, 2)

    def turned(heads: Tensor) -> Tensor:
        kept, patches = heads[:, :, : before.shape[1]], heads[:, :, before.shape[1] :]
        first, second = patches.chunk(2, -1)
        return torch.cat([kept, patches * angles.cos() + torch.cat([-second, first], -1) * angles.sin()], 2)

    for i in range(2):
        block = f"blocks.{i}"
        qkv = linear(norm(x, weights, f"{block}.norm1", 1e-5), weights, f"{block}.attn.qkv")
        q, k, v = heads_of(qkv, HEADS)
        x = x + weights[f"{block}.ls1.gamma"] * linear(
            attention(turned(q), turned(k), v), weights, f"{block}.attn.proj"
        )
        y = linear(norm(x, weights, f"{block}.norm2", 1e-5), weights, f"{block}.mlp.fc1")
        x = x + weights[f"{block}.ls2.gamma"] * linear(gelu(y), weights, f"{block}.mlp.fc2")
    return norm(x, weights, "norm", 1e-5)
