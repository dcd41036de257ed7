"""The model against the paper's equations, written out in float64 with explicit loops."""

import math

import pytest
import torch
from tiny_models import SHAPES, tiny_model
from torch import Tensor

from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte


class Reference:
    """One document through the equations of arXiv 2305.07185, one position at a time."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor]) -> None:
        self.config = config
        self.weights = weights

    def nats(self, document: list[int]) -> list[float]:
        return self._stage(0, document, None)

    def _stage(self, stage: int, data: list[int], slices: list[Tensor] | None) -> list[float]:
        w = {
            name.removeprefix(f"stages.{stage}."): value
            for name, value in self.weights.items()
            if name.startswith(f"stages.{stage}.")
        }
        size = math.prod(self.config.patch_sizes[stage:])
        positions = [data[at : at + size] for at in range(0, len(data), size)]
        inputs = []
        for j in range(len(positions)):
            if j == 0:
                x = w["start_embed.weight"]
            else:
                embedded = [w["byte_embed.weight"][byte] for byte in positions[j - 1]]
                if stage == 0:
                    table = w["position_embed.weight"].reshape(self.config.context, -1)
                    embedded = [e + table[(j - 1) * size + at] for at, e in enumerate(embedded)]
                x = torch.cat(embedded)
                if "patch_in.weight" in w:
                    x = w["patch_in.weight"] @ x
            if slices is not None:
                x = x + w["parent.weight"] @ slices[j]
            inputs.append(x)

        for layer in range(self.config.stages[stage].layers):
            inputs = self._block(w, f"blocks.{layer}.", inputs, self.config.stages[stage].heads)
        outputs = [_norm(x, w["norm.weight"], w["norm.bias"]) for x in inputs]

        if stage == len(self.config.stages) - 1:
            logits = [self.weights["lm_head.weight"] @ h for h in outputs]
            exps = [[math.exp(z) for z in row.tolist()] for row in logits]
            return [-math.log(row[x] / sum(row)) for row, x in zip(exps, data, strict=True)]
        nats = []
        for h, position in zip(outputs, positions, strict=True):
            if "patch_out.weight" in w:
                h = w["patch_out.weight"] @ h
            places = self.config.patch_sizes[stage]
            width = len(h) // places
            cut = [h[place * width : (place + 1) * width] for place in range(places)]
            nats += self._stage(stage + 1, position, cut)
        return nats

    @staticmethod
    def _block(w: dict[str, Tensor], name: str, xs: list[Tensor], heads: int) -> list[Tensor]:
        def normed(which: str, x: Tensor) -> Tensor:
            return _norm(x, w[f"{name}{which}.weight"], w[f"{name}{which}.bias"])

        qkv = [w[f"{name}attention.qkv.weight"] @ normed("attention_norm", x) for x in xs]
        c = len(xs[0]) // heads
        q, k, v = (
            [
                [row[part * len(xs[0]) :][head * c : (head + 1) * c] for head in range(heads)]
                for row in qkv
            ]
            for part in range(3)
        )
        after_attention = []
        for t, x in enumerate(xs):
            mixed = []
            for head in range(heads):
                scores = [math.exp(q[t][head] @ k[s][head] / math.sqrt(c)) for s in range(t + 1)]
                shares = [score / sum(scores) for score in scores]
                mixed.append(torch.stack([p * v[s][head] for s, p in enumerate(shares)]).sum(0))
            after_attention.append(x + w[f"{name}attention.output.weight"] @ torch.cat(mixed))
        outputs = []
        for x in after_attention:
            hidden = w[f"{name}feed_forward.0.weight"] @ normed("feed_forward_norm", x)
            hidden = torch.where(hidden > 0, hidden, 0.0)
            outputs.append(x + w[f"{name}feed_forward.2.weight"] @ hidden)
        return outputs


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.sum() / len(x)
    return centred / torch.sqrt((centred**2).sum() / len(x) + 1e-5) * weight + bias


def _perturbed(shape: str, tied: bool) -> Megabyte:
    """A double model whose norms are not the identity."""
    model = tiny_model(shape, tied_output=tied).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_equations(shape: str, tied: bool) -> None:
    model = _perturbed(shape, tied)
    lengths = [16, 8, 24]
    ids = torch.randint(0, 264, (1, sum(lengths)))
    document = torch.tensor([[0, 0, 1, 2, 2, 2]], dtype=torch.int32)
    with torch.no_grad():
        nats = model(ids, document, torch.zeros_like(ids, dtype=torch.uint8))
        reference = Reference(model.config, model.state_dict())
        expected = [
            value for part in ids[0].split(lengths) for value in reference.nats(part.tolist())
        ]
    assert nats.dtype == torch.float64
    assert nats[0].tolist() == pytest.approx(expected, abs=1e-9)
