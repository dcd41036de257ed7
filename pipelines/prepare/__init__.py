"""From files of any kind to a shard set."""
