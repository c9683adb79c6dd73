"""Evaluate a model on every image of a dataset, and compute metrics with confidence intervals."""
