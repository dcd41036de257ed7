"""Decoding id by id, with cached keys and values of every stage, and sampling.

decoder.py        the decoder: prompts, steps, which stages run
cached_stage.py   one stage for one new position of each row
kv_cache.py       cached keys and values, and how rows attend to them
packed_linear.py  matrix products of few rows
sampling.py       the next id from logits
"""
