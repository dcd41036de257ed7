"""Decoding id by id, with cached keys and values of every stage, and sampling.

decoder.py          the decoder: prompts, steps, which of both kinds of steps runs
decoded_rows.py     what rows hold: ids, codec features, modality
kv_cache.py         cached keys and values, and how rows attend to them
sampling.py         the next id from logits; on a CPU by sampling_kernel.py

Steps in fp32 on a CPU, one compiled call each:
compiled_steps.py   rows over threads
step_kernel.py      the step; its matrix products are in step_products.py
step_layout.py      the model's weights in the arrays and records (step_records.py) that it reads

Steps by PyTorch's operations, in other types:
module_steps.py     which stages run, and in which rows
cached_stage.py     one stage for one new position of each row
packed_linear.py    matrix products of few rows

Drawing rows:
row_drawer.py       ids of rows by a sampler, on a CPU or on a GPU
row_sampler.py      guides, random numbers and ends of rows
static_*.py         steps of fixed shapes and addresses for a GPU
step_graphs.py      CUDA graphs of them
"""
