"""``lutbench plan SUITE``: what a suite will cost, before it runs.

``surveys.py`` collects what is known about every dataset. ``costs.py`` gets the number of images from every kind of run and, with
``compute.py``, the cost of one image, which ``known.py`` remembers; and combines them with speeds: those of earlier runs (``rates.py``),
of measured GPUs (``measured.py``), or of data sheets (``gpus.py``). ``disk.py`` sums up disk space. ``show.py`` prints the plan,
``summary.py`` a short version.
"""
