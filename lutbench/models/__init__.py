"""Encoders: models of timm, the sources of their weights, and how weights are stored."""
