"""Semantic segmentation: UPerNet on the encoder, trained and tested by MMSegmentation's own Runner.

``config.py`` turns a recipe into MMSegmentation's config, ``backbone.py`` an encoder's weights into those of its MAE
backbone, ``train.py`` runs it, ``hooks.py`` makes the Runner keep the suite's promises, ``scores.py`` takes every
image's confusion counts out of it, ``export.py`` lets a user take the result away.
"""

import contextlib
import io
import warnings

with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says at length what optional packages it misses
    import mmseg.datasets
    import mmseg.models  # noqa: F401
