"""The parts of `tools/benchmarks/gpu.py`: jobs of `jobs.py`, each on one GPU or tiny on a CPU."""
