"""The playground: a page on which a model completes, scores and compresses what its users give."""
