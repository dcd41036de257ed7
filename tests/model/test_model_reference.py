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


class Reference:
    """One document through the equations, one position at a time."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor]) -> None:
        self.config = config
        self.weights = weights

    def nats(self, document: list[int], modality: list[int]) -> list[float]:
        outputs = self._stage(0, document, [])
        for stage in range(1, len(self.config.stages)):
            outputs = self._stage(stage, document, outputs)
        heads = self.weights["lm_head.weight"].reshape(-1, self.config.vocab_size, len(outputs[0]))
        which = [0, *modality[:-1]] if self.config.modality_heads else [0] * len(outputs)
        logits = [heads[m] @ h for m, h in zip(which, outputs, strict=True)]
        exps = [[math.exp(z) for z in row.tolist()] for row in logits]
        return [-math.log(row[x] / sum(row)) for row, x in zip(exps, document, strict=True)]

    def _stage(self, stage: int, data: list[int], slices: list[Tensor]) -> list[Tensor]:
        """The slices of the stage's outputs, or its outputs where it is the last."""
        w = {
            name.removeprefix(f"stages.{stage}."): value
            for name, value in self.weights.items()
            if name.startswith(f"stages.{stage}.")
        }
        size = math.prod(self.config.patch_sizes[stage:])
        positions = [data[at : at + size] for at in range(0, len(data), size)]
        places = self.config.patch_sizes[stage - 1] if stage else len(positions)
        table = [w["byte_embed.weight"][byte] for byte in data]
        if stage == 0 and self.config.conv_patch_encoder:
            for layer in range(3):
                table = _convolved(table, w[f"patch_encoder.layers.{layer}.weight"])
        ids, one = torch.tensor([data]), torch.zeros(1, 1)
        codec_features = compute_codec_features(ids, one, self.config.patch)[
            0
        ].tolist()  # held in test_hints.py
        no_hint = table[0].new_zeros(16)
        inputs = []
        for j in range(len(positions)):
            if j == 0 or (j % places == 0 and not self.config.cross_patch_attention):
                x = w["start_embed.weight"]
            else:
                embedded = table[(j - 1) * size : j * size]
                if stage == 0:
                    position = w["position_embed.weight"].reshape(self.config.context, -1)
                    embedded = [e + position[(j - 1) * size + at] for at, e in enumerate(embedded)]
                x = torch.cat(embedded)
                if "patch_in.weight" in w:
                    x = w["patch_in.weight"] @ x
            if "ngram_in.weight" in w:
                grams = [self._ngram(w["ngram_embed.weight"], data[:j], n) for n in (2, 3, 4)]
                if self.config.codec_features and codec_features[j][8] >= 0:  # a pixel or a sample
                    grams = [torch.zeros_like(gram) for gram in grams]
                x = x + w["ngram_in.weight"] @ torch.cat(grams)
            if "feature_in.weight" in w:
                found = [
                    w["feature_embed.weight"][h] if h >= 0 else no_hint for h in codec_features[j]
                ]
                x = x + w["feature_in.weight"] @ torch.cat(found)
            if slices:
                x = x + w["parent.weight"] @ slices[j]
            inputs.append(x)

        for layer in range(self.config.stages[stage].layers):
            inputs = self._block(w, f"blocks.{layer}.", inputs, stage, places)
        outputs = [_norm(x, w, "norm") for x in inputs]
        if stage == len(self.config.stages) - 1:
            return outputs
        cut = []
        for h in outputs:
            if "patch_out.weight" in w:
                h = w["patch_out.weight"] @ h
            cut += h.chunk(self.config.patch_sizes[stage])
        return cut

    def _ngram(self, tables: Tensor, before: list[int], n: int) -> Tensor:
        if len(before) < n:
            return torch.zeros(tables.shape[1], dtype=tables.dtype)
        power = [pow(1_540_483_477, n - 1 - at, 2**31 - 1) for at in range(n)]
        hashed = sum(p * (id_ + 1) for p, id_ in zip(power, before[-n:], strict=True))
        rows = self.config.ngram_table_size
        return tables[(n - 2) * rows + hashed % (2**31 - 1) % rows]

    def _block(
        self, w: dict[str, Tensor], name: str, xs: list[Tensor], stage: int, places: int
    ) -> list[Tensor]:
        heads = self.config.stages[stage].heads
        c = len(xs[0]) // heads
        normed = [_norm(x, w, f"{name}attention_norm") for x in xs]
        rows = [w[f"{name}attention.qkv.weight"] @ x for x in normed]
        q, k, v = (
            [
                [row[part * len(xs[0]) :][head * c : (head + 1) * c] for head in range(heads)]
                for row in rows
            ]
            for part in range(3)
        )
        if self.config.qk_norm:
            gain = w[f"{name}attention.norm_gain.weight"]
            q = [[g * _unit(a) for g, a in zip(gain, row, strict=True)] for row in q]
            k = [[_unit(a) for a in row] for row in k]
        if self.config.rope:
            q = [[_turned(a, t) for a in row] for t, row in enumerate(q)]
            k = [[_turned(a, t) for a in row] for t, row in enumerate(k)]
        after_attention = []
        for t, x in enumerate(xs):
            begin = t // places * places
            back = min(self.config.cross_patch_attention, places) if begin else 0
            seen = range(begin - back, t + 1)
            if stage == 0 and self.config.attention_window:
                seen = seen[-self.config.attention_window :]
            mixed = []
            for head in range(heads):
                scores = [math.exp(q[t][head] @ k[s][head] / math.sqrt(c)) for s in seen]
                shares = [score / sum(scores) for score in scores]
                weighed = [p * v[s][head] for s, p in zip(seen, shares, strict=True)]
                mixed.append(torch.stack(weighed).sum(0))
            after_attention.append(x + w[f"{name}attention.output.weight"] @ torch.cat(mixed))
        outputs = []
        normed = [_norm(x, w, f"{name}feed_forward_norm") for x in after_attention]
        for x, read_by_x in zip(after_attention, normed, strict=True):
            hidden = w[f"{name}feed_forward.0.weight"] @ read_by_x
            if self.config.swiglu:
                gate, value = hidden[: len(hidden) // 2], hidden[len(hidden) // 2 :]
                hidden = gate / (1.0 + torch.exp(-gate)) * value
            else:
                hidden = torch.where(hidden > 0, hidden, 0.0)
            outputs.append(x + w[f"{name}feed_forward.2.weight"] @ hidden)
        return outputs


def _norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """LayerNorm, or RMSNorm where there is no bias."""
    bias = w.get(f"{name}.bias", torch.zeros(1))
    centred = x - x.sum() / len(x) if f"{name}.bias" in w else x
    scale = torch.sqrt((centred**2).sum() / len(x) + 1e-5)
    return centred / scale * w[f"{name}.weight"] + bias


def _unit(x: Tensor) -> Tensor:
    """With a mean square of 1."""
    return x / torch.sqrt((x**2).sum() / len(x) + 1e-5)


def _convolved(xs: list[Tensor], filters: Tensor) -> list[Tensor]:
    """x_t + ReLU of the sum of W_k x_{t - f + 1 + k} over the f places that are there."""
    size = filters.shape[2]
    outputs = []
    for t, x in enumerate(xs):
        terms = [
            filters[:, :, k] @ xs[t - size + 1 + k] for k in range(size) if t - size + 1 + k >= 0
        ]
        total = torch.stack(terms).sum(0)
        outputs.append(x + torch.where(total > 0, total, 0.0))
    return outputs


def _turned(x: Tensor, place: int) -> Tensor:
    """Each pair of channels as a complex number, turned by the place in the document."""
    half = len(x) // 2
    turned = [
        complex(x[i], x[i + half]) * complex(math.cos(angle), math.sin(angle))
        for i, angle in enumerate(place * 10_000 ** (-i / half) for i in range(half))
    ]
    return torch.tensor([z.real for z in turned] + [z.imag for z in turned], dtype=x.dtype)


def _perturbed(shape: str, **options: Any) -> Megabyte:
    """A double model whose norms are not the identity."""
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
