"""What a suite will cost, before anything of it runs: ``lutbench plan SUITE``.

``surveys.py`` asks every dataset what is known of it, ``costs.py`` every kind of run how many images it takes and, with the
tools of ``compute.py``, what one of them costs, to put both together with measured or given speeds; ``disk.py`` sums up
what is kept, ``gpus.py`` knows GPUs by their data sheets and ``measured.py`` those that were measured; ``show.py`` prints it all,
and ``summary.py`` a screen of it.
"""
