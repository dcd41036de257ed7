"""Training under DeepSpeed: trainer, engine, optimizer, checkpoints, metrics, preview."""
