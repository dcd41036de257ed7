"""Steps of fixed shapes: their logits, what a replay of them gives, and that nobody waits."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from helpers.host_reads import NoHostReads
from helpers.tapes import TapedSteps
from helpers.tiny_models import OPTIONS, SHAPES, opened, options_of, tiny_config, tiny_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bytelm.model.codec_features.layout import FEATURES
from bytelm.model.codec_features.state import BYTES, PIXELS, SAMPLES
from bytelm.model.decoding import static_decoder
from bytelm.model.decoding.row_drawer import StaticRows, SteppedRows
from bytelm.model.decoding.row_sampler import GuideTables, RowSampler
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.decoding.static_decoder import StaticDecoder
from bytelm.model.decoding.static_prefill import run_prompts
from bytelm.model.decoding.step_graphs import StepGraphs
from bytelm.model.megabyte import Megabyte

CPU = torch.device("cpu")
ALL_SHAPES_OF = ("modern", "all", "attention_window")
"""Options that are tried with every shape; the others with two."""
CASES = [
    (shape, option)
    for option in OPTIONS
    for shape in (SHAPES if option in ALL_SHAPES_OF else ("two", "three"))
]


def sampler_of(rows: int, device: torch.device = CPU, **sampling: Any) -> RowSampler:
    guide, room = GuideTables.of_bytes(264), [99] * rows
    return RowSampler(Sampling(**sampling), range(rows), guide, room, device)


def prompts_of(rows: int, held: int) -> Tensor:
    """Prompts inside of the payload of an image in lines of nine bytes."""
    prompts = opened(torch.randint(0, 256, (1, held))).repeat(rows, 1)
    prompts[:, 11:16] = 256
    prompts[:, 16:] = torch.randint(0, 256, (rows, held - 16))
    return prompts


def drawn(model: Megabyte, prompts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """All ids of the rows, and the logits of those that were drawn."""
    decoder = StaticDecoder(model, len(prompts), prompts.shape[1] + count, sampler_of(len(prompts)))
    decoder.begin(prompts, 1)
    logits = []
    for _ in range(count):
        logits.append(decoder.logits.clone())
        decoder.draw(1)
    return decoder.last_ids(prompts.shape[1] + count), torch.stack(logits, dim=1)


@pytest.mark.parametrize(("shape", "option"), CASES)
def test_logits_are_the_uncached(shape: str, option: str) -> None:
    options = options_of(option, shape)
    model = tiny_model(shape, context=56, init_std=0.05, embedding_std=0.5, **options).eval()
    for held in (16, 27):
        ids, logits = drawn(model, prompts_of(3, held), 56 - held)
        with torch.no_grad():
            expected = model.logits(ids, modality=torch.ones_like(ids, dtype=torch.uint8))
        torch.testing.assert_close(logits, expected[:, held:], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("option", ["modern", "all"])
def test_decodes_under_autocast(option: str) -> None:
    model = tiny_model("two", **options_of(option, "two")).eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ids, logits = drawn(model, prompts_of(2, 21), 27)
        expected = model.logits(ids, modality=torch.ones_like(ids, dtype=torch.uint8))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected[:, 21:].float(), atol=0.05, rtol=0.0)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def replayed_and_stepped(
    model: Megabyte, prompts: Sequence[Tensor], count: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Any], list[Any]]:
    """The same rows drawn by replays of recorded steps, and by a `Decoder`."""
    monkeypatch.setattr(static_decoder, "StepGraphs", TapedSteps)
    rows, length = len(prompts[0]), prompts[0].shape[1] + count
    results = []
    for drawer in (StaticRows, SteppedRows):
        sampler = sampler_of(rows, temperature=0.9, top_k=200, min_p=0.001)
        rows_drawn = drawer(model, rows, length, sampler)
        ids = []
        for prompt in prompts:
            rows_drawn.begin(prompt, 1)
            ids += [rows_drawn.draw(n).ids for n in (1, 5, count - 6)]
        results.append(ids)
    return results[0], results[1]


@pytest.mark.parametrize(
    ("shape", "option", "rows"),
    [("two", "modern", 1), ("two", "modern", 64), ("three", "all", 3), ("one", "rope", 64)],
)
def test_replays_draw_what_a_decoder_draws(
    shape: str, option: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after another prompt: every tensor of a recorded step is still in its place."""
    options = options_of(option, shape)
    model = tiny_model(shape, context=88, init_std=0.3, **options).eval()
    prompts = [prompts_of(rows, 17), prompts_of(rows, 17)]
    replayed, stepped = replayed_and_stepped(model, prompts, 40, monkeypatch)
    for ours, theirs in zip(replayed, stepped, strict=True):
        assert (ours == theirs).all()


