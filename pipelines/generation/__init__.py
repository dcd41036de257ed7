"""Texts, images and sounds drawn from a model."""
