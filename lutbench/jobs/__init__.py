"""Runs in parallel: ``lutbench run SUITE --jobs N``."""
