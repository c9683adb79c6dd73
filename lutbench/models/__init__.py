"""Encoders: timm's Vision Transformers, where their weights come from, and how they are kept."""
