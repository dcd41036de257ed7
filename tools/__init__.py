"""The demo, benchmarks and maintenance; nothing imports from here."""
