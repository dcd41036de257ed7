"""Tabs in which the model draws: it completes images, sounds and texts, and follows captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from bytelm.modalities.base import DecodeOptions, Header, Sample
from bytelm.model.decoding.sampling import Sampling
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.generation.options import GenerateOptions
from bytelm.pipelines.generation.sampling_defaults import default_sampling
from bytelm.pipelines.serving.controls import (
    Playground,
    RunButtons,
    connect,
    result_area,
    run_buttons,
    sampling_controls,
    to_choices,
    to_path,
)
from bytelm.pipelines.serving.drawing import Drawing, LoadedModel, draw
from bytelm.pipelines.serving.jobs import Job, Work
from bytelm.pipelines.serving.limits import MAX_COUNT, MAX_SECONDS, MAX_SIDE, MAX_TEXT_BYTES
from bytelm.pipelines.serving.results import alert, kept_rows_html, kept_seconds_html
from bytelm.pipelines.serving.uploads import (
    USUAL_SIDE,
    decode_upload,
    fit_image,
    fitting_sound_options,
    sample_file,
    upload_modality,
)

USUAL_HEADER = Header(USUAL_SIDE, USUAL_SIDE, 3)


def add_image_tab(playground: Playground) -> None:
    """Complete an image from its top; without one, draw a new one."""
    info = playground.loaded.dataset_info
    with gr.Row():
        with gr.Column():
            upload = gr.File(label="Image", file_count="single", height=120)
            share = gr.Slider(5, 95, 50, step=5, label="Kept from the top (%)")
            preview = gr.HTML(js_on_load=None)
            count = gr.Slider(1, MAX_COUNT, 1, step=1, label="Images")
            sampling = sampling_controls(_defaults(playground, "image", 0))
            run, stop = run_buttons("Complete")
        with gr.Column():
            status, result = result_area()
    known = known_headers(info, "image")

    def show_upload(file: str | None, percent: float) -> Markup | str:
        if file is None:
            return ""
        try:
            sample = _image_upload(Path(file), known)
        except ValueError as error:
            return alert(str(error))
        return kept_rows_html(sample, _kept_rows(sample, percent))

    def make_work(file: str | None, percent: float, number: float, *rest: Any) -> Work:
        def work(job: Job) -> Drawing:
            options = _options("image", int(number), rest)
            path = to_path(file)
            if path:
                sample = _image_upload(path, known)
                rows = _kept_rows(sample, percent)
                options = replace(options, prompt=sample_file(sample), prompt_rows=rows)
            return draw(_with_known(playground, "image"), options, job)

        return work

    _show_uploads(upload, share, preview, show_upload)
    _set_defaults(playground, "image", _half_bytes(info), upload, sampling)
    buttons = RunButtons(run, stop, status, result)
    connect(playground, "image", buttons, [upload, share, count, *sampling], make_work)


def add_sound_tab(playground: Playground) -> None:
    """Complete a sound from its start; without one, draw a new one."""
    info = playground.loaded.dataset_info
    with gr.Row():
        with gr.Column():
            upload = gr.File(label="Sound", file_count="single", height=120)
            kept = gr.Slider(0.05, MAX_SECONDS / 2, 0.5, step=0.05, label="Kept from the start (s)")
            preview = gr.HTML(js_on_load=None)
            seconds = gr.Slider(0.1, MAX_SECONDS, 1, step=0.1, label="Length in all (s)")
            count = gr.Slider(1, MAX_COUNT, 1, step=1, label="Sounds")
            sampling = sampling_controls(_defaults(playground, "audio", 0))
            run, stop = run_buttons("Complete")
        with gr.Column():
            status, result = result_area()
    known = known_headers(info, "audio")

    def show_upload(file: str | None, kept_seconds: float) -> Markup | str:
        if file is None:
            return ""
        try:
            return kept_seconds_html(_sound_upload(Path(file), known), kept_seconds)
        except ValueError as error:
            return alert(str(error))

    def make_work(
        file: str | None, kept_seconds: float, length: float, number: float, *rest: Any
    ) -> Work:
        def work(job: Job) -> Drawing:
            options = replace(_options("audio", int(number), rest), seconds=float(length))
            path = to_path(file)
            if path:
                prompt = sample_file(_sound_upload(path, known))
                options = replace(options, prompt=prompt, prompt_seconds=float(kept_seconds))
            return draw(playground.loaded, options, job)

        return work

    _show_uploads(upload, kept, preview, show_upload)
    _set_defaults(playground, "audio", 1, upload, sampling)
    buttons = RunButtons(run, stop, status, result)
    connect(playground, "audio", buttons, [upload, kept, seconds, count, *sampling], make_work)


def add_text_tab(playground: Playground) -> None:
    """Go on with a text."""
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox(label="Beginning", lines=4, max_length=MAX_TEXT_BYTES)
            size = gr.Slider(16, MAX_TEXT_BYTES, 512, step=16, label="Longest text (bytes)")
            count = gr.Slider(1, MAX_COUNT, 1, step=1, label="Texts")
            sampling = sampling_controls(_defaults(playground, "text", 1))
            run, stop = run_buttons("Complete")
        with gr.Column():
            status, result = result_area()

    def make_work(beginning: str, max_bytes: float, number: float, *rest: Any) -> Work:
        def work(job: Job) -> Drawing:
            options = _options("text", int(number), rest)
            options = replace(options, prompt=beginning, max_bytes=int(max_bytes))
            return draw(playground.loaded, options, job)

        return work

    buttons = RunButtons(run, stop, status, result)
    connect(playground, "text", buttons, [prompt, size, count, *sampling], make_work)


def add_caption_tab(playground: Playground, modality: str) -> None:
    """Draw an image or a sound that follows a caption."""
    noun = {"image": "image", "audio": "sound"}[modality]
    with gr.Row():
        with gr.Column():
            caption = gr.Textbox(label="Caption", lines=2, max_length=MAX_TEXT_BYTES)
            seconds = gr.Slider(
                0.1, MAX_SECONDS, 1, step=0.1, label="Length (s)", visible=modality == "audio"
            )
            count = gr.Slider(1, MAX_COUNT, 1, step=1, label=f"{noun.capitalize()}s")
            sampling = sampling_controls(_defaults(playground, modality, 0))
            run, stop = run_buttons("Draw")
        with gr.Column():
            status, result = result_area()

    def make_work(words: str, length: float, number: float, *rest: Any) -> Work:
        def work(job: Job) -> Drawing:
            if not words.strip():
                raise ValueError("There is no caption: write one.")
            options = replace(_options(modality, int(number), rest), condition_on=words)
            if modality == "audio":
                options = replace(options, seconds=float(length))
            return draw(_with_known(playground, modality), options, job)

        return work

    buttons = RunButtons(run, stop, status, result)
    inputs = [caption, seconds, count, *sampling]
    connect(playground, f"{modality} from a caption", buttons, inputs, make_work)


def add_description_tab(playground: Playground) -> None:
    """Draw a text that describes a file."""
    info = playground.loaded.dataset_info
    with gr.Row():
        with gr.Column():
            upload = gr.File(label="Image or sound", file_count="single", height=120)
            size = gr.Slider(16, MAX_TEXT_BYTES, 256, step=16, label="Longest text (bytes)")
            count = gr.Slider(1, MAX_COUNT, 1, step=1, label="Texts")
            sampling = sampling_controls(_defaults(playground, "text", 0))
            run, stop = run_buttons("Describe")
        with gr.Column():
            status, result = result_area()

    def make_work(file: str | None, max_bytes: float, number: float, *rest: Any) -> Work:
        def work(job: Job) -> Drawing:
            path = to_path(file)
            if path is None:
                raise ValueError("There is no file: choose one.")
            if upload_modality(path) == "image":
                sample = _image_upload(path, known_headers(info, "image"))
            else:
                sample = _sound_upload(path, known_headers(info, "audio"))
            options = _options("text", int(number), rest)
            options = replace(options, condition_on=sample_file(sample), max_bytes=int(max_bytes))
            return draw(playground.loaded, options, job)

        return work

    buttons = RunButtons(run, stop, status, result)
    connect(playground, "description", buttons, [upload, size, count, *sampling], make_work)


def known_headers(info: DatasetInfo, modality: str) -> list[Header]:
    """Headers of the training set that the page may draw, most frequent first."""
    headers = info.headers.get(modality, ())
    return [header for header in headers if max(header.width, header.height) <= MAX_SIDE]


def _with_known(playground: Playground, modality: str) -> LoadedModel:
    """The model with the headers alone that the page may draw, so that it draws no others."""
    loaded = playground.loaded
    known = known_headers(loaded.dataset_info, modality)
    if modality == "image":
        known = known or [USUAL_HEADER]
    headers = {**loaded.dataset_info.headers, modality: known}
    return replace(loaded, dataset_info=replace(loaded.dataset_info, headers=headers))


def _defaults(playground: Playground, modality: str, prompt_bytes: int) -> Sampling:
    """The model's settings behind so many bytes, at which the controls stand first."""
    loaded = playground.loaded
    return default_sampling(loaded.model, loaded.dataset_info, modality, prompt_bytes)


