"""Shard sets: their format, reading and writing, making an index again, and inspection."""
