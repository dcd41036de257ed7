"""Codec features: predictions of the next byte as xz, PNG and FLAC make them, read by the model.

`layout` says where payload bytes, pixels and samples lie, `formulas` how neighbours predict them.
`vectorized` computes the features of whole rows, `incremental` those of a row read id by id.
"""
