"""DeepSpeed configurations: ZeRO and offload, one JSON file a case.

Batch size, optimizer, schedule, clipping and precision belong to the run's config
(`bytelm.pipelines.config`), and a key that both would set is an error.
"""
