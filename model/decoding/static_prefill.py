"""Prompts of equal length, whose ids run in parallel through the stages and fill static caches.

Shapes:
    B   rows                     t   ids of each prompt
    R   ids before a position that stages read (`lookback_bytes`)
    b   bytes in a position of a stage
    m   positions in a sequence of a stage
    Q   sequences that a stage runs in each row
    n   positions that a stage runs in each row
    d   width of a slice of the parent's output
    J   codec features of an id
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor

from bytelm.model.attention_context import AttentionContext, PackedContext
from bytelm.model.decoding.static_attention import PromptContext, RowCaches
from bytelm.model.megabyte import Megabyte
from bytelm.model.stage import Stage

Caches = Sequence[Sequence[RowCaches]]
"""The caches of each layer of each stage."""


def run_prompts(
    model: Megabyte, ids: Tensor, held: int, features: Tensor | None, caches: Caches
) -> list[Tensor]:
    """Run prompts of `held` ids through all stages.

    Args:
        ids: [B, R + K * P] int64, R times -1 and then whole patches, one more than `held` fills.
        features: [B, K * P, J], codec features of these ids, for a model that reads them.
        caches: of these rows; they receive the newest sequences.

    Returns:
        The output of each stage at the position where the rows stand, [B, ...].
    """
    outputs: list[Tensor] = []
    parent: Tensor | None = None  # [B, Q, m * d]
    start = 0  # the first id of the first position that a stage runs
    crosses = model.config.cross_patch_attention > 0
    for stage, layers in zip(model.stages, caches, strict=True):
        size, m = stage.position_bytes, stage.sequence_length
        n = held // size + 1 if parent is None else parent.shape[1] * m
        newest = (held - start) // size
        first_id = start + torch.arange(n, device=ids.device) * size  # of each position
        window = torch.arange(-stage.input_window, 0, device=ids.device) + model.lookback_bytes
        preceding_ids = ids[:, first_id[:, None] + window].flatten(0, 1)
        position = repeat(first_id // size, "n -> (B n)", B=len(ids))
        read = features if stage.feature_embed is not None else None
        output = stage(
            preceding_ids,
            position,
            None if read is None else read[:, first_id].flatten(0, 1),
            None if parent is None else rearrange(parent, "B Q (m d) -> (B Q m) d", m=m),
            _contexts(stage, layers, n if parent is None else m, n, newest),
        )
        output = rearrange(output, "(B n) D -> B n D", n=n)
        outputs.append(output[:, newest])
        if crosses:
            parent = output
        else:  # only the newest sequence matters
            parent = output[:, newest : newest + 1]
            start += newest * size
    return outputs


def _contexts(
    stage: Stage, layers: Sequence[RowCaches], length: int, n: int, newest: int
) -> list[PromptContext]:
    """Contexts of a stage's layers over sequences of `length` positions, n in each row."""
    rows, sequences = len(layers[0].keys), n // length
    contexts: Sequence[AttentionContext]
    if stage.cross_patch_keys:
        sequence = torch.arange(rows * sequences, device=layers[0].keys.device)
        contexts = stage.cross_patch_contexts(sequence % sequences == 0, iter(()))
    else:
        packed = PackedContext([(rows * sequences, length)], stage.attention_window)
        contexts = [packed] * len(layers)
    return [
        PromptContext(cache, context, length, newest // length)
        for cache, context in zip(layers, contexts, strict=True)
    ]
