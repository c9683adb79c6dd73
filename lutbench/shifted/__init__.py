"""Shifted test sets: what is published of them, how they lie on disk, what their labels mean, which numbers they give."""
