"""Parts that all tabs of the page use: model and queue, sampling controls, and running a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from bytelm.model.decoding.sampling import Sampling
from bytelm.pipelines.generation.sampling_defaults import SamplingChoices
from bytelm.pipelines.serving.drawing import Drawing, LoadedModel
from bytelm.pipelines.serving.jobs import Job, JobQueue, QueueFullError, Work
from bytelm.pipelines.serving.results import alert, drawing_html, drawing_note, note

POLL_SECONDS = 0.2
MAX_SEED = (1 << 53) - 1
"""Largest whole number that a page's scripts hold exactly."""

Update = tuple[Any, Any]
"""New contents of a tab's result and of its status."""
Render = Callable[[Any, bool], tuple[Markup, str]]
"""Turns what a job shows or returns, and whether it is whole, into a result and a line about it."""


@dataclass
class Playground:
    """The model and the queue of the page, and the job of each user's tab."""

    loaded: LoadedModel
    queue: JobQueue
    jobs: dict[tuple[str, str], Job] = field(default_factory=dict)

    def run(self, tab: str, session: str, work: Work, render: Render) -> Iterator[Update]:
        """Put a job into the queue, and tell the page how it goes until it ends.

        The job stops where the page is left, since that closes the iterator.

        Args:
            tab: name of the tab, which has one job for each user.
            session: name of the user's page.
        """
        try:
            job = self.queue.submit(work)
        except QueueFullError as error:
            yield "", alert(str(error))
            return
        key = session, tab
        self.jobs[key] = job
        try:
            yield "", note("Waiting for the model.")
            yield from _progress(job, render)
            yield _end(job, render)
        finally:
            job.stop()
            if self.jobs.get(key) is job:
                del self.jobs[key]

    def stop(self, tab: str, session: str) -> None:
        """Stop the job of a user's tab, if there is one."""
        job = self.jobs.get((session, tab))
        if job:
            job.stop()


def _progress(job: Job, render: Render) -> Iterator[Update]:
    """Changes of the page while the job waits and runs."""
    last_place, last_shown = 0, None
    while not job.wait(POLL_SECONDS):
        place, shown = job.place, job.shown
        if place and place != last_place:
            yield gr.skip(), note(f"Number {place} in the queue: another request runs.")
        elif shown is not last_shown:
            result, line = render(shown, False)
            yield result, note(line)
        last_place, last_shown = place, shown


def _end(job: Job, render: Render) -> Update:
    """Contents of the page after the job's end."""
    if job.error:
        return gr.skip(), alert(job.error)
    whole = not job.stopped
    value = job.result if whole else job.shown
    if value is None:
        return gr.skip(), note(job.stopped)
    result, line = render(value, whole)
    return result, note(" ".join(filter(None, (job.stopped, line))))


def render_drawing(drawing: Drawing, is_whole: bool) -> tuple[Markup, str]:
    """The `Render` of drawings."""
    return drawing_html(drawing, is_whole), drawing_note(drawing)


@dataclass(frozen=True)
class RunButtons:
    """The buttons of a tab, and where its results appear."""

    run: gr.Button
    stop: gr.Button
    status: gr.HTML
    result: gr.HTML


def run_buttons(label: str) -> tuple[gr.Button, gr.Button]:
    """A button that runs the tab's job, and one that stops it."""
    with gr.Row(elem_classes="buttons"):
        run = gr.Button(label, variant="primary", min_width=120)
        stop = gr.Button("Stop", variant="stop", min_width=80)
    return run, stop


def result_area() -> tuple[gr.HTML, gr.HTML]:
    """The status and the result of a tab, in a column of their own."""
    status = gr.HTML(elem_classes="status", js_on_load=None)
    result = gr.HTML(elem_classes="result", js_on_load=None)
    return status, result


def connect(
    playground: Playground,
    tab: str,
    buttons: RunButtons,
    inputs: list[Any],
    make_work: Callable[..., Work],
    render: Render = render_drawing,
) -> None:
    """Let the buttons run and stop the job that `make_work` makes of the inputs' values."""

    def run(request: gr.Request, *values: Any) -> Iterator[Update]:
        yield from playground.run(tab, str(request.session_hash), make_work(*values), render)

    def stop(request: gr.Request) -> None:
        playground.stop(tab, str(request.session_hash))

    buttons.run.click(
        run,
        inputs,
        [buttons.result, buttons.status],
        api_visibility="private",
        concurrency_limit=None,
        show_progress="hidden",
    )
    buttons.stop.click(stop, api_visibility="private", queue=False, show_progress="hidden")


def sampling_controls(defaults: Sampling) -> list[Any]:
    """Controls of the draw: temperature, top-k, top-p, min-p and seed, in this order."""
    with gr.Accordion("Sampling", open=False):
        return [
            gr.Slider(
                0, 2, defaults.temperature, step=0.05, label="Temperature",
                info="divides the logits; 0 takes the likeliest byte",
            ),
            gr.Slider(
                0, 256, defaults.top_k, step=1, label="Top-k",
                info="draw from the k likeliest bytes only; 0 for all",
            ),
            gr.Slider(
                0.01, 1, defaults.top_p, step=0.01, label="Top-p",
                info="draw from the likeliest bytes whose probabilities add up to this",
            ),
            gr.Slider(
                0, 1, defaults.min_p, step=0.01, label="Min-p",
                info="draw from bytes with at least this share of the likeliest one's probability",
            ),
            gr.Number(
                0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED,
                info="another seed gives another result",
            ),
        ]  # fmt: skip


def to_choices(values: tuple[Any, ...]) -> tuple[SamplingChoices, int]:
    """Settings and seed from the values of `sampling_controls`."""
    temperature, top_k, top_p, min_p, seed = values
    chosen = SamplingChoices(float(temperature), int(top_k), float(top_p), float(min_p))
    return chosen, int(seed or 0)


def to_path(upload: str | None) -> Path | None:
    """The path of an upload, or None without one."""
    return Path(upload) if upload else None
