"""An encoder's weights in MMSegmentation's backbone: the same features, and every key accounted for."""

from typing import Any

import pytest
import timm
import torch
from timm.models import VisionTransformer

pytest.importorskip("mmseg")

from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

from downstream.segmentation.backbone import converted, load_backbone
from lutbench.errors import UserError

SIZES: dict[str, Any] = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


def encoder(model: str = "vit_tiny_patch16_224", **changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    made = timm.create_model(model, **{"num_classes": 0, **SIZES, **changes})
    for parameter in made.parameters():  # so that no bias, norm or LayerScale is what every model begins with
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def backbone(**changes: Any) -> Any:
    register_all_modules()
    sizes = {"img_size": 48, "patch_size": 8, "embed_dims": 32, "num_layers": 3, "num_heads": 2}
    made = MODELS.build(
        {
            "type": "MAE",
            **sizes,
            "mlp_ratio": 4,
            "out_indices": [0, 1, 2],
            "norm_cfg": {"type": "LN", "eps": 1e-6},
            "init_values": 1.0,
            **changes,
        }
    )
    torch.manual_seed(1)
    made.init_weights()
    made.eval()  # which returns nothing
    return made


def features(model: VisionTransformer, images: torch.Tensor) -> list[torch.Tensor]:
    """Of every block, without the last norm, as maps."""
    maps: list[torch.Tensor] = model.forward_intermediates(images, norm=False, intermediates_only=True)
    return maps


def test_every_block_gives_the_features_of_timms_encoder() -> None:
    ours, theirs, images = encoder(), backbone(), torch.randn(2, 3, 48, 48)
    load_backbone(theirs, ours)
    with torch.no_grad():
        for expected, found in zip(features(ours, images), theirs(images), strict=True):
            assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()


def test_relative_position_biases_begin_at_zero_and_layer_scale_at_the_recipes_value() -> None:
    theirs = backbone(init_values=0.5)
    for layer in theirs.layers:
        torch.nn.init.normal_(layer.attn.relative_position_bias_table)
    load_backbone(theirs, encoder())
    for layer in theirs.layers:
        assert not layer.attn.relative_position_bias_table.any()
        assert (layer.gamma_1 == 0.5).all()


def test_an_encoders_own_layer_scale_is_taken_over() -> None:
    ours, theirs, images = encoder(init_values=1e-5), backbone(), torch.randn(2, 3, 48, 48)
    load_backbone(theirs, ours)
    assert torch.equal(theirs.layers[1].gamma_2, ours.blocks[1].ls2.gamma)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images)[-1], features(ours, images)[-1], rtol=1e-5, atol=1e-4)


def test_all_names_of_an_encoder_are_known_but_its_last_norm_and_head() -> None:
    names = encoder(num_classes=10).state_dict()
    assert len(converted(names)) == len(names) - 4
    assert converted(names).keys() <= backbone().state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"depth": 4}, "not part of the backbone: layers.3"),
        ({"depth": 2}, "missing: layers.2"),
        ({"embed_dim": 64}, "cls_token: expected (1, 1, 32), found (1, 1, 64)"),
        ({"img_size": 64}, "pos_embed: expected (1, 37, 32), found (1, 65, 32)"),
        ({"qkv_bias": False}, "missing: layers.0.attn.qkv.bias"),
        ({"qk_norm": True}, "not part of the backbone: blocks.0.attn.k_norm.bias"),
        ({"reg_tokens": 2}, "not part of the backbone: reg_token"),
        ({"class_token": False, "global_pool": "avg"}, "missing: cls_token"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused_with_what_is_wrong(changes: dict[str, Any], told: str) -> None:
    theirs = backbone()
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    with pytest.raises(UserError, match="does not fit") as error:
        load_backbone(theirs, encoder(**changes))
    assert told in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items())
