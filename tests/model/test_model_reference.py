"""The model against its equations, written out in float64 with explicit loops."""

import math
from typing import Any

import pytest
import torch
from helpers.tiny_models import OPTIONS, SHAPES, opened, options_of, tiny_model
from torch import Tensor

from bytelm.model.codec_features.vectorized import compute_codec_features
from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte

Weights = dict[str, Tensor]


class Reference:
    """One document through the equations, one position at a time."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self.weights = weights

    def nats(self, document: list[int], modality: list[int]) -> list[float]:
        """Nats of every id of a document, whose ids have these modalities."""
        outputs: list[Tensor] = []
        for stage in range(len(self.config.stages)):
            outputs = self._stage(stage, document, outputs)
        matrices = self.weights["lm_head.weight"].reshape(
            -1, self.config.vocab_size, len(outputs[0])
        )
        heads = [0, *modality[:-1]] if self.config.modality_heads else [0] * len(outputs)
        logits = [matrices[head] @ h for head, h in zip(heads, outputs, strict=True)]
        exps = [[math.exp(z) for z in row.tolist()] for row in logits]
        return [-math.log(row[x] / sum(row)) for row, x in zip(exps, document, strict=True)]

    def _stage(self, stage: int, document: list[int], slices: list[Tensor]) -> list[Tensor]:
        """The slices of the stage's outputs, or its outputs if it is the last."""
        w = {
            name.removeprefix(f"stages.{stage}."): value
            for name, value in self.weights.items()
            if name.startswith(f"stages.{stage}.")
        }
        xs = self._inputs(w, stage, document)
        if slices:
            xs = [x + w["parent.weight"] @ part for x, part in zip(xs, slices, strict=True)]
        for layer in range(self.config.stages[stage].layers):
            xs = self._attention(w, f"blocks.{layer}.", xs, stage)
            xs = self._feed_forward(w, f"blocks.{layer}.", xs)
        outputs = [_norm(x, w, "norm") for x in xs]
        if stage == len(self.config.stages) - 1:
            return outputs
        if "patch_out.weight" in w:
            outputs = [w["patch_out.weight"] @ h for h in outputs]
        return [part for h in outputs for part in h.chunk(self.config.patch_sizes[stage])]

    def _inputs(self, w: Weights, stage: int, document: list[int]) -> list[Tensor]:
        """The input of each position, without the slice of the parent's output."""
        size = math.prod(self.config.patch_sizes[stage:])
        positions = len(document) // size
        length = self.config.patch_sizes[stage - 1] if stage else positions
        embedded = self._embedded_bytes(w, stage, document)
        features = self._codec_features(document)
        inputs = []
        for j in range(positions):
            if j == 0 or (j % length == 0 and not self.config.cross_patch_attention):
                x = w["start_embed.weight"]
            else:
                x = torch.cat(embedded[(j - 1) * size : j * size])
                if "patch_in.weight" in w:
                    x = w["patch_in.weight"] @ x
            if "ngram_in.weight" in w:
                grams = [self._ngram(w["ngram_embed.weight"], document[:j], n) for n in (2, 3, 4)]
                if self.config.codec_features and features[j][8] >= 0:  # a pixel or a sample
                    grams = [torch.zeros_like(gram) for gram in grams]
                x = x + w["ngram_in.weight"] @ torch.cat(grams)
            if "feature_in.weight" in w:
                table = w["feature_embed.weight"]
                rows = [table[f] if f >= 0 else torch.zeros_like(table[0]) for f in features[j]]
                x = x + w["feature_in.weight"] @ torch.cat(rows)
            inputs.append(x)
        return inputs

    def _embedded_bytes(self, w: Weights, stage: int, document: list[int]) -> list[Tensor]:
        """The embedding of each id, with convolutions and the position table in stage 0."""
        embedded = [w["byte_embed.weight"][id_] for id_ in document]
        if stage > 0:
            return embedded
        if self.config.conv_patch_encoder:
            for layer in range(3):
                embedded = _convolved(embedded, w[f"patch_encoder.layers.{layer}.weight"])
        by_byte = w["position_embed.weight"].reshape(self.config.context, -1)
        return [e + by_byte[at] for at, e in enumerate(embedded)]

    def _codec_features(self, document: list[int]) -> list[list[int]]:
        """Those of the model: test_codec_features.py has their own reference."""
        ids, one = torch.tensor([document]), torch.zeros(1, 1)
        features: list[list[int]] = compute_codec_features(ids, one, self.config.patch)[0].tolist()
        return features

    def _ngram(self, tables: Tensor, preceding_ids: list[int], n: int) -> Tensor:
        """The embedding of the n ids before a position."""
        if len(preceding_ids) < n:
            return torch.zeros(tables.shape[1], dtype=tables.dtype)
        power = [pow(1_540_483_477, n - 1 - at, 2**31 - 1) for at in range(n)]
        hashed = sum(p * (id_ + 1) for p, id_ in zip(power, preceding_ids[-n:], strict=True))
        rows = self.config.ngram_table_size
        return tables[(n - 2) * rows + hashed % (2**31 - 1) % rows]

    def _attention(self, w: Weights, name: str, xs: list[Tensor], stage: int) -> list[Tensor]:
        """x + attention(norm(x)) at each position."""
        heads = self.config.stages[stage].heads
        q, k, v = self._queries_keys_values(w, name, xs, heads)
        outputs = []
        for t, x in enumerate(xs):
            attended = self._attended_positions(stage, t, len(xs))
            head_outputs = []
            for head in range(heads):
                c = len(q[t][head])
                scores = [math.exp(q[t][head] @ k[s][head] / math.sqrt(c)) for s in attended]
                weights = [score / sum(scores) for score in scores]
                weighted = [p * v[s][head] for s, p in zip(attended, weights, strict=True)]
                head_outputs.append(torch.stack(weighted).sum(0))
            outputs.append(x + w[f"{name}attention.output.weight"] @ torch.cat(head_outputs))
        return outputs

    def _queries_keys_values(
        self, w: Weights, name: str, xs: list[Tensor], heads: int
    ) -> list[list[list[Tensor]]]:
        """Queries, keys and values: for each position, those of each head."""
        normed = [_norm(x, w, f"{name}attention_norm") for x in xs]
        rows = [w[f"{name}attention.qkv.weight"] @ x for x in normed]
        q, k, v = ([list(row.chunk(3)[part].chunk(heads)) for row in rows] for part in range(3))
        if self.config.qk_norm:
            gain = w[f"{name}attention.norm_gain.weight"]
            q = [[g * _unit(a) for g, a in zip(gain, row, strict=True)] for row in q]
            k = [[_unit(a) for a in row] for row in k]
        if self.config.rope:
            q = [[_rotated(a, t) for a in row] for t, row in enumerate(q)]
            k = [[_rotated(a, t) for a in row] for t, row in enumerate(k)]
        return [q, k, v]

    def _attended_positions(self, stage: int, t: int, positions: int) -> range:
        """The positions of a document that position t attends to."""
        if stage == 0:
            window = self.config.attention_window or positions
            return range(max(0, t + 1 - window), t + 1)
        length = self.config.patch_sizes[stage - 1]
        begin = t // length * length
        earlier = min(self.config.cross_patch_attention, length) if begin else 0
        return range(begin - earlier, t + 1)

    def _feed_forward(self, w: Weights, name: str, xs: list[Tensor]) -> list[Tensor]:
        """x + feed_forward(norm(x)) at each position."""
        outputs = []
        for x in xs:
            hidden = w[f"{name}feed_forward.0.weight"] @ _norm(x, w, f"{name}feed_forward_norm")
            if self.config.swiglu:
                gate, value = hidden[: len(hidden) // 2], hidden[len(hidden) // 2 :]
                hidden = gate / (1.0 + torch.exp(-gate)) * value
            else:
                hidden = torch.where(hidden > 0, hidden, 0.0)
            outputs.append(x + w[f"{name}feed_forward.2.weight"] @ hidden)
        return outputs


def _norm(x: Tensor, w: Weights, name: str) -> Tensor:
    """LayerNorm; RMSNorm where there is no bias."""
    bias = w.get(f"{name}.bias", torch.zeros(1))
    centered = x - x.sum() / len(x) if f"{name}.bias" in w else x
    scale = torch.sqrt((centered**2).sum() / len(x) + 1e-5)
    return centered / scale * w[f"{name}.weight"] + bias


def _unit(x: Tensor) -> Tensor:
    """x scaled to a mean square of 1."""
    return x / torch.sqrt((x**2).sum() / len(x) + 1e-5)


def _convolved(xs: list[Tensor], filters: Tensor) -> list[Tensor]:
    """x_t + ReLU(sum of W_k x_{t - f + 1 + k}) over f inputs; zeros before the first."""
    size = filters.shape[2]
    outputs = []
    for t, x in enumerate(xs):
        terms = [
            filters[:, :, k] @ xs[t - size + 1 + k] for k in range(size) if t - size + 1 + k >= 0
        ]
        total = torch.stack(terms).sum(0)
        outputs.append(x + torch.where(total > 0, total, 0.0))
    return outputs


def _rotated(x: Tensor, position: int) -> Tensor:
    """RoPE: each pair of channels as a complex number, rotated by the position."""
    half = len(x) // 2
    rotated = [
        complex(x[i], x[i + half]) * complex(math.cos(angle), math.sin(angle))
        for i, angle in enumerate(position * 10_000 ** (-i / half) for i in range(half))
    ]
    return torch.tensor([z.real for z in rotated] + [z.imag for z in rotated], dtype=x.dtype)


def _perturbed(shape: str, **options: Any) -> Megabyte:
    """A float64 model whose norms are not the identity."""
    model = tiny_model(shape, **options).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_equations(shape: str, option: str) -> None:
    model = _perturbed(shape, **options_of(option, shape))
    lengths = [16, 8, 24]
    ids = opened(torch.randint(0, 264, (1, sum(lengths))), at=24)
    document = torch.tensor([[0, 0, 1, 2, 2, 2]], dtype=torch.int32)
    modality = torch.arange(3, dtype=torch.uint8).repeat_interleave(4).repeat(4)[None]
    with torch.no_grad():
        nats = model(ids, document, modality)
        reference = Reference(model.config, model.state_dict())
        parts = zip(ids[0].split(lengths), modality[0].split(lengths), strict=True)
        expected = [x for part in parts for x in reference.nats(*(p.tolist() for p in part))]
    assert nats.dtype == torch.float64
    assert nats[0].tolist() == pytest.approx(expected, abs=1e-9)
