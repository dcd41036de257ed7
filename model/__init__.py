"""The byte decoder: configuration, layers, model, decoding, sampling and files of weights.

Nothing is imported here, so that `bytelm.model.config` can be read without loading torch.
"""
