"""From files to shards, rows, a trained model, its score and its files."""
