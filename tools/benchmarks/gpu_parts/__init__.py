"""What `tools/benchmarks/gpu.py` measures: jobs of `jobs.py`, each on one GPU or tiny on a CPU."""
