"""Shifted sets that the suite makes itself, before they are first measured."""

import os
from pathlib import Path

from lutbench.data.folder import open_folder
from lutbench.data.toy.photographs import BUILT, build
from lutbench.recipes.robustness import RobustnessDatasetRecipe
from robustness.toy_sets import SETS, build_shifted


def make_shifted(recipe: RobustnessDatasetRecipe, root: Path) -> bool:
    """Make a set below the data root if it is one of the suite's own and not there; whether it was made now.

    Raises:
        UserError: if what it is made from is not there or cannot be decoded, or it cannot be written.
    """
    if recipe.source in SETS:
        return build_shifted(recipe.source, root)
    if recipe.source != "corrupted":
        return False
    from robustness.corrupted import build_corrupted  # here, because scikit-image takes a second to import
    from robustness.corruptions import CORRUPTIONS

    first = Path(recipe.copy_of).parts[0]
    if first in BUILT:
        build(first, root)
    folder = root / recipe.copy_of
    return build_corrupted(
        open_folder(folder, first, folder.name),
        root / recipe.path,
        (*(recipe.corruptions or [name for name in CORRUPTIONS if name not in recipe.extra]), *recipe.extra),
        recipe.severities,
        side=recipe.copy_side,
        per_class=recipe.copy_per_class,
        workers=os.cpu_count() or 1,
    )
