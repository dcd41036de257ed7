"""Generation: a header, a prompt, then payload bytes one by one, until a valid file is complete.

B payloads drawn at once    V ids
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Header, Sample
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.decoding.row_drawer import row_drawer
from bytelm.model.decoding.row_sampler import GuideTables, RowSampler
from bytelm.model.decoding.sampling import Noise, Sampling, sample
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.generation.batching import batch_by_memory
from bytelm.pipelines.generation.payload_rows import PayloadRows, can_share_rows
from bytelm.pipelines.generation.request import Request
from bytelm.pipelines.generation.written_files import WrittenFiles
from bytelm.pipelines.runtime.compute_threads import single_threaded
from bytelm.pipelines.runtime.device import autocast
from bytelm.pipelines.runtime.progress import Progress, stderr_console
from bytelm.pipelines.runtime.ranks import Ranks

HEADER_SEED = 1 << 40
"""Added to a file's seed for the bytes of its header, so that the noise of the payload does not
depend on whether a header was drawn."""

ONE_RANK = Ranks()

ShowBytes = Callable[[bytes], object]
Advance = Callable[[int], object]
"""Called with the number of payload bytes that were just drawn. An error that it raises ends the
drawing."""
Watch = Callable[[Callable[[], list[bytes]]], object]
"""Called with a function that returns the payloads that are drawn together, as far as they are."""


def generate_files(
    model: Megabyte,
    requests: Sequence[Request],
    seeds: Sequence[int],
    sampling: Sampling,
    precision: str,
    out: Path,
    suffix: str | None = None,
    show: ShowBytes | None = None,
    batch: int | None = None,
    ranks: Ranks = ONE_RANK,
    identity: str = "",
) -> list[Path]:
    """Write one file for each request and its seed into a folder, numbered from 0.

    Every rank has to call it, and returns the paths of all files. Each file is written whole by one
    rank. Where a call with the same `identity` did not come to its end, what it wrote is kept.

    Args:
        suffix: suffix of the files, one that the modality can write; None takes its first one.
        show, batch: see `generate_payloads`.
        ranks: draw a share each, in the same batches on a GPU if `batch` is given.
        identity: of the model and all else that decides the files' bytes; empty keeps nothing.
    Raises:
        ValueError: for samples that files of that suffix cannot hold.
    """
    out.mkdir(parents=True, exist_ok=True)
    ranks.require_shared(out)
    written = WrittenFiles(out, identity)
    paths = ranks.gather(written.begin() if ranks.rank == 0 else {})[0]
    if paths and ranks.rank == 0:
        stderr_console().print(
            f"{len(paths):,} of {len(requests):,} files are kept of a call that did not end",
            highlight=False,
        )
    missing = [number for number in range(len(requests)) if number not in paths]
    batches = _shared_batches(model, requests, missing, precision, batch, ranks)
    steps = sum(max(requests[i].room for i in numbers) for numbers in batches)
    own = list(ranks.share(batches))

    def draw() -> dict[int, Path]:
        total = sum(requests[number].room for numbers in own for number in numbers)
        console = stderr_console() if ranks.rank == 0 and show is None else None
        with Progress(console, total) as progress:
            payloads = _draw_batches(
                model, requests, seeds, sampling, precision, own, steps, show, progress.add
            )
            samples = _samples_of(model, requests, payloads)
            return {n: written.write(n, s, suffix) for n, s in samples if n not in paths}

    drawn = ranks.gather(ranks.together(draw))
    if ranks.rank == 0:
        written.end()
    paths.update(pair for part in drawn for pair in part.items())
    return [path for _, path in sorted(paths.items())]


def generate_samples(
    model: Megabyte,
    requests: Sequence[Request],
    seeds: Sequence[int],
    sampling: Sampling,
    precision: str,
    show: ShowBytes | None = None,
    advance: Advance = lambda drawn: None,
    batch: int | None = None,
) -> Iterator[tuple[int, Sample]]:
    """Generate one sample for each request and its seed.

    Requests that differ in no more than header, length and the prompt's bytes are drawn together,
    those of about the same length first. Yields the number of the request and its sample, in the
    order in which they are drawn.

    Args:
        show, advance, batch: see `generate_payloads`.
    """
    batches = _batches(model, requests, precision, batch)
    steps = sum(max(requests[i].room for i in numbers) for numbers in batches)
    payloads = _draw_batches(
        model, requests, seeds, sampling, precision, batches, steps, show, advance
    )
    yield from _samples_of(model, requests, payloads)


def _samples_of(
    model: Megabyte, requests: Sequence[Request], payloads: Iterable[tuple[int, bytes]]
) -> Iterator[tuple[int, Sample]]:
    """The samples of payloads, which come with the numbers of their requests; so do the samples."""
    for number, payload in payloads:
        request, values = requests[number], np.frombuffer(payload, np.uint8)
        modality = MODALITIES[request.modality]
        yield (
            number,
            modality.from_view(request.header, values, request.view, model.config.patch),
        )


def _draw_batches(
    model: Megabyte,
    requests: Sequence[Request],
    seeds: Sequence[int],
    sampling: Sampling,
    precision: str,
    batches: Sequence[Sequence[int]],
    steps: int,
    show: ShowBytes | None,
    advance: Advance,
) -> Iterator[tuple[int, bytes]]:
    """The payloads of some batches, each with the number of its request."""
    for numbers in batches:
        payloads = _draw_payloads(
            model,
            [requests[number] for number in numbers],
            [seeds[number] for number in numbers],
            sampling,
            precision,
            steps,
            show if numbers[0] == 0 else None,
            advance,
        )
        yield from zip(numbers, payloads, strict=True)


def generate_payloads(
    model: Megabyte,
    request: Request,
    seeds: Sequence[int],
    sampling: Sampling,
    precision: str,
    show: ShowBytes | None = None,
    advance: Advance = lambda drawn: None,
    watch: Watch = lambda payloads: None,
    batch: int | None = None,
) -> list[bytes]:
    """Draw a payload for each seed.

    A payload depends on its own seed and not on the other seeds, in fp32 on a CPU. In bf16 and on
    a GPU, the number of payloads drawn at once may change the last bits of the logits, and so a
    byte. A payload longer than the model's context is drawn in pieces, as in training: each opens
    with the preamble at its own offset.

    Args:
        show: called with the prompt and then with further bytes of the first payload.
        advance: called with the number of bytes that were just drawn; on a GPU, after some steps.
        watch: called then, too.
        batch: the most payloads that are drawn at once; None chooses by the memory that is free.
    Returns:
        the payloads, prompts included.
    """
    payloads: list[bytes] = []
    requests = [request] * len(seeds)
    batches = _batches(model, requests, precision, batch)
    for numbers in batches:
        batch_seeds = [seeds[number] for number in numbers]
        batch_show = None if payloads else show
        payloads += _draw_payloads(
            model,
            requests[: len(numbers)],
            batch_seeds,
            sampling,
            precision,
            len(batches) * request.room,
            batch_show,
            advance,
            watch,
        )
    return payloads


def draw_payloads(
    model: Megabyte,
    requests: Sequence[Request],
    seeds: Sequence[int],
    sampling: Sampling,
    precision: str,
    batch: int | None = None,
) -> list[bytes]:
    """Draw a payload for each request and its seed, prompts included; see `generate_payloads`.

    A request's size may be less than its header asks for: the payload is then the beginning of one.
    """
    batches = _batches(model, requests, precision, batch)
    steps = sum(max(requests[i].room for i in numbers) for numbers in batches)
    payloads = dict(
        _draw_batches(
            model, requests, seeds, sampling, precision, batches, steps, None, lambda drawn: None
        )
    )
    return [payloads[number] for number in range(len(requests))]


def _shared_batches(
    model: Megabyte,
    requests: Sequence[Request],
    missing: Sequence[int],
    precision: str,
    batch: int | None,
    ranks: Ranks,
) -> list[list[int]]:
    """The numbers of the requests that are drawn together, the same lists on every rank.

    Where a row's bytes are its own, each rank has about as many of the missing ones. Elsewhere they
    can depend on their batch, so that a `batch` that the user gives is kept as it is, with those of
    its files that are there already.
    """
    rows = ranks.gather(batch or _rows_by_memory(model, requests, precision))[0]
    is_alone = model.lm_head.weight.device.type == "cpu" and precision == "fp32"
    chosen = missing if is_alone else range(len(requests))
    if is_alone or batch is None:
        rows = min(rows, max(1, math.ceil(len(chosen) / ranks.count)))
    batches = _batches(model, [requests[number] for number in chosen], precision, rows)
    wanted = set(missing)
    numbered = ([chosen[i] for i in numbers] for numbers in batches)
    return [numbers for numbers in numbered if wanted.intersection(numbers)]


def _batches(
    model: Megabyte, requests: Sequence[Request], precision: str, batch: int | None
) -> list[list[int]]:
    """The numbers of the requests that are drawn together, a list for each batch."""
    groups: list[list[int]] = []
    for number, request in enumerate(requests):
        for group in groups:
            if can_share_rows(requests[group[0]], request):
                group.append(number)
                break
        else:
            groups.append([number])
    rows = batch or _rows_by_memory(model, requests, precision)
    for group in groups:
        group.sort(key=lambda number: requests[number].size)
    return [group[at : at + rows] for group in groups for at in range(0, len(group), rows)]


def _rows_by_memory(model: Megabyte, requests: Sequence[Request], precision: str) -> int:
    """Rows of requests that fit into the free memory."""
    longest_prompt = max((len(request.prompt) for request in requests), default=0)
    return batch_by_memory(model, model.config.context, precision, longest_prompt)


@torch.no_grad()
def draw_headers(
    model: Megabyte,
    modality: str,
    view: str,
    choices: Sequence[Header],
    seeds: Sequence[int],
    sampling: Sampling,
    batch: int | None = None,
) -> list[Header]:
    """Draw one of `choices` for each seed, byte by byte, as the model would begin a document.

    Args:
        batch: see `generate_payloads`.
    """
    headers: list[Header] = []
    rows = batch or batch_by_memory(model, model.config.context, "fp32", longest_prompt=0)
    for first in range(0, len(seeds), rows):
        batch_seeds = seeds[first : first + rows]
        headers += _draw_headers(model, modality, view, choices, batch_seeds, sampling)
    return headers


@torch.no_grad()
def _draw_payloads(
    model: Megabyte,
    requests: Sequence[Request],
    seeds: Sequence[int],
    sampling: Sampling,
    precision: str,
    steps: int,
    show: ShowBytes | None,
    advance: Advance,
    watch: Watch = lambda payloads: None,
) -> list[bytes]:
    """Draw the payloads of requests that can share their steps, of `steps` with other batches."""
    device = model.lm_head.weight.device
    rows, request = PayloadRows(requests), requests[0]
    sampler = RowSampler(sampling, seeds, _guide_tables(request), rows.room, device)
    if show:
        show(request.prompt)
    pieces = rows.pieces(model.config.context, model.config.patch)
    # All pieces but the first and the last have the same length.
    first_pieces = list(islice(pieces, 2))
    longest = max(piece.openings.shape[1] + piece.stop - piece.start for piece in first_pieces)
    with autocast(device, precision):
        drawer = row_drawer(model, len(requests), longest, sampler, steps)
        for piece in chain(first_pieces, pieces):
            if not rows.grows(piece.stop):
                break
            prompts = torch.from_numpy(rows.prompts(piece)).to(device)
            with _prompt_threads(device):
                drawer.begin(prompts, MODALITIES[request.modality].code)
            while rows.grows(piece.stop):
                count = min(drawer.ids_at_once, piece.stop - rows.position)
                drawn, of_first = rows.append(drawer.draw(count))
                advance(drawn)
                watch(rows.payloads)
                if show and of_first:
                    show(of_first)
    return rows.payloads()


def _prompt_threads(device: torch.device) -> AbstractContextManager[object]:
    """Let prompts be computed by one thread on a CPU, where more would group sums otherwise.

    The steps behind a prompt give the same bits with any number of threads.
    """
    return single_threaded() if device.type == "cpu" else nullcontext()


def _guide_tables(request: Request) -> GuideTables:
    """The request's guide, in the state behind its prompt."""
    guide = request.guide
    tables = torch.from_numpy(guide.allowed), torch.from_numpy(guide.next)
    return GuideTables(*tables, guide.follow(request.prompt))


