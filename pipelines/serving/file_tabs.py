"""Tabs that take a file: where its bits are, and how small it gets."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from markupsafe import Markup

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import FILE_VIEW, Header, Sample
from bytelm.pipelines.reporting.surprise_maps import SurpriseMap
from bytelm.pipelines.serving.controls import (
    Playground,
    RunButtons,
    connect,
    result_area,
    run_buttons,
    to_path,
)
from bytelm.pipelines.serving.jobs import Job, Work
from bytelm.pipelines.serving.limits import MAX_SCORED_BYTES, MAX_TEXT_BYTES
from bytelm.pipelines.serving.results import compressed_html
from bytelm.pipelines.serving.scoring import Coding, Compressed, compress_file, map_surprise
from bytelm.pipelines.serving.uploads import (
    decode_upload,
    first_bytes,
    first_seconds,
    shrink_image,
    upload_modality,
)

NO_KIND = "is no image, no sound and no text that the model could read."
LEFT_OUT = {
    "image": "as many were scored as a smaller copy of the image has",
    "audio": "the first were scored",
    "text": "the first were scored",
}


def add_surprise_tab(playground: Playground) -> None:
    """Colour a file or a text by the bits that the model needs for each of its bytes."""
    with gr.Row():
        with gr.Column():
            upload = gr.File(label="Image, sound or text", file_count="single", height=120)
            text = gr.Textbox(
                label="Or a text", lines=4, max_length=MAX_TEXT_BYTES,
                visible="text" in playground.loaded.dataset_info.modalities,
            )  # fmt: skip
            run, stop = run_buttons("Show the surprise")
        with gr.Column():
            status, result = result_area()

    def make_work(file: str | None, words: str) -> Work:
        def work(job: Job) -> tuple[SurpriseMap, str]:
            path = to_path(file)
            if path:
                sample, line = _scored_sample(playground, path)
            elif words:
                sample, line = Sample("text", Header(), words.encode()), ""
            else:
                raise ValueError("There is nothing to score: choose a file, or write a text.")
            return map_surprise(playground.loaded, sample, job), line

        return work

    def render(value: tuple[SurpriseMap, str], is_whole: bool) -> tuple[Markup, str]:
        return value[0].html, value[1]

    buttons = RunButtons(run, stop, status, result)
    connect(playground, "surprise", buttons, [upload, text], make_work, render)


def add_compression_tab(playground: Playground) -> None:
    """Compress a file, and compare its size with those of codecs."""
    with gr.Row():
        with gr.Column():
            upload = gr.File(label="File", file_count="single", height=120)
            run, stop = run_buttons("Compress")
        with gr.Column():
            status, result = result_area()

    def make_work(file: str | None) -> Work:
        def work(job: Job) -> Compressed:
            path = to_path(file)
            if path is None:
                raise ValueError("There is nothing to compress: choose a file.")
            _check_decoding(playground, path)
            return compress_file(playground.loaded, path.name, path.read_bytes(), job)

        return work

    buttons = RunButtons(run, stop, status, result)
    connect(playground, "compression", buttons, [upload], make_work, _render_compression)


def _scored_sample(playground: Playground, path: Path) -> tuple[Sample, str]:
    """The part of an upload that is scored, and a line about what is left out."""
    modality = upload_modality(path)
    if modality is None:
        raise ValueError(f"{path.name} {NO_KIND}")
    view = playground.loaded.dataset_info.views[modality]
    whole = decode_upload(path, modality, MODALITIES[modality].options_for(view))
    if view == FILE_VIEW:
        _require_small(path.name, len(whole.data))
        return whole, ""
    shorten = {"image": shrink_image, "audio": first_seconds, "text": first_bytes}[modality]
    sample = shorten(whole, MAX_SCORED_BYTES)
    line = "" if sample is whole else f"Of {len(whole.data):,} bytes, {LEFT_OUT[modality]}."
    return sample, line


def _check_decoding(playground: Playground, path: Path) -> None:
    """Raise ValueError for a file that is too large, or that its decoder does not survive."""
    modality, view_of = upload_modality(path), playground.loaded.dataset_info.views
    size = path.stat().st_size
    if modality in ("image", "audio"):
        options = MODALITIES[modality].options_for(view_of[modality])
        size = len(decode_upload(path, modality, options).data)
    _require_small(path.name, size)


def _require_small(name: str, size: int) -> None:
    if size > MAX_SCORED_BYTES:
        raise ValueError(
            f"{name} holds {size:,} bytes for the model to read, and this page takes "
            f"{MAX_SCORED_BYTES:,}: give a smaller file, or use the command."
        )


def _render_compression(value: Coding | Compressed, is_whole: bool) -> tuple[Markup, str]:
    if isinstance(value, Coding):
        return Markup(), f"Coded {value.coded:,} of {value.total:,} bytes"
    return compressed_html(value), ""
