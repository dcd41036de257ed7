"""How sampling settings change what a model draws, beside real files: JSON lines.

    python -m bytelm.tools.experiments.sampling RUN --data SET... --modality NAME [--settings JSON]
        [--prompts N] [--count N] [--precision fp32]

The beginnings of `val` documents of one modality are continued: a text after 200 bytes for 400
more, an image from its upper half, a sound after a quarter of a second for another quarter. Each of
the N prompts is continued `--count` times for each setting of temperature, top-k, top-p and min-p.
The defaults take some minutes a modality on two cores; nothing is timed.

Prints a line for each setting and figure, `sampling/MODALITY/SETTING/FIGURE`, whose `reference` is
the figure of the real continuations:

    bits       bits/byte that the model itself gives the bytes behind the prompt; a setting that
               draws typical files gives as many as for real ones
    histogram  total variation distance, 0 to 1, of the byte histogram to that of the real
               continuations (of the red, green and blue values of an image together)
    colours    distinct colours of a continued half image
    roughness  mean absolute difference of a sub-pixel to the one on its left, 0 to 255
    fourgrams  distinct 4-grams of bytes / 4-grams, low where a text repeats itself
    words      fraction of words that occur in the set's training texts
    loudness   RMS of the samples, in dB of full scale
    spectrum   mean absolute difference to the real continuations in mean log-mel level, dB
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Bytes, Sample
from bytelm.modalities.framing import Segment
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.load import load_model
from bytelm.pipelines.evaluation.scoring import nats_of_model
from bytelm.pipelines.evaluation.windows import Document, score_document
from bytelm.pipelines.generation.generate import generate_samples
from bytelm.pipelines.generation.request import (
    Request,
    audio_request,
    image_request,
    text_request,
)
from bytelm.pipelines.shards.reader import ShardSet, open_set
from bytelm.tools.benchmarks.measure import Figure, print_figures

TEXT_PROMPT, TEXT_BYTES = 200, 600
PASSAGE_BYTES = 4_096
AUDIO_PROMPT, AUDIO_SECONDS = 0.25, 0.5
MEL_BANDS = 40
SETTINGS = [
    *({"temperature": t} for t in (1.0, 0.9, 0.8, 0.7, 0.5)),
    *({"top_p": p} for p in (0.98, 0.95, 0.9, 0.8)),
    *({"min_p": p} for p in (0.02, 0.05, 0.1, 0.2)),
    *({"top_k": k} for k in (64, 16, 4)),
]
"""One limit at a time; the others are those of the model's own distribution."""


