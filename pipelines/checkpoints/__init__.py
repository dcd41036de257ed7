"""Checkpoints and exported models on disk: their layout, and how they are checked and read."""
