"""Runs side by side: ``lutbench run SUITE --jobs N``."""