def _half_bytes(info: DatasetInfo) -> int:
    """Bytes of half of an image of the most frequent size."""
    first = [*known_headers(info, "image"), USUAL_HEADER][0]
    return first.height // 2 * first.width * first.channels


def _options(modality: str, count: int, sampling_values: tuple[Any, ...]) -> GenerateOptions:
    choices, seed = to_choices(sampling_values)
    if count > MAX_COUNT:
        raise ValueError(f"{count} results are too many: ask for {MAX_COUNT} at most.")
    return GenerateOptions(modality=modality, count=count, seed=seed, choices=choices)


def _image_upload(path: Path, known: list[Header]) -> Sample:
    return fit_image(decode_upload(path, "image", DecodeOptions()), known)


def _sound_upload(path: Path, known: list[Header]) -> Sample:
    sample = decode_upload(path, "audio", DecodeOptions())
    options = fitting_sound_options(sample, known)
    return sample if options is None else decode_upload(path, "audio", options)


def _kept_rows(sample: Sample, percent: float) -> int:
    """Rows of an image that the model is given: at least one, and not all."""
    height = sample.header.height
    return min(max(1, round(height * percent / 100)), height - 1)


def _set_defaults(
    playground: Playground,
    modality: str,
    prompt_bytes: int,
    upload: gr.File,
    sampling: list[Any],
) -> None:
    """Set the controls to the settings behind so many bytes of an upload, or to those of new files
    once there is none."""

    def defaults(file: str | None) -> list[float]:
        chosen = _defaults(playground, modality, prompt_bytes if file else 0)
        return [chosen.temperature, chosen.top_k, chosen.top_p, chosen.min_p]

    controls = sampling[:-1]  # the seed stays
    upload.change(defaults, [upload], controls, api_visibility="private", show_progress="hidden")


def _show_uploads(
    upload: gr.File,
    kept: gr.Slider,
    preview: gr.HTML,
    show: Callable[[str | None, float], Markup | str],
) -> None:
    """Show what the model will be given, whenever that changes."""
    for event in (upload.change, kept.release):
        event(
            show,
            [upload, kept],
            preview,
            api_visibility="private",
            concurrency_id="uploads",
            concurrency_limit=2,
            show_progress="minimal",
        )
