"""``lutbench plan SUITE``: what a suite will cost, before it runs.

``surveys.py`` collects what is known about every dataset. ``costs.py`` gets the number of images from every kind of run and, with
``compute.py``, the cost of one image, and combines them with measured or given speeds. ``disk.py`` sums up disk space, ``gpus.py`` has
GPUs by their data sheets, and ``measured.py`` the measured ones. ``show.py`` prints the plan, ``summary.py`` a short version.
"""
