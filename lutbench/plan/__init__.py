"""What a suite will cost, before anything of it runs: ``lutbench plan SUITE``.

``counts.py`` says how many images the runs look at, ``compute.py`` what one image costs, ``costs.py`` puts both together with
measured or given speeds, ``sets.py`` says what is missing, ``disk.py`` what is kept, and ``show.py`` prints it.
"""
