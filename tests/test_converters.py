"""An encoder of another library, read under timm's names, computes the features that it computes there."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from downstream.segmentation.backbone import converted as to_mmseg
from lutbench.models.converters import DIALECTS

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
THEIRS: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-6,
    "attn_implementation": "eager",
}
MLP: dict[str, Any] = {"intermediate_size": 192}
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def drawn(model: nn.Module) -> nn.Module:
    """``model`` with weights of which no bias, norm or LayerScale is what every model begins with."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.eval()  # which returns nothing in OpenMMLab's
    return model


def theirs(model: str, config: str, **changes: Any) -> Any:
    """A model of Hugging Face of the sizes of :data:`SIZES`."""
    return drawn(getattr(transformers, model)(getattr(transformers, config)(**{**THEIRS, **changes})))


def ours(model: str, **changes: Any) -> Any:
    """A model of timm of the same sizes, with weights of its own."""
    return timm.create_model(model, **{"num_classes": 0, **SIZES, **changes}).eval()


def converted(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The name of the dialect of some weights, and the encoder in them under timm's names."""
    [(dialect, prefix)] = [
        (dialect, name.removesuffix(dialect.patch_embedding))
        for dialect in DIALECTS
        for name in tensors
        if name.endswith(dialect.patch_embedding)
    ]
    below = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    below |= {name: tensor for name, tensor in tensors.items() if dialect.also.fullmatch(name)}
    beside = [name for name in tensors if not name.startswith(prefix) and name not in below]
    assert all(dialect.left_out.fullmatch(name) for name in beside)
    kept = {name: tensor for name, tensor in below.items() if not dialect.left_out.fullmatch(name)}
    given = {name: tensor.clone() for name, tensor in kept.items()}
    found = dialect.convert(kept)
    assert kept.keys() == given.keys()
    assert all(torch.equal(kept[name], given[name]) for name in kept), "converters are pure"
    shapes = dialect.convert({name: tensor.to("meta") for name, tensor in kept.items()})
    assert {name: t.shape for name, t in shapes.items()} == {name: t.shape for name, t in found.items()}
    return dialect.name, found


def loaded(model: Any, tensors: Mapping[str, Tensor]) -> Any:
    """``model`` with the weights, every one of them accounted for."""
    model.load_state_dict(converted(tensors)[1])
    return model


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# --- Hugging Face


@pytest.fixture(params=["as it is saved", "as it is in memory"])
def weights_of(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The weights of a model in a file of ``save_pretrained``, and those of its ``state_dict``, which has other names since version 5."""

    def saved(model: Any) -> dict[str, Tensor]:
        model.save_pretrained(tmp_path)
        return load_file(tmp_path / "model.safetensors")

    return saved if request.param == "as it is saved" else lambda model: model.state_dict()


@torch.no_grad()
@pytest.mark.parametrize(
    ("names", "timms", "changes"),
    [
        (("ViTModel", "ViTConfig"), "vit_tiny_patch16_224", {}),
        (("ViTMSNModel", "ViTMSNConfig"), "vit_tiny_patch16_224", {}),
        (("DeiTModel", "DeiTConfig"), "deit_tiny_distilled_patch16_224", {}),
        (("IJepaModel", "IJepaConfig"), "vit_huge_patch14_gap_224", {}),
    ],
)
def test_vits_of_hugging_face(weights_of: Any, names: tuple[str, str], timms: str, changes: dict[str, Any]) -> None:
    model = theirs(*names, **MLP)
    tensors = weights_of(model)
    encoder = loaded(ours(timms), tensors)
    assert_same(encoder.forward_features(PIXELS), model(PIXELS).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("model", ["ViTForImageClassification", "ViTForMaskedImageModeling", "ViTMAEForPreTraining"])
def test_heads_and_decoders_of_hugging_faces_vits_are_left_out(weights_of: Any, model: str) -> None:
    decoder = {
        "encoder_stride": 8,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
    }
    config = "ViTMAEConfig" if "MAE" in model else "ViTConfig"
    whole = theirs(model, config, **MLP, **decoder, **({"mask_ratio": 0.0} if "MAE" in model else {}))
    tensors = weights_of(whole)
    assert all(name.startswith(("vit.", "classifier.", "decoder.")) for name in tensors)
    encoder = loaded(ours("vit_tiny_patch16_224"), tensors)
    in_order = {"noise": torch.arange(16.0).repeat(2, 1)} if "MAE" in model else {}  # else it shuffles the patches
    assert_same(encoder.forward_features(PIXELS), whole.vit(PIXELS, **in_order).last_hidden_state)


def test_biases_that_are_missing_stay_missing() -> None:
    model = theirs("ViTModel", "ViTConfig", **MLP, qkv_bias=False)
    _, tensors = converted(model.state_dict())
    assert not [name for name in tensors if re.search(r"qkv\.bias|_bias", name)]
    encoder = loaded(ours("vit_tiny_patch16_224", qkv_bias=False), model.state_dict())
    with torch.no_grad():
        assert_same(encoder.forward_features(PIXELS), model(PIXELS).last_hidden_state)
    whole = theirs("ViTModel", "ViTConfig", **MLP).state_dict()
    [key] = [name for name in whole if re.search(r"\.1\..*(key|k_proj)\.bias", name)]
    del whole[key]
    assert {"blocks.1.attn.q_bias", "blocks.1.attn.v_bias", "blocks.0.attn.qkv.bias"} <= converted(whole)[1].keys()


def test_hugging_faces_epsilon_of_1e_12_shows_where_inputs_hardly_vary() -> None:
    """What a file of weights does not say: the sizes in the converters' docstring."""
    model = theirs("ViTModel", "ViTConfig", **MLP, layer_norm_eps=1e-12)
    encoder = loaded(ours("vit_tiny_patch16_224"), model.state_dict())
    with torch.no_grad():
        expected = model(PIXELS).last_hidden_state
        assert (encoder.forward_features(PIXELS) - expected).abs().max() <= 1e-4 * expected.abs().max()
        rows = 0.01 * torch.randn(100, 48)  # of variance 1e-4
        ratio = F.layer_norm(rows, (48,), eps=1e-6) / F.layer_norm(rows, (48,), eps=1e-12)
    assert ratio.mean().item() == pytest.approx(1 - 5e-7 / 1e-4, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_dinov2(weights_of: Any, registers: bool, gated: bool) -> None:
    names = ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig") if registers else ("Dinov2Model", "Dinov2Config")
    model = theirs(*names, use_swiglu_ffn=gated, **({"num_register_tokens": 4} if registers else {}))
    timms = f"vit_{'giant' if gated else 'small'}_patch14_{'reg4_' if registers else ''}dinov2"
    encoder = loaded(ours(timms), weights_of(model))
    assert_same(encoder.forward_features(PIXELS), model(PIXELS).last_hidden_state)
    classifier = theirs(names[0].replace("Model", "ForImageClassification"), names[1], use_swiglu_ffn=gated)
    loaded(ours(timms), weights_of(classifier))


@torch.no_grad()
@pytest.mark.parametrize("position", ["of each block", "shared", "absolute"])
@pytest.mark.parametrize("family", ["Beit", "Data2VecVision"])
def test_beit_and_data2vec(weights_of: Any, family: str, position: str) -> None:
    of_each, shared, absolute = (position == one for one in ("of each block", "shared", "absolute"))
    model = theirs(
        f"{family}ForImageClassification",
        f"{family}Config",
        **MLP,
        use_relative_position_bias=of_each,
        use_shared_relative_position_bias=shared,
        use_absolute_position_embeddings=absolute,
    )
    timms = ours(
        "beit_base_patch16_224",
        use_rel_pos_bias=of_each or shared,  # timm's have a copy in each block of what is shared
        use_abs_pos_emb=absolute,
        global_pool="avg",
    )
    encoder = loaded(timms, weights_of(model))
    expected = (model.beit if family == "Beit" else model.data2vec_vision)(PIXELS)
    tokens = encoder.forward_features(PIXELS)
    assert_same(tokens, expected.last_hidden_state)
    assert_same(encoder.forward_head(tokens), expected.pooler_output)


@torch.no_grad()
def test_beits_pre_training_has_its_norm_before_the_pooling(weights_of: Any) -> None:
    model = theirs("BeitForMaskedImageModeling", "BeitConfig", **MLP, use_relative_position_bias=True, vocab_size=20)
    encoder = loaded(ours("beit_base_patch16_224", global_pool="token"), weights_of(model))
    expected = model.layernorm(model.beit(PIXELS).last_hidden_state)
    assert_same(encoder.forward_features(PIXELS), expected)


@torch.no_grad()
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_dinov3(weights_of: Any, gated: bool, bias: bool) -> None:
    act = {"hidden_act": "silu", "use_gated_mlp": True} if gated else {}
    model = theirs(
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        **MLP,
        **act,
        query_bias=bias,
        value_bias=bias,
        num_register_tokens=4,
        layer_norm_eps=1e-5,
    )
    timms = f"vit_small_{'plus_' if gated else ''}patch16_dinov3{'_qkvb' if bias else ''}"
    encoder = loaded(ours(timms), weights_of(model))
    assert_same(encoder.forward_features(PIXELS), model(PIXELS).last_hidden_state)


# --- torchvision


@torch.no_grad()
def test_torchvisions_vit() -> None:
    from torchvision.models import VisionTransformer

    model = drawn(VisionTransformer(32, 8, 2, 4, 48, 192, num_classes=5))
    dialect, _ = converted(model.state_dict())
    assert dialect == "torchvision ViT"
    encoder = loaded(ours("vit_tiny_patch16_224"), model.state_dict())
    expected: Any = model
    expected.heads = nn.Identity()
    assert_same(encoder.forward_features(PIXELS)[:, 0], expected(PIXELS))
    older = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): tensor
        for name, tensor in model.state_dict().items()
    }
    loaded(encoder, older)


# --- OpenMMLab


def mmseg_backbone(kind: str, **changes: Any) -> Any:
    pytest.importorskip("mmseg")
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    sizes = {"img_size": 32, "patch_size": 8, "embed_dims": 48, "num_layers": 2, "num_heads": 4, "mlp_ratio": 4}
    return drawn(MODELS.build({"type": kind, **sizes, "norm_cfg": {"type": "LN", "eps": 1e-6}, **changes}))


def maps(tokens: Tensor) -> Tensor:
    """Patch tokens (B, 1 + 16, D) as maps (B, D, 4, 4)."""
    return tokens[:, 1:].mT.unflatten(2, (4, 4))


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_mmsegmentations_vit(bias: bool) -> None:
    model = mmseg_backbone("VisionTransformer", final_norm=True, patch_bias=bias)
    encoder = loaded(ours("vit_tiny_patch16_224"), {f"backbone.{n}": t for n, t in model.state_dict().items()})
    assert_same(maps(encoder.forward_features(PIXELS)), model(PIXELS)[-1])


@torch.no_grad()
def test_mmsegmentations_mae_with_the_weights_of_a_plain_vit() -> None:
    """It has no last norm. Its relative position biases are zero in what this suite makes; others are named by the strict loading."""
    model = mmseg_backbone("MAE", init_values=1.0, out_indices=[1])
    for name, parameter in model.named_parameters():
        if "relative_position" in name:
            parameter.zero_()
    tensors = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {"decode_head.conv.weight": torch.zeros(1), "auxiliary_head.conv.weight": torch.zeros(1)}
    encoder = loaded(ours("vit_tiny_patch16_224", init_values=1.0, final_norm=False), tensors)
    assert_same(maps(encoder.forward_features(PIXELS)), model(PIXELS)[-1])
    back = to_mmseg(encoder.state_dict())
    assert all(torch.equal(tensor, tensors[f"backbone.{name}"]) for name, tensor in back.items())
    name = "blocks.1.attn.relative_position_bias_table"
    tensors["backbone.layers.1.attn.relative_position_bias_table"][3, 1] = 0.1
    assert name in converted_names(tensors)


def converted_names(tensors: Mapping[str, Tensor]) -> set[str]:
    dialect = next(one for one in DIALECTS if one.name.startswith("mmpretrain"))
    return set(dialect.convert({name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}))


@torch.no_grad()
def test_mmsegmentations_beit() -> None:
    model = mmseg_backbone("BEiT", qv_bias=True, init_values=0.1, out_indices=[1])
    encoder = ours("beit_base_patch16_224", global_pool="token")
    encoder.norm = nn.Identity()
    loaded(encoder, {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()})
    assert_same(maps(encoder.forward_features(PIXELS)), model(PIXELS)[-1])


def mmpretrains(gated: bool, scaled: bool) -> dict[str, Tensor]:
    """Weights of mmpretrain's VisionTransformer, below ``backbone.`` as its checkpoints have them, with a head."""
    width, hidden = 48, 128 if gated else 192
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 17, width),
        "patch_embed.projection.weight": (width, 3, 8, 8),
        "patch_embed.projection.bias": (width,),
        "ln1.weight": (width,),
        "ln1.bias": (width,),
    }
    first, second = ("ffn.w12", "ffn.w3") if gated else ("ffn.layers.0.0", "ffn.layers.1")
    for layer in ("layers.0", "layers.1"):
        for norm in ("ln1", "ln2"):
            shapes |= {f"{layer}.{norm}.weight": (width,), f"{layer}.{norm}.bias": (width,)}
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            (first, (2 if gated else 1) * hidden, width),
            (second, width, hidden),
        ):
            shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
        if scaled:
            shapes |= {f"{layer}.attn.gamma1.weight": (width,), f"{layer}.ffn.gamma2.weight": (width,)}
    generator = torch.Generator().manual_seed(0)
    tensors = {f"backbone.{name}": 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tensors | {"head.layers.head.weight": torch.zeros(3, width), "data_preprocessor.mean": torch.zeros(3)}


def mmpretrains_features(tensors: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """The tokens (B, 17, D) of such weights, by the definition of a ViT."""
    of = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, of[f"{name}.weight"], of[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], of[f"{name}.weight"], of[f"{name}.bias"], 1e-6)

    patches = F.conv2d(pixels, of["patch_embed.projection.weight"], of["patch_embed.projection.bias"], stride=8)
    x = torch.cat([of["cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).mT], 1) + of["pos_embed"]
    for layer in ("layers.0", "layers.1"):
        query, key, value = linear(f"{layer}.attn.qkv", norm(f"{layer}.ln1", x)).unflatten(2, (3, 4, 12)).unbind(2)
        attention = torch.einsum("bqhc,bkhc->bhqk", query, key).div(12**0.5).softmax(-1)
        update = linear(f"{layer}.attn.proj", torch.einsum("bhqk,bkhc->bqhc", attention, value).flatten(2))
        x = x + update * of.get(f"{layer}.attn.gamma1.weight", torch.ones(1))
        normed = norm(f"{layer}.ln2", x)
        if f"{layer}.ffn.w12.weight" in of:
            gate, value = linear(f"{layer}.ffn.w12", normed).chunk(2, -1)
            update = linear(f"{layer}.ffn.w3", F.silu(gate) * value)
        else:
            update = linear(f"{layer}.ffn.layers.1", F.gelu(linear(f"{layer}.ffn.layers.0.0", normed)))
        x = x + update * of.get(f"{layer}.ffn.gamma2.weight", torch.ones(1))
    return norm("ln1", x)


@torch.no_grad()
@pytest.mark.parametrize(
    ("gated", "scaled", "timms"),
    [
        (False, False, "vit_tiny_patch16_224"),
        (False, True, "vit_small_patch14_dinov2"),
        (True, True, "vit_giant_patch14_dinov2"),
    ],
)
def test_mmpretrains_vit(gated: bool, scaled: bool, timms: str) -> None:
    tensors = mmpretrains(gated, scaled)
    assert converted(tensors)[0] == "mmpretrain or MMSegmentation ViT"
    assert_same(loaded(ours(timms), tensors).forward_features(PIXELS), mmpretrains_features(tensors, PIXELS))


# --- Whatever else


def test_what_is_not_known_or_cannot_be_joined_stays_for_the_strict_loading_to_name() -> None:
    tensors = theirs("ViTModel", "ViTConfig", **MLP).state_dict()
    [key] = [name for name in tensors if re.search(r"\.0\..*(key|k_proj)\.weight", name)]
    tensors[key] = torch.zeros(7, 48)
    tensors["layers.0.adapter.weight"] = torch.zeros(3)
    _, found = converted(tensors)
    assert {"blocks.0.attn.query.weight", "blocks.0.attn.key.weight", "blocks.0.adapter.weight"} <= found.keys()
    assert "blocks.1.attn.qkv.weight" in found


def test_timms_names_are_read_as_they_are() -> None:
    tensors = ours("vit_tiny_patch16_224").state_dict()
    dialect, found = converted(
        tensors | {"decoder_blocks.0.norm1.weight": torch.zeros(1), "head.weight": torch.zeros(1)}
    )
    assert dialect == "timm"
    assert found.keys() == tensors.keys()
