"""Smoke runs: every run of a suite in minutes, on a few images and for a few steps, to see that all of it can be run.

``lutbench run SUITE --smoke`` takes the suite's own encoders, ``--smoke toy`` small ones of the same kinds. It is the suite's recipes
that change (:mod:`lutbench.smoke.shortened`): what performs them, reads sets and makes tables is what performs, reads and makes the real
ones. A set that is not there is read in miniature (:mod:`lutbench.smoke.inputs`).

What comes of it is no measurement: it lies apart, in ``smoke/WIDTH`` below the folders of runs and results, has identities of its
own, is marked in every table, and is refused wherever a model or a number would be taken away (:mod:`lutbench.smoke.mark`).
"""
