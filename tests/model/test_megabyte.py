"""The forward pass: causality, documents, chunks, precision, initialisation."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_models import OPTIONS, SHAPES, opened, options_of, tiny_model
from torch import Tensor, nn

from bytelm.model.config import ModelConfig, StageConfig
from bytelm.model.embeddings import StartEmbedding
from bytelm.model.megabyte import Megabyte

MODALITY = (torch.arange(144) // 8 % 3).reshape(3, 48).to(torch.uint8)
"""Modalities of rows with segments of 8 ids."""


def _modality(ids: Tensor) -> Tensor:
    return torch.zeros_like(ids, dtype=torch.uint8)


def _one_document(ids: Tensor) -> Tensor:
    return torch.zeros(len(ids), 1, dtype=torch.int32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("document", [[0, 0, 0, 0, 0, 0], [0, 0, 1, 2, 2, 2], [4, 4, 4, 1, -1, -1]])
def test_nats_depend_only_on_earlier_bytes_of_their_document(
    shape: str, option: str, document: list[int]
) -> None:
    model = tiny_model(shape, **options_of(option, shape))
    # All ids differ, so that each embedding names its byte, whatever the order of the layout.
    ids = torch.randperm(255)[:48][None] + 1
    embedded: list[tuple[Tensor, Tensor]] = []

    def record_ngrams(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        grams = []
        for n, part in zip((2, 3, 4), output.chunk(3, dim=1), strict=True):
            gram, preceding_ids = part[:, None].repeat(1, n, 1), inputs[0][:, -n:]
            grams.append(gram)
            crosses_start = preceding_ids[:, 0] < 0
            assert gram[crosses_start].eq(0.0).all()
            embedded.append((preceding_ids.masked_fill(crosses_start[:, None], 0), gram))
        return torch.cat([gram.mean(1) for gram in grams], dim=1)

    for stage in model.stages:
        if stage.ngram_embed is not None:
            stage.ngram_embed.register_forward_hook(record_ngrams)
        stage.byte_embed.register_forward_hook(
            lambda module, inputs, output: embedded.append((inputs[0], output))
        )
    nats = model(ids, torch.tensor([document], dtype=torch.int32), MODALITY[:1])[0]
    byte_at = {value: at for at, value in enumerate(ids[0].tolist())} | {0: 48}  # 0: no byte
    positions = [
        torch.tensor([byte_at[value] for value in read.flatten().tolist()]) for read, _ in embedded
    ]
    owner = torch.tensor(document).repeat_interleave(8)
    for t in range(48):
        may_read = (torch.arange(48) < t) & (owner == owner[t])
        gradients = torch.autograd.grad(nats[t], [out for _, out in embedded], retain_graph=True)
        reads = torch.zeros(49, dtype=torch.bool)
        for position, gradient in zip(positions, gradients, strict=True):
            reads[position[gradient.flatten(0, -2).ne(0.0).any(dim=1)]] = True
        may_read &= torch.arange(48) >= t - _reach(model.config, t)
        assert torch.equal(reads[:48], may_read), f"byte {t}"


def _reach(config: ModelConfig, t: int) -> int:
    """Bytes before byte t that it can depend on: each layer adds one attention window."""
    if not config.attention_window:
        return t
    shape, patch = config.stages[0], config.patch
    return t % patch + patch * (shape.layers * (config.attention_window - 1) + 1)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("changed", [3, 15, 16, 27, 47])
def test_a_byte_changes_nothing_but_itself_and_what_follows_it(
    shape: str, option: str, changed: int
) -> None:
    model = tiny_model(shape, local_chunk=2, **options_of(option, shape)).double()
    ids = torch.randint(0, 256, (1, 48))
    others = ids.clone()
    others[0, changed] = (ids[0, changed] + 7) % 256
    document = torch.tensor([[0, 0, 1, 2, 2, 2]], dtype=torch.int32)
    owner = document[0].repeat_interleave(8)
    follows = (owner == owner[changed]) & (torch.arange(48) >= changed)
    follows &= torch.tensor([t - changed <= _reach(model.config, t) for t in range(48)])
    with torch.no_grad():
        differs = model(ids, document, MODALITY[:1]) != model(others, document, MODALITY[:1])
    assert torch.equal(differs[0], follows)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_document_has_the_nats_it_has_alone(shape: str, option: str) -> None:
    model = tiny_model(shape, **options_of(option, shape)).double()
    ids = opened(torch.randint(0, 264, (3, 48)), at=8)
    document = torch.tensor(
        [[0, 1, 1, 1, 2, 2], [3, 3, 4, -1, -1, -1], [5, 5, 5, 5, 5, 5]], dtype=torch.int32
    )
    with torch.no_grad():
        nats = model(ids, document, MODALITY)
        for row, first, last in [
            (0, 0, 1), (0, 1, 4), (0, 4, 6), (1, 0, 2), (1, 2, 3), (1, 3, 6), (2, 0, 6)
        ]:  # fmt: skip
            piece = slice(first * 8, last * 8)
            segment = ids[row : row + 1, piece]
            alone = model(segment, _one_document(segment), MODALITY[row : row + 1, piece])
            torch.testing.assert_close(nats[row, piece], alone[0], atol=1e-9, rtol=0.0)


def test_documents_may_be_given_for_any_block_of_patches() -> None:
    model = tiny_model("two")
    ids = torch.randint(0, 256, (2, 48))
    coarse = torch.tensor([[0, 1, 1], [2, 2, 3]], dtype=torch.int32)
    with torch.no_grad():
        expected = model(ids, coarse.repeat_interleave(4, dim=1), _modality(ids))
        assert torch.equal(model(ids, coarse, _modality(ids)), expected)


@pytest.mark.parametrize("option", ["paper", "all"])
def test_logits_are_those_of_the_nats(option: str) -> None:
    model = tiny_model("three", **options_of(option, "three"))
    ids = torch.randint(0, 264, (2, 40))
    document = torch.tensor([[0, 0, 0, 1, 1], [2, 3, 3, 3, 3]], dtype=torch.int32)
    with torch.no_grad():
        modality = MODALITY[:2, :40]
        logits = model.logits(ids, document, modality)
        chosen = logits.log_softmax(-1).gather(2, ids[..., None])
        torch.testing.assert_close(model(ids, document, modality), -chosen.squeeze(2))


def _gradients(model: Megabyte, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(1)
    document = torch.tensor([[0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 3, 3]], dtype=torch.int32)
    nats = model(ids, document, MODALITY[:2])
    gradients = torch.autograd.grad(nats.mean(), list(model.parameters()))
    return nats.detach(), list(gradients)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", ["one", "two", "three"])
def test_chunks_and_checkpoints_change_nothing(shape: str, option: str) -> None:
    ids = opened(torch.randint(0, 264, (2, 48)), at=16)
    options = options_of(option, shape)
    whole = _gradients(tiny_model(shape, **options).double(), ids)
    lean = tiny_model(shape, local_chunk=5, activation_checkpointing=True, **options).double()
    logits_held: list[int] = []
    lean.lm_head.register_forward_hook(lambda module, i, output: logits_held.append(len(output)))
    torch.testing.assert_close(_gradients(lean, ids), whole, atol=1e-12, rtol=1e-9)
    assert max(logits_held) == 5 * lean.config.patch


@pytest.mark.parametrize(
    ("where", "runs"), [(False, (1, 3)), ("global", (2, 3)), ("local", (1, 6)), (True, (2, 6))]
)
def test_checkpoints_recompute_the_stages_that_are_named(
    where: Literal[False, True, "global", "local"], runs: tuple[int, int]
) -> None:
    """A layer of stage 0 runs once, and one of the local stage in each of three chunks."""
    ids = torch.randint(0, 264, (2, 48))
    plain = _gradients(tiny_model("two").double(), ids)
    lean = tiny_model("two", local_chunk=8, activation_checkpointing=where).double()
    ran: list[int] = []
    for index, stage in enumerate(lean.stages):
        stage.blocks[0].register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    torch.testing.assert_close(_gradients(lean, ids), plain, atol=1e-12, rtol=1e-9)
    assert (ran.count(0), ran.count(1)) == runs


def test_checkpoints_repeat_the_dropout() -> None:
    ids = torch.randint(0, 264, (2, 48))
    options = {"dropout": 0.2, "local_chunk": 5}
    plain = _gradients(tiny_model("two", **options).double(), ids)
    lean = tiny_model("two", activation_checkpointing=True, **options).double()
    torch.testing.assert_close(_gradients(lean, ids), plain, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("option", ["untied", "all"])
def test_random_bytes_cannot_be_learned(option: str) -> None:
    model = tiny_model("two", context=512, **options_of(option, "two"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)

    def bits(rows: int) -> Tensor:
        ids = torch.randint(0, 256, (rows, 512), generator=generator)
        return model(ids, _one_document(ids), _modality(ids)).double().mean() / math.log(2.0)

    for _ in range(60):
        optimizer.zero_grad()
        bits(8).backward()
        optimizer.step()
    with torch.no_grad():
        assert 8.0 <= bits(64).item() < 8.1


def test_learns_what_repeats() -> None:
    model = tiny_model("two", context=64, tie_embeddings=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.randint(0, 256, (1, 64))
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(ids, _one_document(ids), _modality(ids)).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("option", ["paper", "all"])
def test_runs_in_bf16_autocast_and_scores_in_float32(option: str) -> None:
    options = OPTIONS[option]
    model = tiny_model("three", activation_checkpointing=True, local_chunk=2, **options)
    ids = torch.randint(0, 256, (2, 48))
    with torch.autocast("cpu", torch.bfloat16):
        nats = model(ids, _one_document(ids), _modality(ids))
    nats.mean().backward()
    assert nats.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        expected = model(ids, _one_document(ids), _modality(ids))
    torch.testing.assert_close(nats, expected, atol=0.15, rtol=0.0)


@pytest.mark.parametrize("option", ["paper", "all"])
def test_runs_in_bf16_weights(option: str) -> None:
    model = tiny_model("projected", **options_of(option, "projected")).bfloat16()
    ids = torch.randint(0, 256, (2, 48))
    assert model(ids, _one_document(ids), _modality(ids)).dtype == torch.float32


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_read_only_in_their_own_module(shape: str, option: str) -> None:
    """ZeRO-3 holds a parameter only while its module runs `forward`."""
    model = tiny_model(shape, **options_of(option, shape))
    ids = torch.randint(0, 256, (1, 48))
    with torch.no_grad():
        expected = model(ids, _one_document(ids), _modality(ids))
        data = {parameter: parameter.data for parameter in model.parameters()}

        def gather(module: nn.Module, inputs: object) -> None:
            for parameter in module.parameters(recurse=False):
                parameter.data = data[parameter]

        def release(module: nn.Module, inputs: object, output: object) -> None:
            for parameter in module.parameters(recurse=False):
                parameter.data = torch.empty(0)

        for module in model.modules():
            module.register_forward_pre_hook(gather)
            module.register_forward_hook(release)
            release(module, None, None)
        assert torch.equal(model(ids, _one_document(ids), _modality(ids)), expected)


def test_initialisation_is_the_papers() -> None:
    model = tiny_model("projected", context=4_096, embedding_std=0.006, init_std=0.006)
    assert model.lm_head.weight is model.stages[-1].byte_embed.weight
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert parameter.eq(1.0 if name.endswith("weight") else 0.0).all()
            continue
        assert parameter.abs().max() <= 3 * 0.006
        if parameter.numel() > 1_000:
            assert parameter.std().item() == pytest.approx(0.006, rel=0.1), name


def test_only_byte_embeddings_are_of_unit_scale_where_wanted() -> None:
    model = tiny_model("two", embedding_std=1.0, init_std=0.02, tie_embeddings=False)
    large = {name for name, parameter in model.named_parameters() if 0.5 < parameter.std() < 1.5}
    assert large == {"stages.0.byte_embed.weight", "stages.1.byte_embed.weight"}


@pytest.mark.parametrize("heads", [0, 3])
def test_near_bytes_start_alike_where_wanted(heads: int) -> None:
    stages = (StageConfig(512, 1, 8), StageConfig(512, 1, 8))
    torch.manual_seed(0)
    plain = ModelConfig(
        stages,
        (4,),
        64,
        tie_embeddings=False,
        modality_heads=heads,
        init_std=0.1,
        embedding_std=1.0,
    )
    model = Megabyte(replace(plain, smooth_bytes=True))
    head = model.lm_head.weight.detach()
    tables = [(stage.byte_embed.weight.detach(), 1.0) for stage in model.stages]
    tables += [(part, 0.1) for part in head.chunk(max(1, heads))]
    for weight, std in tables:
        byte_rows = weight[:256]
        assert byte_rows.std().item() == pytest.approx(std, rel=0.05)
        unit = F.normalize(byte_rows, dim=1)
        similarity = [(unit[:-n] * unit[n:]).sum(1).mean().item() for n in (1, 8, 128)]
        assert similarity[0] > 0.4 > similarity[1] > 0.15 > similarity[2]
        specials = F.normalize(weight[256:], dim=1)
        assert (specials @ specials.T - torch.eye(len(specials))).abs().max() < 0.3
    unit = F.normalize(Megabyte(plain).lm_head.weight.detach(), dim=1)
    assert (unit[:-1] * unit[1:]).sum(1).mean().abs() < 0.05


@pytest.mark.parametrize("option", OPTIONS)
def test_embeddings_and_outputs_are_named_for_the_optimizer(option: str) -> None:
    model = tiny_model("projected", **options_of(option, "projected"))
    for name, module in model.named_modules():
        is_table = isinstance(module, nn.Embedding | StartEmbedding) or module is model.lm_head
        assert is_table == ("embed" in name or "lm_head" in name), name


def test_heads_by_modality_want_the_modality() -> None:
    model = tiny_model("two", tie_embeddings=False, modality_heads=2)
    ids = torch.zeros(1, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match="give the modality"):
        model.logits(ids)
    with pytest.raises(ValueError, match=r"shape \[1, 4\] .* \[1, 8\]"):
        model.logits(ids, modality=torch.zeros(1, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"modality 2 .* 2 heads"):
        model.logits(ids, modality=torch.full((1, 8), 2, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.logits(torch.zeros(1, 10, dtype=torch.int64)), "multiple of 4"),
        (lambda model: model.logits(torch.zeros(1, 52, dtype=torch.int64)), "at most 48"),
        (lambda model: model.logits(torch.zeros(1, 0, dtype=torch.int64)), "a row of 0 ids"),
        (
            lambda model: model.logits(
                torch.zeros(1, 48, dtype=torch.int64), torch.zeros(1, 5, dtype=torch.int32)
            ),
            "whole patches",
        ),
        (
            lambda model: model.logits(
                torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1, 8, dtype=torch.int32)
            ),
            "whole patches",
        ),
        (
            lambda model: model.logits(
                torch.zeros(2, 48, dtype=torch.int64), torch.zeros(1, 12, dtype=torch.int32)
            ),
            "2 rows",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_named(call: Callable[[Megabyte], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(tiny_model("two"))
