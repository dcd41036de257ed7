"""DeepSpeed configs, one JSON file for each combination of ZeRO stage and offload.

Batch size, optimizer, learning rates, clipping and precision belong to the run's config
(`bytelm.pipelines.config`); a DeepSpeed config that sets one of them is refused.
"""
