"""How sampling settings change what a model draws, beside real files: JSON lines.

    python -m bytelm.tools.experiments.sampling RUN --data SET... --modality NAME [--settings JSON]
        [--prompts N] [--count N] [--new] [--judge MODEL] [--keep DIR] [--precision fp32]

The beginnings of `val` documents of one modality are continued: a text after 200 bytes for 400
more, an image from its upper half, a sound after a quarter of a second for another quarter. Each of
the N prompts, spread over `val`, is continued `--count` times for each setting of temperature,
top-k, top-p and min-p; `null` is the model's own default. With `--new` such files are drawn from
nothing. `--keep` writes what is drawn, and one sheet of the images of each setting. The defaults
take some minutes a modality on two cores; nothing is timed.

Prints a line for each setting and figure, `sampling/MODALITY/SETTING/FIGURE`, whose `reference` is
the figure of the real continuations:

    bits       bits/byte that the model itself gives the bytes behind the prompt; a setting that
               draws typical files gives as many as for real ones
    bits-*     the same of each eighth of the continuation, and of each channel of images
    judged     the same under `--judge`, a model that had no part in drawing
    codec      bits/byte of lossless WebP for images, of xz for others, each file alone
    taken      share that a classifier takes for real, by colours and edges of images, by level,
               pitch and silence of sounds (`real_or_drawn.py`); cross-validated
    taken-real the share of real files that the same classifier takes for real; trained on up to
               200 of them
    nearest    mean distance of a continued half to the nearest half of a training image of its
               size, RMS of sub-pixels, 0 to 255; a copy has about 0
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Bytes, Sample
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.load import load_model
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.generation.contact_sheet import write_sheet
from bytelm.pipelines.generation.generate import generate_samples
from bytelm.pipelines.generation.request import (
    Request,
    audio_request,
    image_request,
    text_request,
)
from bytelm.pipelines.generation.sampling_defaults import default_sampling
from bytelm.pipelines.shards.reader import ShardSet, open_set
from bytelm.tools.benchmarks.measure import Figure, print_figures
from bytelm.tools.experiments.sample_figures import Comparison, Drawn, words_of

TEXT_PROMPT, TEXT_BYTES = 200, 600
PASSAGE_BYTES = 4_096
AUDIO_PROMPT, AUDIO_SECONDS = 0.25, 0.5
REAL_FILES = 200
"""Files of `val` that the classifier is shown."""
TRAINING_IMAGES = 2_000
"""Images of `train` of which the nearest is looked for."""
SETTINGS: list[Mapping[str, float] | None] = [
    None,
    *({"temperature": t} for t in (1.0, 0.9, 0.8, 0.7, 0.5)),
    *({"top_p": p} for p in (0.98, 0.95, 0.9, 0.8)),
    *({"min_p": p} for p in (0.01, 0.02, 0.05, 0.1, 0.2)),
    *({"top_k": k} for k in (64, 16, 4)),
]
"""The model's default, and one limit at a time; the others are those of its own distribution."""


