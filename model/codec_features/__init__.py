"""Codec features: predictions of the next byte as xz, PNG and FLAC make them, read by the model.

`layout` has the constants of the stream and of the features, `kernels` the state machine that makes
them. `vectorized` computes the features of whole rows, `incremental` those of rows read id by id.
"""
