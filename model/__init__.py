"""The byte decoder: its configuration, layers and stages, decoding, and the names in its files.

Nothing is imported here, so that `bytelm.model.config` can be read without loading torch.
"""
