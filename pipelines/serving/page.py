"""The playground's page: a tab for each thing that the model can do."""

from __future__ import annotations

from importlib import resources

import gradio as gr
from markupsafe import Markup

from bytelm.pipelines.reporting.media_css import media_css
from bytelm.pipelines.serving.controls import Playground
from bytelm.pipelines.serving.drawing import LoadedModel
from bytelm.pipelines.serving.drawing_tabs import (
    add_caption_tab,
    add_description_tab,
    add_image_tab,
    add_sound_tab,
    add_text_tab,
)
from bytelm.pipelines.serving.file_tabs import add_compression_tab, add_surprise_tab
from bytelm.pipelines.serving.jobs import JobQueue
from bytelm.pipelines.serving.limits import UPLOAD_SECONDS

MAX_EVENTS = 64
"""Events that gradio keeps; the queue of jobs has a limit of its own."""


def build_page(loaded: LoadedModel, queue: JobQueue) -> gr.Blocks:
    """The page, with the tabs for which the model has modalities."""
    info = loaded.dataset_info
    playground = Playground(loaded, queue)
    with gr.Blocks(
        title=f"{loaded.name} - bytelm",
        analytics_enabled=False,
        delete_cache=(60, UPLOAD_SECONDS),
    ) as page:
        gr.HTML(_head(loaded), elem_classes="page-head", js_on_load=None)
        with gr.Tabs():
            if "image" in info.modalities:
                with gr.Tab("Image"):
                    add_image_tab(playground)
            if "audio" in info.modalities:
                with gr.Tab("Sound"):
                    add_sound_tab(playground)
            if "text" in info.modalities:
                with gr.Tab("Text"):
                    add_text_tab(playground)
            for modality, noun in (("image", "Image"), ("audio", "Sound")):
                if ("text", modality) in info.pairs:
                    with gr.Tab(f"{noun} from a caption"):
                        add_caption_tab(playground, modality)
            if {("image", "text"), ("audio", "text")} & info.pairs:
                with gr.Tab("Description"):
                    add_description_tab(playground)
            with gr.Tab("Surprise map"):
                add_surprise_tab(playground)
            with gr.Tab("Compress"):
                add_compression_tab(playground)
    page.queue(max_size=MAX_EVENTS)
    return page


def page_css() -> str:
    """The style rules of the page; they name no file and no font to fetch."""
    rules = resources.files("bytelm.pipelines.serving").joinpath("page.css").read_text("utf-8")
    return media_css() + rules


def page_theme() -> gr.themes.Base:
    """Gradio's plainest theme with the fonts of the user's system."""
    return gr.themes.Base(
        primary_hue="blue",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def _head(loaded: LoadedModel) -> Markup:
    parameters = sum(p.numel() for p in loaded.model.parameters())
    learned = ", ".join(sorted(loaded.dataset_info.modalities))
    return Markup("<h1>{}</h1><p>{:,} parameters, learned {}</p>").format(
        loaded.name, parameters, learned
    )
