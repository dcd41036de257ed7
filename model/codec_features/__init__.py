"""Predictions of the next byte, as the codecs of each modality make them."""