@pytest.mark.parametrize("opener", [260, 261, 259])
@pytest.mark.parametrize("option", ["codec_features", "all"])
def test_a_step_waits_for_nothing(option: str, opener: int) -> None:
    model = tiny_model("three", context=88, **options_of(option, "three")).eval()
    prompts = prompts_of(2, 20)
    prompts[:, 0] = opener
    if opener == 261:
        prompts[:, 5:7] = 1  # a channel of big-endian samples
    sampler = sampler_of(2, temperature=0.9, top_k=9, top_p=0.9, min_p=0.01)
    decoder = StaticDecoder(model, 2, 88, sampler)
    decoder.begin(prompts, 1)
    with NoHostReads():
        decoder.draw(68)
    assert decoder.last_ids(68).unique().numel() > 3


def test_compiled_steps_give_the_same_logits_for_any_number_of_rows() -> None:
    """Traced as for a GPU, but run by PyTorch's own operations."""
    model = tiny_model("two", context=56, init_std=0.05, **options_of("modern", "two")).eval()
    for rows in (2, 5):
        prompts = prompts_of(rows, 17)
        logits = []
        for is_compiled in (False, True):
            decoder = StaticDecoder(model, rows, 56, sampler_of(rows))
            if is_compiled:
                decoder.compile("aot_eager")
            decoder.begin(prompts, 1)
            decoder.draw(39)
            logits.append(decoder.logits)
        torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "option"), [("three", "all"), ("two", "modern"), ("one", "rope")]
)
def test_a_step_on_a_gpu_waits_for_nothing(
    shape: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tensors without values, of which those on the host and those on the GPU cannot mix."""
    monkeypatch.setattr(static_decoder, "StepGraphs", PlainSteps)
    options = options_of(option, shape)
    with torch.device("meta"):
        model = Megabyte(tiny_config(shape, context=88, **options)).bfloat16().eval()
    with FakeTensorMode():
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                on_gpu = torch.empty(weight.shape, dtype=weight.dtype, device="cuda")
                setattr(module, name, nn.Parameter(on_gpu))
        model.tie_output()
        sampler = sampler_of(3, torch.device("cuda"), temperature=0.9, top_k=9, top_p=0.9)
        monkeypatch.setattr(sampler, "supply_noise", lambda: None)  # it makes values on the host
        decoder = StaticDecoder(model, 3, 88, sampler)
        features = torch.zeros(3, 96, FEATURES, dtype=torch.int16, device="cuda")
        decoder._outputs = run_prompts(model, decoder._ids, 17, features, decoder._caches)
        decoder._held = 17
        if decoder._features is not None:  # rows of all kinds of payloads
            decoder._features._kinds = frozenset({BYTES, PIXELS, SAMPLES})
            decoder._features._samples._layouts = frozenset({(2, 0)})
            decoder._features._held = 24  # a block of linear prediction begins at 32
        with NoHostReads():
            decoder.draw(17)
        assert decoder.last_ids(17).device.type == "cuda"


class PlainSteps(StepGraphs):
    """Steps that are called, on any device."""

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        step()


def test_a_step_runs_then_is_captured_then_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for CUDA: a capture runs nothing, and graphs share one pool."""
    events: list[str] = []

    class Graph:
        def pool(self) -> str:
            return "pool"

        def replay(self) -> None:
            events.append("replay")

    @contextmanager
    def capture(graph: Graph, pool: str | None, capture_error_mode: str) -> Iterator[None]:
        events.append(f"capture in {pool}")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    graphs = StepGraphs(torch.device("cuda"))
    for key in (1, 1, 1, 2, 2, 1):
        graphs.run(key, lambda: events.append("run"))
    assert events == [
        *("run", "capture in None", "run", "replay", "replay"),
        *("run", "capture in pool", "run", "replay", "replay"),
    ]


def test_mistakes_are_named() -> None:
    decoder = StaticDecoder(tiny_model("two"), 2, 24, sampler_of(2))
    with pytest.raises(ValueError, match="call begin"):
        decoder.draw(1)
    with pytest.raises(ValueError, match="3 prompts for 2 rows"):
        decoder.begin(torch.zeros(3, 8, dtype=torch.int64), 0)
    with pytest.raises(ValueError, match="at least one patch of 4 ids"):
        decoder.begin(torch.zeros(2, 3, dtype=torch.int64), 0)
    decoder.begin(torch.zeros(2, 8, dtype=torch.int64), 0)
    decoder.draw(16)
    with pytest.raises(ValueError, match="holds the decoder's 24 ids"):
        decoder.draw(1)
    with_features = StaticDecoder(tiny_model("two", codec_features=True), 2, 24, sampler_of(2))
    with pytest.raises(ValueError, match="whole preamble"):
        with_features.begin(torch.zeros(2, 8, dtype=torch.int64), 0)
