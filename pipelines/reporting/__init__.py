"""The page of a run: curves, scores, where the bits go, samples and surprise maps."""
