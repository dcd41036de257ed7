"""Benchmarks of speed and memory; each script prints one JSON line a figure."""
