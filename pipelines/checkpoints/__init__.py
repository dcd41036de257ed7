"""What a run and an exported model are on disk, and how they are read."""
