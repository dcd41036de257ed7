"""Measurements of speed and memory; each prints one JSON line a figure."""
