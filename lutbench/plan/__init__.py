"""What a suite will cost, before anything of it runs: ``lutbench plan SUITE``.

``datasets.py`` surveys the datasets and says what is missing, ``compute.py`` counts what a model computes for one image, ``costs.py``
puts both together with measured or given speeds, ``disk.py`` says what is kept, and ``show.py`` prints it.
"""
