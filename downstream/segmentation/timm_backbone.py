"""Any model of timm as a backbone of MMSegmentation, and rates for its layers: what MMSegmentation has no backbone for.

A config names both, and this module in its ``custom_imports``: a segmenter with such a backbone needs this suite to be loaded.
"""

from typing import Any

import timm
from mmengine.model import BaseModule
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmseg.registry import MODELS
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn

from lutbench.errors import UserError
from lutbench.models.fitting import misfits


@MODELS.register_module()
class TimmMaps(BaseModule):
    """The maps of four blocks or stages of a model of timm, without what comes behind the last of them.

    ``arguments`` are those of ``timm.create_model(model, ...)``, see :func:`downstream.segmentation.pyramid.maps_arguments`.
    """

    def __init__(self, model: str, arguments: dict[str, Any], out_indices: list[int]) -> None:
        super().__init__()
        self.maps: Any = timm.create_model(model, **arguments, out_indices=list(out_indices))

    def init_weights(self) -> None:
        """Leave timm's initial weights, which an encoder's take the place of."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return four maps (B, C, H, W) of ``images`` (B, 3, S, S)."""
        return tuple(self.maps(images))


def load_maps(backbone: TimmMaps, encoder: nn.Module) -> None:
    """Give a ``backbone`` the weights of the ``encoder`` that it is a part of, made for the same size.

    Raises:
        UserError: listing what is missing, or has another shape.
    """
    expected = backbone.maps.model.state_dict()
    given = {name: tensor for name, tensor in encoder.state_dict().items() if name in expected}
    if problems := misfits(expected, given, "backbone"):
        raise UserError(
            f"The encoder's weights do not fit timm's feature extraction model. {problems}. Choose another encoder."
        )
    backbone.maps.model.load_state_dict(given)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TimmLayerDecay(DefaultOptimWrapperConstructor):
    """Rates that fall layer by layer, as timm says which layers of a backbone follow each other; neck and heads learn at the whole rate.

    The last layer of the backbone learns at ``decay_rate`` of the rate, the one before at its square. No weight decay on biases and
    1-D parameters, and on what timm excepts, as in MMSegmentation's LearningRateDecayOptimizerConstructor.
    """

    def add_params(self, params: list[dict[str, Any]], module: Any, **_: Any) -> None:
        """Add the groups of all parameters of ``module``, a segmenter, to ``params``."""
        decay: float = self.paramwise_cfg["decay_rate"]
        model: Any = module.backbone.maps.model
        excepted = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
        own = param_groups_layer_decay(model, self.base_wd, no_weight_decay_list=excepted, layer_decay=decay)
        groups = [{**group, "lr_scale": decay * group["lr_scale"]} for group in own]
        for decays in (True, False):
            rest = [
                parameter
                for name, parameter in module.named_parameters()
                if not name.startswith("backbone.") and (parameter.ndim > 1 and not name.endswith(".bias")) == decays
            ]
            groups.append({"params": rest, "weight_decay": self.base_wd * decays, "lr_scale": 1.0})
        params.extend({**group, "lr": self.base_lr * group["lr_scale"]} for group in groups)
