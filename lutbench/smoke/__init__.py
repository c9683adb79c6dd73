"""Smoke runs: every run of a suite in minutes, with few images and few steps, to check that all of it works.

``lutbench run SUITE --smoke`` uses the suite's own encoders, ``--smoke toy`` small ones of the same kind. Only the suite's recipes
change (:mod:`lutbench.smoke.shortened`); the code that performs runs, reads datasets and builds tables is that of real runs. A missing
dataset is replaced by a miniature one (:mod:`lutbench.smoke.inputs`).

The results are not measurements: they are kept apart, in ``smoke/WIDTH`` below the folders of runs and results, have their own
identities, are marked in every table, and are refused by every command that exports a model or a number (:mod:`lutbench.smoke.mark`).
"""

from typing import Literal

Width = Literal["own", "toy"]
"""The encoders of smoke runs: those of the suite, or small ones of the same kind."""
