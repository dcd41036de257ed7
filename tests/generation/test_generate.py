"""Generation: from an untrained model every file is valid, prompts are kept, seeds repeat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from helpers.commands import TINY_MODEL, bytelm, status
from helpers.sets import SetMaker, audio, image, text
from helpers.tiny_models import OPTIONS

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Header, Sample
from bytelm.model.config import ModelConfig
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.generation.generate import draw_headers, generate_files, generate_payloads
from bytelm.pipelines.generation.request import (
    Request,
    audio_request,
    condition_from_text,
    image_request,
    text_request,
)

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}
DATASET_INFO = DatasetInfo(
    VIEWS,
    {
        "image": [Header(8, 8, 3), Header(300, 2, 1), Header(9, 5, 3)],
        "audio": [Header(channels=1, rate=16000), Header(channels=2, rate=8000)],
    },
    frozenset({("text", "image"), ("image", "text")}),
    frozenset(VIEWS),
)
GREEDY = Sampling(temperature=0.0)
MODERN = {
    "tie_embeddings": False,
    "rope": True,
    "qk_norm": True,
    "cross_patch_attention": 8,
    "ngram_table_size": 500,
}


def tiny(**options: object) -> Megabyte:
    torch.manual_seed(2)
    shape = {**TINY_MODEL, "embedding_std": 1.0, "init_std": 0.4, **options}
    return Megabyte(ModelConfig.from_dict(shape)).eval()


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    model = tiny()
    save_pretrained(model, model.config, tmp_path / "model", DATASET_INFO.to_extra())
    return tmp_path / "model"


def is_valid(path: Path, request: Request) -> bool:
    """Whether a file opens as what was asked for."""
    header = request.header
    if request.modality == "text":
        content = path.read_bytes()
        content.decode("utf-8")
        return 0 < len(content) <= request.size
    if request.modality == "image":
        with PIL.Image.open(path) as opened:
            opened.load()
            mode = "L" if header.channels == 1 else "RGB"
            size = (header.width, header.height)
            return (opened.format, opened.size, opened.mode) == ("PNG", size, mode)
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    return (samples.size * 2, samples.shape[1], rate) == (
        request.size,
        header.channels,
        header.rate,
    )


def likeliest(model: Megabyte, ids: np.ndarray) -> np.ndarray:
    """[n], the likeliest byte at every position of a document, by the uncached forward."""
    padded = np.concatenate([ids, np.full(-len(ids) % model.config.patch, framing.PAD)])
    with torch.no_grad():
        logits = model.logits(torch.from_numpy(padded.astype(np.int64))[None])
    return logits[0, : len(ids), :256].argmax(1).numpy().astype(np.uint8)


def test_bytes_are_the_models_own_likeliest() -> None:
    """At temperature 0, every byte is the likeliest of the uncached forward over the framed
    piece, and the pieces after the first open with the preamble at their offset."""
    model = tiny()
    header = Header(width=10, height=12, channels=3)
    request = Request("image", header, "raster", 360, prompt=bytes(range(100)))
    (payload,) = generate_payloads(model, request, [0], GREEDY, "fp32")
    assert payload[:100] == bytes(range(100))
    assert len(payload) == 360
    opening = framing.preamble_length(MODALITIES["image"], 8)
    room = model.config.context - opening
    for offset in range(0, 360, room):
        piece = np.frombuffer(payload[offset : offset + room], np.uint8)
        head = framing.preamble(MODALITIES["image"], header, "raster", offset, 8)
        drawn = likeliest(model, np.concatenate([head, piece]))[opening:]
        begin = max(0, 100 - offset)
        assert drawn[begin:].tobytes() == piece[begin:].tobytes()


@pytest.mark.parametrize("caption", [b"a red square", b"long " * 60])
def test_a_caption_stands_before_the_image_as_in_training(caption: bytes) -> None:
    """Its first piece is the caption's segment and the image's; a caption longer than the context
    leaves the image the rest of its own last piece."""
    model = tiny()
    header = Header(width=8, height=10, channels=3)
    condition = condition_from_text(caption.decode(), VIEWS["text"])
    request = Request("image", header, "raster", 240, condition=condition)
    (payload,) = generate_payloads(model, request, [0], GREEDY, "fp32")
    image_, text_ = MODALITIES["image"], MODALITIES["text"]
    segments = [
        framing.Segment(text_, Header(), "utf8", len(caption)),
        framing.Segment(image_, header, "raster", 240),
    ]
    values = [np.frombuffer(data, np.uint8) for data in (caption, payload)]
    parts = [(segment.modality, segment.size) for segment in segments]
    drawn = bytearray()
    for spans in framing.split_document(parts, 8, lambda: model.config.context):
        framed = framing.frame(spans, segments, lambda i, a, b: values[i][a:b], 8)
        is_image = framed.payload & (framed.modality == image_.code)
        drawn += likeliest(model, framed.ids)[is_image].tobytes()
    assert bytes(drawn) == payload


@pytest.mark.parametrize("options", [{}, MODERN], ids=["plain", "modern"])
@pytest.mark.parametrize(
    "request_",
    [
        text_request("sea", 300, "utf8"),
        text_request("", 40, "utf8", allow_invalid_utf8=True),
        image_request(Header(9, 12, 3), "raster"),
        audio_request(Header(channels=2, rate=8000), "s16be", 0.02),
    ],
    ids=["text", "invalid UTF-8", "image", "audio"],
)
def test_a_files_bytes_depend_on_its_seed_and_not_on_its_batch(
    request_: Request, options: dict[str, object]
) -> None:
    """Alone, among eight, and where more are drawn in turn."""
    model = tiny(**options)
    for sampling in (Sampling(), Sampling(temperature=1.1, top_k=90, top_p=0.9, min_p=0.001)):
        batch = generate_payloads(model, request_, range(10, 28), sampling, "fp32")
        assert len(set(batch)) == 18
        for seed in (10, 13, 27):
            assert generate_payloads(model, request_, [seed], sampling, "fp32") == [
                batch[seed - 10]
            ]


@pytest.mark.parametrize(
    "arguments",
    [("text", "--max-bytes", "100", "--prompt", "Кит"), ("image",), ("audio", "--seconds", "0.01")],
    ids=MODALITIES,
)
def test_a_file_of_many_is_the_file_made_alone(arguments: Sequence[str], tmp_path: Path) -> None:
    """Through the command; sizes and rates are drawn as well."""
    model = tiny(**OPTIONS["modern"])
    save_pretrained(model, model.config, tmp_path / "model", DATASET_INFO.to_extra())
    limits = ["--temperature", "0.9", "--top-k", "200", "--top-p", "0.98", "--min-p", "0.0001"]

    def make(folder: str, *more: str) -> list[bytes]:
        out = tmp_path / folder
        command = ["generate", str(tmp_path / "model"), "--out", str(out), *limits]
        assert status([*command, "--modality", *arguments, *more]) == 0
        return [path.read_bytes() for path in sorted(out.iterdir())]

    together = make("together", "--count", "8", "--seed", "20")
    assert len(set(together)) == 8
    for number in (0, 5, 7):
        assert make(f"alone {number}", "--seed", str(20 + number)) == [together[number]]


def requests(model: Megabyte, count: int) -> dict[str, Sequence[Request]]:
    """`count` requests of each modality; the headers of images and sounds are drawn."""
    rng = np.random.default_rng(0)
    headers, seeds = DATASET_INFO.headers, range(count)
    images = draw_headers(model, "image", "raster", headers["image"], seeds, Sampling())
    sounds = draw_headers(model, "audio", "s16be", headers["audio"], seeds, Sampling())
    assert {header.width for header in images} <= {8, 9, 300}
    lengths = rng.integers(1, 80, count) // 20 * 20 + 1
    return {
        "text": [text_request("", int(n), "utf8") for n in lengths],
        "image": [image_request(header, "raster") for header in images],
        "audio": [audio_request(header, "s16be", 0.003) for header in sounds],
    }


@pytest.mark.parametrize("count", [24, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("modality", MODALITIES)
def test_every_file_of_an_untrained_model_is_valid(
    modality: str, count: int, tmp_path: Path
) -> None:
    model = tiny(init_std=0.2)
    asked = requests(model, count)[modality]
    paths = generate_files(model, asked, range(count), Sampling(), "fp32", tmp_path)
    assert len(set(paths)) == count
    for path, request in zip(paths, asked, strict=True):
        assert is_valid(path, request), path


def test_drawn_headers_are_the_models_own_and_of_the_choices() -> None:
    model, choices = tiny(init_std=0.05), DATASET_INFO.headers["image"]
    drawn = draw_headers(model, "image", "raster", choices, range(200), Sampling())
    assert set(drawn) == set(choices)
    assert drawn[7:9] == draw_headers(model, "image", "raster", choices, [7, 8], Sampling())


def test_what_a_set_holds_is_seen(make_set: SetMaker) -> None:
    documents: list[list[Sample]] = [
        [image(8, 8)],
        [image(8, 8), text(b"eight")],
        [image(3, 4, 1)],
        [text(b"a"), audio(5)],
    ]
    shard_set = make_set(documents)
    stored = DatasetInfo.of(Plan([Source(shard_set)], PlanConfig(256, 8, VIEWS)))
    assert list(stored.headers["image"]) == [Header(8, 8, 3), Header(3, 4, 1)]
    assert list(stored.headers["audio"]) == [Header(channels=1, rate=16000)]
    assert stored.pairs == {("image", "text"), ("text", "audio")}
    drawn = DatasetInfo.of(Plan([Source(shard_set)], PlanConfig(256, 8, VIEWS, pair_order="drawn")))
    assert drawn.pairs == stored.pairs | {("text", "image"), ("audio", "text")}
    assert DatasetInfo.from_extra(stored.to_extra()) == stored


def test_the_commands_options(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def make(modality: str, *arguments: object) -> tuple[str, list[Path]]:
        shown = bytelm(
            "generate", model_folder, "--modality", modality, "--out", out, *arguments
        ).stdout
        return shown, [Path(line) for line in shown.splitlines() if line.startswith(str(out))]

    shown, (path,) = make("text", "--max-bytes", 300, "--prompt", "Кит", "--stream", "--top-k", 40)
    content = path.read_text("utf-8")
    assert content.startswith("Кит")
    assert shown.startswith(f"{content}\n")

    PIL.Image.new("RGB", (9, 7), "red").save(tmp_path / "red.png")
    about = ("--condition-on", tmp_path / "red.png", "--temperature", 0.9)
    _, paths = make("text", "--count", 2, "--max-bytes", 30, *about)
    assert [is_valid(p, text_request("", 30, "utf8")) for p in paths] == [True, True]

    _, (*images, sheet) = make("image", "--count", 3, "--condition-on", "a square", "--sheet")
    sizes = []
    for path in images:
        with PIL.Image.open(path) as opened:
            sizes.append(opened.size)
    assert set(sizes) <= {(8, 8), (300, 2), (9, 5)}
    with PIL.Image.open(sheet) as opened:
        assert opened.width == 2 + 2 * (2 + max(width for width, _ in sizes))
        assert opened.height == 2 + 2 * (2 + max(height for _, height in sizes))

    _, (path,) = make("image", "--size", "5x4", "--grey", "--min-p", 0.01)
    assert is_valid(path, image_request(Header(5, 4, 1), "raster"))

    _, (path,) = make("audio", "--seconds", 0.01, "--channels", 2, "--flac", "--top-p", 0.9)
    info = soundfile.info(path)
    assert (info.format, info.frames, info.channels, info.samplerate) == ("FLAC", 80, 2, 8000)


def test_prompts_of_files_are_kept(model_folder: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "top.png")
    out = tmp_path / "out"
    common = ("generate", model_folder, "--out", out, "--modality")
    bytelm(*common, "image", "--prompt", tmp_path / "top.png", "--prompt-rows", 4)
    generated = np.asarray(PIL.Image.open(out / "image-000.png"))
    assert generated.shape == pixels.shape
    assert (generated[:4] == pixels[:4]).all()
    assert (generated[4:] != pixels[4:]).any()

    sound = np.random.default_rng(1).integers(-9999, 9999, 400, np.int16)
    soundfile.write(tmp_path / "start.wav", sound, 8000)
    length = ("--seconds", 0.03, "--prompt-seconds", 0.01)
    bytelm(*common, "audio", "--prompt", tmp_path / "start.wav", *length)
    generated, rate = soundfile.read(out / "audio-000.wav", dtype="int16")
    assert (generated[:80] == sound[:80]).all()
    assert (len(generated), rate) == (240, 8000)


def test_mistakes_are_one_line(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "small.png")
    small, none = tmp_path / "small.png", tmp_path / "none.png"
    plain = tmp_path / "plain"
    save_pretrained(tiny(), tiny().config, plain, {"views": {**VIEWS, "audio": "file"}})
    for model, arguments, message in (
        (model_folder, ("image", "--size", "64"), "WIDTHxHEIGHT"),
        (
            model_folder,
            ("image", "--size", "65536x1"),
            "--size is '65536x1', and must be WIDTHxHEIGHT",
        ),
        (model_folder, ("audio", "--rate", 2**32), "--rate is 4294967296, and must be 1 to"),
        (model_folder, ("image", "--size", "8x8", "--prompt", small), "4 pixels wide"),
        (model_folder, ("image", "--size", "4x4", "--prompt", small), "shorter prompt"),
        (model_folder, ("image", "--prompt", none), "none.png"),
        (model_folder, ("image", "--stream"), "--stream is an option of text"),
        (model_folder, ("image", "--condition-on", ""), "--condition-on is empty"),
        (model_folder, ("text", "--sheet"), "--sheet is an option of image: leave it out"),
        (model_folder, ("text", "--stream", "--count", 2), "--stream shows one text"),
        (model_folder, ("text", "--condition-on", ""), "--condition-on is empty"),
        (model_folder, ("text", "--size", "8x8"), "--size is an option of image: leave it out"),
        (model_folder, ("image", "--rate", 8000), "--rate is an option of audio: leave it out"),
        (model_folder, ("image", "--size", "65535x65535"), "a document has at most"),
        (model_folder, ("text", "--prompt", "long", "--max-bytes", 3), "shorter prompt"),
        (model_folder, ("text", "--condition-on", none), "cannot read"),
        (
            model_folder,
            ("text", "--condition-on", model_folder / "config.json"),
            "no image and no sound",
        ),
        (model_folder, ("text", "--count", 0), "--count is 0, and must be 1 to"),
        (model_folder, ("text", "--top-p", 0), "--top-p is 0, and must be above 0"),
        (model_folder, ("text", "--top-k", -1), "--top-k is -1, and must be 0 to"),
        (model_folder, ("audio", "--seconds", 1e-9, "--rate", 8000), "make it longer"),
        (model_folder, ("audio", "--channels", 3), "give --rate"),
        (model_folder, ("audio", "--condition-on", "hello"), "no pairs of text to audio"),
        (
            model_folder,
            ("audio", "--rate", 8000, "--channels", 9, "--flac", "--seconds", 0.01),
            "FLAC",
        ),
        (plain, ("image",), "give --size"),
        (plain, ("audio", "--rate", 8000), "the files' own bytes"),
    ):
        command = ["generate", str(model), "--out", str(tmp_path / "o"), "--modality"]
        assert status([*command, *map(str, arguments)]) == 2, arguments
        shown = capsys.readouterr()
        assert message in shown.err
        assert shown.err.count("\n") == 1
        assert not shown.out