def _draw_headers(
    model: Megabyte,
    modality_name: str,
    view: str,
    choices: Sequence[Header],
    seeds: Sequence[int],
    sampling: Sampling,
) -> list[Header]:
    modality, device = MODALITIES[modality_name], model.lm_head.weight.device
    packed = np.array([list(modality.pack_header(header, view, 0)) for header in choices])
    decoder = Decoder(model, len(seeds), 1 + modality.header_size)
    codes = torch.full((len(seeds),), modality.code, device=device)
    ids = torch.full((len(seeds),), modality.som, device=device)  # [B]
    empty_prompt = torch.zeros(0, dtype=torch.int64, device=device)
    with _prompt_threads(device):
        decoder.prefill([empty_prompt] * len(seeds), torch.zeros_like(codes))
    noise = Noise([seed + HEADER_SEED for seed in seeds], device)
    # [B, choices], whether a choice begins with the bytes that were drawn.
    is_possible = np.ones((len(seeds), len(choices)), np.bool_)
    for position in range(modality.header_size):
        logits = decoder.step(ids, codes)
        allowed = np.zeros((len(seeds), framing.VOCAB_SIZE), np.bool_)  # [B, V]
        for row, possible in zip(allowed, is_possible, strict=True):
            row[packed[possible, position]] = True
        ids = sample(logits, sampling, noise.draw(), torch.from_numpy(allowed).to(device))
        is_possible &= packed[:, position] == ids.cpu().numpy()[:, None]
    return [choices[int(possible.argmax())] for possible in is_possible]
