"""LUT a second time, the slow and obvious way: plain tensors in float64, one view and one image at a time.

Written from the method's description alone and sharing no code with the product. It makes golden files of any
geometry, for the parity check to be held against.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Geometry:
    grid: int = 4
    patch: int = 4
    width: int = 24
    depth: int = 2
    heads: int = 3
    hidden: int = 48
    decoder_width: int = 16
    decoder_depth: int = 1
    decoder_heads: int = 2
    decoder_hidden: int = 32
    head_width: int = 20
    head_depth: int = 2
    head_norm: str = "batch"
    mask_ratio: float = 0.75
    batch: int = 6
    steps: int = 2
    lr: float = 1e-3
    weight_decay: float = 0.05
    context_weight: float = 0.25
    momentum: float = 0.9

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def visible(self) -> int:
        return int(self.patches * (1 - self.mask_ratio))


def sincos(grid: int, width: int) -> Tensor:
    quarter = width // 4
    table = torch.zeros(1 + grid * grid, width, dtype=torch.float64)
    for row in range(grid):
        for column in range(grid):
            for i in range(quarter):
                frequency = 1 / 10000 ** (i / quarter)
                token = table[1 + row * grid + column]
                token[i], token[quarter + i] = math.sin(column * frequency), math.cos(column * frequency)
                token[2 * quarter + i], token[3 * quarter + i] = math.sin(row * frequency), math.cos(row * frequency)
    return table.unsqueeze(0)


def initial_weights(g: Geometry) -> Weights:
    """Random, with no zeros and ones that could hide a mistake."""
    w: Weights = {"cls_token": _normal(1, 1, g.width), "mask_token": _normal(1, 1, g.decoder_width)}
    w |= {"pos_embed": sincos(g.grid, g.width), "decoder_pos_embed": sincos(g.grid, g.decoder_width)}
    w |= {"patch_embed.proj.weight": _normal(g.width, 3, g.patch, g.patch), "patch_embed.proj.bias": _normal(g.width)}
    sides = (("", g.depth, g.width, g.hidden), ("decoder_", g.decoder_depth, g.decoder_width, g.decoder_hidden))
    for side, depth, width, hidden in sides:
        for i in range(depth):
            prefix = f"{side}blocks.{i}"
            w |= _norm(f"{prefix}.norm1", width) | _norm(f"{prefix}.norm2", width)
            w |= _linear(f"{prefix}.attn.qkv", 3 * width, width) | _linear(f"{prefix}.attn.proj", width, width)
            w |= _linear(f"{prefix}.mlp.fc1", hidden, width) | _linear(f"{prefix}.mlp.fc2", width, hidden)
        w |= _norm(f"{side}norm", width)
    w |= _linear("decoder_embed", g.decoder_width, g.width)
    w |= _linear("decoder_pred", 3 * g.patch**2, g.decoder_width)
    for head in ("head", "predictor"):
        place = 0
        for i in range(g.head_depth):
            inner, outer = i > 0, i < g.head_depth - 1
            size = (g.head_width if outer else g.width, g.head_width if inner else g.width)
            w[f"{head}.{place}.weight"] = _normal(*size) * 2
            if outer and g.head_norm != "none":
                w |= _norm(f"{head}.{place + 1}", g.head_width)
            if outer and g.head_norm == "batch":
                w[f"{head}.{place + 1}.running_mean"] = torch.zeros(g.head_width, dtype=torch.float64)
                w[f"{head}.{place + 1}.running_var"] = torch.ones(g.head_width, dtype=torch.float64)
                w[f"{head}.{place + 1}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
            place += 2 if g.head_norm == "none" else 3
    return w


def _normal(*size: int) -> Tensor:
    return 0.2 * torch.randn(*size, dtype=torch.float64)


def _norm(name: str, width: int) -> Weights:
    return {f"{name}.weight": 1 + _normal(width), f"{name}.bias": _normal(width)}


def _linear(name: str, out: int, into: int) -> Weights:
    return {f"{name}.weight": _normal(out, into), f"{name}.bias": _normal(out)}


def transformer(x: Tensor, w: Weights, side: str, depth: int, heads: int) -> Tensor:
    for i in range(depth):
        name = f"{side}blocks.{i}"
        tokens, width = x.shape
        qkv = layer_norm(x, w, f"{name}.norm1") @ w[f"{name}.attn.qkv.weight"].T + w[f"{name}.attn.qkv.bias"]
        query, key, value = (part.reshape(tokens, heads, width // heads) for part in qkv.split(width, dim=1))
        mixed = []
        for h in range(heads):
            attention = torch.softmax(query[:, h] @ key[:, h].T / math.sqrt(width // heads), dim=1)
            mixed.append(attention @ value[:, h])
        x = x + torch.cat(mixed, dim=1) @ w[f"{name}.attn.proj.weight"].T + w[f"{name}.attn.proj.bias"]
        inner = layer_norm(x, w, f"{name}.norm2") @ w[f"{name}.mlp.fc1.weight"].T + w[f"{name}.mlp.fc1.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + inner @ w[f"{name}.mlp.fc2.weight"].T + w[f"{name}.mlp.fc2.bias"]
    return layer_norm(x, w, f"{side}norm")


def layer_norm(x: Tensor, w: Weights, name: str, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def patches_of(image: Tensor, g: Geometry) -> list[Tensor]:
    """Patches (3, P, P) in row-major order."""
    p = g.patch
    return [image[:, r * p : (r + 1) * p, c * p : (c + 1) * p] for r in range(g.grid) for c in range(g.grid)]


def encode(image: Tensor, w: Weights, g: Geometry, places: list[int]) -> Tensor:
    """Tokens (1 + K, D) of one image (3, S, S)."""
    patches = patches_of(image, g)
    kernel, bias = w["patch_embed.proj.weight"], w["patch_embed.proj.bias"]
    tokens = [w["cls_token"][0, 0] + w["pos_embed"][0, 0]]
    for place in places:
        tokens.append((kernel * patches[place]).sum((1, 2, 3)) + bias + w["pos_embed"][0, 1 + place])
    return transformer(torch.stack(tokens), w, "", g.depth, g.heads)


def decode(tokens: Tensor, w: Weights, g: Geometry, places: list[int]) -> Tensor:
    """Pixels (N, P * P * 3) of one image."""
    embedded = tokens @ w["decoder_embed.weight"].T + w["decoder_embed.bias"]
    whole = [embedded[0]] + [w["mask_token"][0, 0]] * g.patches
    for i, place in enumerate(places):
        whole[1 + place] = embedded[1 + i]
    x = torch.stack(whole) + w["decoder_pos_embed"][0]
    x = transformer(x, w, "decoder_", g.decoder_depth, g.decoder_heads)
    return x[1:] @ w["decoder_pred.weight"].T + w["decoder_pred.bias"]


def mim_loss(pixels: Tensor, image: Tensor, g: Geometry, places: list[int]) -> Tensor:
    losses = []
    for place, patch in enumerate(patches_of(image, g)):
        if place not in places:
            target = patch.permute(1, 2, 0).flatten()
            target = (target - target.mean()) / (target.var(unbiased=True) + 1e-6).sqrt()
            losses.append(((pixels[place] - target) ** 2).mean())
    return torch.stack(losses).mean()


def run_head(x: Tensor, w: Weights, name: str, g: Geometry, training: bool) -> Tensor:
    """One view's (B, D) through a head; in training its BatchNorm's running statistics in ``w`` move."""
    place = 0
    for i in range(g.head_depth):
        x = x @ w[f"{name}.{place}.weight"].T
        if i == g.head_depth - 1:
            return x
        norm = f"{name}.{place + 1}"
        if g.head_norm == "layer":
            x = layer_norm(x, w, norm, eps=1e-5)
        if g.head_norm == "batch":
            mean, variance = w[f"{norm}.running_mean"], w[f"{norm}.running_var"]
            if training:
                mean, variance = x.mean(0), x.var(0, unbiased=False)
                w[f"{norm}.running_mean"] = 0.9 * w[f"{norm}.running_mean"] + 0.1 * mean.detach()
                w[f"{norm}.running_var"] = 0.9 * w[f"{norm}.running_var"] + 0.1 * x.var(0, unbiased=True).detach()
                w[f"{norm}.num_batches_tracked"] = w[f"{norm}.num_batches_tracked"] + 1
            x = (x - mean) / (variance + 1e-5).sqrt() * w[f"{norm}.weight"] + w[f"{norm}.bias"]
        x = x.clamp(min=0)
        place += 2 if g.head_norm == "none" else 3
    raise AssertionError


def distance(q: Tensor, z: Tensor) -> Tensor:
    cosine = (q * z).sum(1) / (q.norm(dim=1) * z.norm(dim=1))
    return (2 - 2 * cosine).mean()


def trained(w: Weights) -> list[str]:
    fixed = ("pos_embed", "running_mean", "running_var", "num_batches_tracked")
    return [name for name in w if not name.endswith(fixed)]


def golden_file(path: Path, g: Geometry, seed: int = 0) -> None:
    """Take ``g.steps`` steps and save what the format asks for."""
    torch.manual_seed(seed)
    student = initial_weights(g)
    teacher = {name: value.clone() for name, value in student.items()}
    names = trained(student)
    first = {name: torch.zeros_like(student[name]) for name in names}
    second = {name: torch.zeros_like(student[name]) for name in names}
    decays = [1 - (1 - g.momentum) * 0.5 * (1 + math.cos(math.pi * s / g.steps)) for s in range(g.steps)]
    settings = {"patch_size": g.patch, "num_heads": g.heads, "decoder_num_heads": g.decoder_heads}
    settings |= {name: getattr(g, name) for name in ("mask_ratio", "lr", "weight_decay", "context_weight")}
    saved: dict[str, object] = {f"meta/{name}": value for name, value in settings.items()}
    saved |= {f"init/{name}": value.clone() for name, value in student.items()}
    saved["decays"] = np.array(decays)

    for step, decay in enumerate(decays):
        view1, view2 = (torch.randn(g.batch, 3, g.grid * g.patch, g.grid * g.patch).double() for _ in range(2))
        noise = torch.rand(g.batch, g.patches)
        orders = [sorted(range(g.patches), key=row.__getitem__) for row in noise.tolist()]
        seen1 = [order[: g.visible] for order in orders]
        seen2 = [order[g.visible : 2 * g.visible] for order in orders]
        everywhere = [list(range(g.patches))] * g.batch
        for name in names:
            student[name].requires_grad_(True)

        def pooled(images: Tensor, w: Weights, seen: list[list[int]]) -> tuple[list[Tensor], Tensor]:
            tokens = [encode(image, w, g, places) for image, places in zip(images, seen, strict=True)]
            return tokens, torch.stack([t[1:].mean(0) for t in tokens])

        with torch.no_grad():
            z1, z2 = (run_head(pooled(v, teacher, everywhere)[1], teacher, "head", g, False) for v in (view1, view2))
        tokens1, pool1 = pooled(view1, student, seen1)
        _, pool2 = pooled(view2, student, seen2)
        q1, q2 = (
            run_head(run_head(p, student, "head", g, True), student, "predictor", g, True) for p in (pool1, pool2)
        )
        pixels = [decode(t, student, g, places) for t, places in zip(tokens1, seen1, strict=True)]
        mims = [mim_loss(p, image, g, places) for p, image, places in zip(pixels, view1, seen1, strict=True)]
        mim, context = torch.stack(mims).mean(), (distance(q2, z1) + distance(q1, z2)) / 2
        gradients = torch.autograd.grad(mim + g.context_weight * context, [student[name] for name in names])

        values = {"view1": view1, "view2": view2, "noise": noise, "mae_loss": mim, "bc_loss": context}
        values |= {"student": torch.cat([q1, q2]), "teacher": torch.cat([z1, z2])}
        saved |= {f"step{step}/{name}": value for name, value in values.items()}
        if step == 0:
            saved["step0/pred"] = torch.stack(pixels)
            saved |= {f"grad0/{name}": gradient for name, gradient in zip(names, gradients, strict=True)}

        with torch.no_grad():
            for name, gradient in zip(names, gradients, strict=True):  # AdamW
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.95 * second[name] + 0.05 * gradient**2
                mean, square = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.95 ** (step + 1))
                decayed = 1 - g.lr * g.weight_decay * (student[name].ndim > 1 and not name.endswith(".bias"))
                student[name] = student[name] * decayed - g.lr * mean / (square.sqrt() + 1e-8)
            for name in student:
                if student[name].is_floating_point():
                    teacher[name] = decay * teacher[name] + (1 - decay) * student[name]

    saved |= {f"final/{name}": value for name, value in student.items()}
    saved |= {f"final_teacher/{name}": value for name, value in teacher.items()}
    np.savez(path, **{name: _as_saved(name, value) for name, value in saved.items()})


def _as_saved(name: str, value: object) -> np.ndarray:
    array = value.detach().numpy() if isinstance(value, Tensor) else np.array(value)
    single = array.dtype == np.float64 and not name.startswith(("meta/", "decays"))
    return array.astype(np.float32) if single else array
