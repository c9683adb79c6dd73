"""Encoders are timm's Vision Transformers, parameter names included."""

from timm.models import VisionTransformer, create_model

from lutbench.recipes import EncoderRecipe


def create_encoder(
    recipe: EncoderRecipe, image_size: int | None = None, drop_path: float = 0.0, pretrained: bool = False
) -> VisionTransformer:
    """The encoder without a classifier: tokens in, final LayerNorm last, timm's own initial weights."""
    sizes = {"patch_size": recipe.patch_size, "embed_dim": recipe.width, "depth": recipe.depth, "num_heads": recipe.heads}
    encoder = create_model(
        recipe.model,
        pretrained=pretrained,
        img_size=image_size or recipe.image_size,
        num_classes=0,
        global_pool="token",
        drop_path_rate=drop_path,
        **{name: value for name, value in sizes.items() if value is not None},
    )
    assert isinstance(encoder, VisionTransformer)
    return encoder
