"""Semantic segmentation: UPerNet on the encoder, trained and tested by MMSegmentation's own Runner.

``config.py`` turns a recipe into MMSegmentation's config, ``backbone.py`` an encoder's weights into those of its MAE
backbone, ``segment.py`` runs it, ``hooks.py`` makes the Runner keep the suite's promises, ``scores.py`` takes every
image's confusion counts out of it, ``confusions.py`` says what follows from them, ``export.py`` lets a user take the
result away. MMSegmentation, which takes seconds to import, is imported when a run is checked.
"""
