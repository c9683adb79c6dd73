"""FLOP per image of pre-training, measured by running student and teacher on the meta device."""

from functools import cache

import torch

from lutbench.models.meta import shapes_only
from lutbench.plan.compute import COUNTED, STEP, count, counted, values
from lutbench.plan.cost import Cost
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.run import Run
from pretrain.student import build_student
from pretrain.teacher import Teacher
from pretrain.views import Box, Views


def cost(run: Run[PretrainRecipe], classes: int) -> Cost:
    """Return the compute and memory of ``run``; ``classes`` is not used.

    Raises:
        UserError: if its student cannot be built.
    """
    return cost_of(run.recipe.model_dump_json())


def flop_per_image(recipe: PretrainRecipe) -> float:
    """Return the FLOP per training image; independent of the length of the run, the data and the machine.

    Raises:
        UserError: if its student cannot be built.
    """
    return cost_of(recipe.model_dump_json()).train


@cache
def cost_of(recipe_json: str) -> Cost:
    """Return the cost of a recipe, given as JSON: the student forward and backward, the teacher forward; its encoder alone for k-NN."""
    recipe = PretrainRecipe.model_validate_json(recipe_json)
    with shapes_only():
        student = build_student(recipe, seed=0).eval()  # so that no batch norm asks other processes
        teacher = Teacher(student) if recipe.has_context else None
        side = recipe.encoder.image_size
        view = torch.empty(COUNTED, 3, side, side)
        noise = torch.empty(COUNTED, student.encoder.patch_embed.num_patches)
        views = Views(view, view, noise, boxes=torch.empty(COUNTED, 2, len(Box._fields)))
        targets = teacher(views) if teacher else None
        flop = STEP * counted(lambda: student(views, targets)) + (counted(lambda: teacher(views)) if teacher else 0)
        encoded = count(student.encoder, side).flop if recipe.knn_every else 0
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    kept = values(student) + 2 * trained + (values(teacher) if teacher else 0)
    encoder, teachers = values(student.encoder), values(teacher.encoder) if teacher else 0
    snapshots = len(recipe.snapshots) * (encoder + (teachers if recipe.snapshot_teacher else 0))
    exported = encoder + values(student.decoder) + teachers + snapshots
    return Cost(flop / COUNTED, encoded, kept, exported)
