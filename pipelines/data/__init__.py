"""From a shard set to batches: packing, the plan, rows, loaders."""
