"""Shard sets: their format, reading, writing, indexing and inspection."""