def main() -> None:
    """Draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run or an exported model")
    parser.add_argument("--data", nargs="+", required=True, help="sets with a split `val`")
    parser.add_argument("--modality", required=True, choices=list(MODALITIES))
    parser.add_argument("--settings", type=json.loads, default=SETTINGS, help="list of settings")
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--count", type=int, default=4, help="continuations of each prompt")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--keep", type=Path, help="folder in which the continuations are kept")
    options = parser.parse_args()
    model, dataset_info = load_model(options.run)
    sets = [open_set(location) for location in options.data]
    view = dataset_info.views[options.modality]
    requests: list[Request] = []
    real: list[Bytes] = []
    for sample in _val_samples(sets, options.modality):
        request = _continuation(sample, view)
        if request is not None and len(requests) < options.prompts:
            requests.append(request)
            real.append(_payload(sample, view)[: request.size])
    real_rests = _rests(requests, real)
    words = _training_words(sets) if options.modality == "text" else frozenset()
    reference = _figures(model, requests, real, real_rests, words)
    repeated = [request for request in requests for _ in range(options.count)]
    for setting in options.settings:
        sampling = Sampling(**setting)
        stem = f"{options.modality}-{_name(setting)}"
        payloads = _drawn(model, repeated, view, sampling, options, stem)
        values = _figures(model, repeated, payloads, real_rests, words)
        name = f"sampling/{options.modality}/{_name(setting)}"
        print_figures(
            Figure(f"{name}/{figure}", value, "", reference[figure], {"sampling": asdict(sampling)})
            for figure, value in values.items()
        )


def _drawn(
    model: Megabyte,
    requests: Sequence[Request],
    view: str,
    sampling: Sampling,
    options: argparse.Namespace,
    stem: str,
) -> list[Bytes]:
    """Payloads of the requests, `--count` seeds of each; `--keep` writes them as files too."""
    seeds = [i % options.count for i in range(len(requests))]
    drawn = {}
    for i, sample in generate_samples(model, requests, seeds, sampling, options.precision):
        drawn[i] = _payload(sample, view)
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            path = options.keep / f"{stem}-{i:02d}"
            MODALITIES[sample.modality].write_file(sample, path)
    return [drawn[i] for i in range(len(requests))]


def _name(setting: Mapping[str, float]) -> str:
    return ",".join(f"{key}={value}" for key, value in setting.items()) or "plain"


# --- real files ---


def _val_samples(sets: Sequence[ShardSet], modality: str) -> Iterator[Sample]:
    code = MODALITIES[modality].code
    for shard_set in sets:
        for shard in shard_set.split("val"):
            for row in shard_set.index(shard):
                if row["modality"] == code:
                    yield from _passages(shard_set.sample(shard, row))


def _passages(sample: Sample) -> Iterator[Sample]:
    """The sample; of a text, the parts of PASSAGE_BYTES, since `val` may be one book."""
    if sample.modality != "text":
        yield sample
        return
    for start in range(0, len(sample.data), PASSAGE_BYTES):
        yield replace(sample, data=sample.data[start : start + PASSAGE_BYTES])


def _continuation(sample: Sample, view: str) -> Request | None:
    """A request that continues the beginning of a real file; None if the file is too short."""
    header = sample.header
    if sample.modality == "text":
        if len(sample.data) < TEXT_BYTES:
            return None
        prompt = sample.data[:TEXT_PROMPT].decode("utf-8", "ignore")
        return text_request(prompt, TEXT_BYTES, view)
    if sample.modality == "image":
        return (
            image_request(header, view, sample, header.height // 2) if header.height > 1 else None
        )
    if len(sample.data) < 2 * header.channels * header.rate * AUDIO_SECONDS:
        return None
    return audio_request(header, view, AUDIO_SECONDS, sample, AUDIO_PROMPT)


def _payload(sample: Sample, view: str) -> Bytes:
    return MODALITIES[sample.modality].to_view(sample, view, patch=1)


def _training_words(sets: Sequence[ShardSet]) -> frozenset[str]:
    words: set[str] = set()
    for shard_set in sets:
        for shard in shard_set.split("train"):
            for row in shard_set.index(shard):
                if row["modality"] == MODALITIES["text"].code:
                    words.update(_words(shard_set.read(shard, row)))
    return frozenset(words)


def _words(text: bytes) -> list[str]:
    return re.findall(r"\w+", text.decode("utf-8", "replace").lower())


# --- figures ---


def _figures(
    model: Megabyte,
    requests: Sequence[Request],
    payloads: Sequence[Bytes],
    real_rests: Sequence[Bytes],
    words: frozenset[str],
) -> dict[str, float]:
    """The figures of payloads, beside the continuations of real files."""
    rests = _rests(requests, payloads)
    bits = sum(_bits(model, r, p) for r, p in zip(requests, payloads, strict=True))
    figures = {"bits": bits / max(1, sum(map(len, rests)))}
    figures["histogram"] = float(np.abs(_histogram(rests) - _histogram(real_rests)).sum() / 2)
    modality, header = requests[0].modality, requests[0].header
    if modality == "text":
        figures["fourgrams"] = float(np.mean([_distinct_fourgrams(rest) for rest in rests]))
        # The prompt's end and the last word may be cut.
        drawn = [word for rest in rests for word in _words(rest.tobytes())[1:-1]]
        figures["words"] = sum(word in words for word in drawn) / max(1, len(drawn))
    elif modality == "image":
        pixels = [
            rest.reshape(-1, r.header.channels) for rest, r in zip(rests, requests, strict=True)
        ]
        figures["colours"] = float(np.mean([len(np.unique(p, axis=0)) for p in pixels]))
        steps = [
            np.abs(np.diff(p.reshape(-1, r.header.width, r.header.channels).astype(int), axis=1))
            for p, r in zip(pixels, requests, strict=True)
        ]
        figures["roughness"] = float(np.mean([step.mean() for step in steps]))
    else:
        waves, real_waves = [list(map(_wave, group)) for group in (rests, real_rests)]
        power = float(np.mean([np.mean(wave**2) for wave in waves]))
        figures["loudness"] = 10 * math.log10(max(power, 1e-10))
        levels = [np.mean([_mel(w, header.rate) for w in g], axis=0) for g in (waves, real_waves)]
        figures["spectrum"] = float(np.abs(levels[0] - levels[1]).mean())
    return figures


def _rests(requests: Sequence[Request], payloads: Sequence[Bytes]) -> list[Bytes]:
    """The payloads without the prompts of their requests."""
    return [p[len(r.prompt) :] for p, r in zip(payloads, requests, strict=True)]


def _bits(model: Megabyte, request: Request, payload: Bytes) -> float:
    """Bits that the model gives the bytes behind the prompt."""
    modality = MODALITIES[request.modality]
    segment = Segment(modality, request.header, request.view, payload.size)
    nats_of = nats_of_model(model, "fp32")
    document = Document([segment], [payload])
    scored = score_document(document, nats_of, model.config.context, model.config.patch)
    nats = scored.nats[scored.framed.payload][len(request.prompt) :]
    return float(nats.sum()) / math.log(2)


def _histogram(payloads: Sequence[Bytes]) -> np.ndarray:
    counts = sum(np.bincount(p, minlength=256) for p in payloads)
    return np.asarray(counts / max(1, np.sum(counts)))


def _distinct_fourgrams(payload: Bytes) -> float:
    grams = {payload[i : i + 4].tobytes() for i in range(payload.size - 3)}
    return len(grams) / max(1, payload.size - 3)


def _wave(payload: Bytes) -> np.ndarray:
    """Samples of the view s16be, in [-1, 1)."""
    return np.asarray(payload[: payload.size // 2 * 2].view(">i2") / 32_768)


def _mel(wave: np.ndarray, rate: int) -> np.ndarray:
    """[MEL_BANDS] mean level of each band over time, in dB."""
    from torchaudio.functional import melscale_fbanks

    size = 512
    spectrum = torch.stft(
        torch.from_numpy(wave).float(), size, window=torch.hann_window(size), return_complex=True
    )
    bands = melscale_fbanks(size // 2 + 1, 0.0, rate / 2, MEL_BANDS, rate)
    power = spectrum.abs().square().T @ bands  # [frames, MEL_BANDS]
    return np.asarray(10 * power.clamp(min=1e-8).log10().mean(dim=0))


if __name__ == "__main__":
    main()
