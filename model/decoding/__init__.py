"""Generation id by id on cached keys and values."""
