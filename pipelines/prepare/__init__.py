"""`bytelm prepare`: files of any kind become a shard set. `prepare.prepare` is the entry."""