def main() -> None:
    """Draw and print."""
    options = _options()
    model, info = load_model(options.run)
    judge = load_model(options.judge)[0] if options.judge else None
    sets = [open_set(location) for location in options.data]
    real = _real_files(sets, info, options)
    requests = real.requests[: options.prompts]
    words = _training_words(sets) if options.modality == "text" else frozenset[str]()
    training = _training_images(sets, options.new) if options.modality == "image" else []
    comparison = Comparison(model, judge, real, len(requests), words, training)
    first = Drawn(requests, real.payloads[: len(requests)])
    reference = comparison.figures(first)
    repeated = list(requests) * options.count
    for setting in options.settings:
        default = default_sampling(model, info, options.modality, len(requests[0].prompt))
        sampling = default if setting is None else Sampling(**setting)
        drawn = _drawn(model, repeated, sampling, options, _name(setting))
        values = comparison.figures(drawn)
        name = f"sampling/{options.modality}/{_name(setting)}"
        print_figures(
            Figure(f"{name}/{figure}", value, "", reference[figure], {"sampling": asdict(sampling)})
            for figure, value in values.items()
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run or an exported model")
    parser.add_argument("--data", nargs="+", required=True, help="sets with a split `val`")
    parser.add_argument("--modality", required=True, choices=list(MODALITIES))
    parser.add_argument("--settings", type=json.loads, default=SETTINGS, help="list of settings")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--count", type=int, default=1, help="continuations of each prompt")
    parser.add_argument("--new", action="store_true", help="draw from nothing")
    parser.add_argument("--judge", type=Path, help="another run or model")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--keep", type=Path, help="folder in which the continuations are kept")
    return parser.parse_args()


def _drawn(
    model: Megabyte,
    requests: Sequence[Request],
    sampling: Sampling,
    options: argparse.Namespace,
    name: str,
) -> Drawn:
    """Payloads of the requests, each with the next seed; `--keep` writes them as files too."""
    seeds = range(len(requests))
    samples = dict(generate_samples(model, requests, seeds, sampling, options.precision))
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        stem = f"{options.modality}-{'new' if options.new else 'finished'}-{name}"
        paths = [
            MODALITIES[options.modality].write_file(samples[i], options.keep / f"{stem}-{i:02d}")
            for i in seeds
        ]
        if options.modality == "image":
            write_sheet(paths, options.keep / f"{stem}.png")
    return Drawn(requests, [_payload(samples[i], requests[i].view) for i in seeds])


def _name(setting: Mapping[str, float] | None) -> str:
    if setting is None:
        return "default"
    return ",".join(f"{key}={value}" for key, value in setting.items()) or "plain"


# --- real files ---


def _real_files(sets: Sequence[ShardSet], info: DatasetInfo, options: argparse.Namespace) -> Drawn:
    """Files of `val` with the requests that continue them, those of the prompts first."""
    view = info.views[options.modality]
    requests: list[Request] = []
    payloads: list[Bytes] = []
    for sample in _samples(sets, options.modality, "val"):
        request = _continuation(sample, view, options.new)
        if request is not None:
            requests.append(request)
            payloads.append(_payload(sample, view)[: request.size])
    if not requests:
        raise SystemExit(f"no {options.modality} of `val` is long enough")
    spread = np.linspace(0, len(requests), min(options.prompts, len(requests)), endpoint=False)
    chosen = spread.astype(int).tolist()
    others = [i for i in range(len(requests)) if i not in set(chosen)]
    order = [*chosen, *others][: max(REAL_FILES, len(chosen))]
    return Drawn([requests[i] for i in order], [payloads[i] for i in order])


def _samples(sets: Sequence[ShardSet], modality: str, split: str) -> Iterator[Sample]:
    code = MODALITIES[modality].code
    for shard_set in sets:
        for shard in shard_set.split(split):
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


def _continuation(sample: Sample, view: str, is_new: bool) -> Request | None:
    """A request that continues the beginning of a real file; None if the file is too short."""
    header = sample.header
    if sample.modality == "text":
        if len(sample.data) < TEXT_BYTES:
            return None
        prompt = "" if is_new else sample.data[:TEXT_PROMPT].decode("utf-8", "ignore")
        return text_request(prompt, TEXT_BYTES, view)
    if sample.modality == "image":
        if header.height < 6 or header.width < 3:  # too small for its edges to be counted
            return None
        if is_new:
            return image_request(header, view)
        return image_request(header, view, sample, header.height // 2)
    if len(sample.data) < 2 * header.channels * header.rate * AUDIO_SECONDS:
        return None
    if is_new:
        return audio_request(header, view, AUDIO_SECONDS)
    return audio_request(header, view, AUDIO_SECONDS, sample, AUDIO_PROMPT)


def _payload(sample: Sample, view: str) -> Bytes:
    return MODALITIES[sample.modality].to_view(sample, view, patch=1)


def _training_words(sets: Sequence[ShardSet]) -> frozenset[str]:
    words: set[str] = set()
    for sample in _samples(sets, "text", "train"):
        words.update(words_of(sample.data))
    return frozenset(words)


def _training_images(sets: Sequence[ShardSet], is_new: bool) -> list[np.ndarray]:
    """The first TRAINING_IMAGES training images [h, w, c], or their lower halves."""
    images = []
    for sample, _ in zip(_samples(sets, "image", "train"), range(TRAINING_IMAGES), strict=False):
        header = sample.header
        shape = header.height, header.width, header.channels
        pixels = np.frombuffer(sample.data, np.uint8).reshape(shape)
        images.append(pixels if is_new else pixels[header.height // 2 :])
    return images


if __name__ == "__main__":
    main()
