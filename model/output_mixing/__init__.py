"""Output mixing: the network's distribution of the next byte, mixed with those of predictors.

`kernels` has the state machine that predicts, mixes and learns within a document; `state` its
arrays. `mixer` runs it over whole documents and over the steps of a decoder.
"""
