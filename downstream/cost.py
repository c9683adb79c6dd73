"""FLOP per image of fine-tuning, the probes and k-NN.

The linear layer of probes and the comparison of neighbours are ignored: they are small compared with the encoder.
"""

import torch

from downstream.attentive_pool import attentive_head, heads_of
from lutbench.models.blocks import probe_width
from lutbench.models.meta import shapes_only
from lutbench.models.tokens import token_shape
from lutbench.plan.compute import STEP, counted, transformer, values
from lutbench.plan.cost import Cost
from lutbench.recipes.attentive import AttentiveRecipe
from lutbench.recipes.downstream import FinetuneRecipe, ImageTaskRecipe
from lutbench.recipes.probes import LinearRecipe, LogisticRecipe, ProbeRecipe
from lutbench.run import Run


def finetuning(run: Run[FinetuneRecipe], classes: int) -> Cost:
    """Return what it takes to train and evaluate the encoder with a layer of ``classes`` outputs."""
    model = transformer(run.recipe.encoder.architecture, run.recipe.side, classes)
    return Cost(STEP * model.flop, model.flop, 3 * model.values, model.values)


def linear_probe(run: Run[LinearRecipe], classes: int) -> Cost:
    """Return what it takes to encode an image; the layer is kept, and LARS's one moment of it in checkpoints."""
    layer = _layer(run, classes)
    return encoding(run, classes)._replace(checkpoint=2 * layer, exported=layer)


def logistic_regression(run: Run[LogisticRecipe], classes: int) -> Cost:
    """Return what it takes to encode an image; the layer is kept."""
    return encoding(run, classes)._replace(exported=_layer(run, classes))


def _layer(run: Run[ProbeRecipe], classes: int) -> int:
    """Return how many numbers a linear layer on the features has, with its bias."""
    recipe = run.recipe
    return (probe_width(recipe.encoder.architecture, recipe.side, recipe.pooling, recipe.blocks_taken) + 1) * classes


def attentive_probe(run: Run[AttentiveRecipe], classes: int) -> Cost:
    """Return what it takes to encode an image and train the probe on it, in every epoch or, on tokens encoded once, in all of them."""
    recipe = run.recipe
    encoder = transformer(recipe.encoder.architecture, recipe.side).flop
    tokens, width = token_shape(recipe.encoder.architecture, recipe.side)
    with shapes_only():
        head = attentive_head(width, classes, heads_of(recipe, width), recipe.mlp_ratio, run.seed).requires_grad_(False)
        one = counted(lambda: head(torch.empty(1, tokens, width)))
    trained = STEP * one * (1 if recipe.fresh_crops else recipe.epochs)
    return Cost(encoder + trained, encoder + one, 3 * values(head), values(head))


def encoding(run: Run[ImageTaskRecipe], classes: int) -> Cost:
    """Return what it takes to encode an image, whatever the number of ``classes``; nothing is kept."""
    flop = transformer(run.recipe.encoder.architecture, run.recipe.side).flop
    return Cost(flop, flop)
