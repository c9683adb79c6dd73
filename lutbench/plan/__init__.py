"""What a suite will cost, before anything of it runs: ``lutbench plan SUITE``.

``counts.py`` says how many images the runs look at, ``compute.py`` what one image costs, ``costs.py`` puts both together with
measured or given speeds, ``disk.py`` says what is kept and what is missing, and ``show.py`` prints it.
"""
