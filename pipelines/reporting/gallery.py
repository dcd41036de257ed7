"""Generated samples beside real ones: pictures, players and texts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from bytelm.modalities.base import Sample
from bytelm.pipelines.reporting.drawn_samples import DrawnSample
from bytelm.pipelines.reporting.media_files import sample_pcm, sample_picture
from bytelm.pipelines.reporting.pictures import picture_element
from bytelm.pipelines.reporting.sound_pictures import sound_player

MAX_REAL = 8
"""Real images beside the generated ones."""
THUMBNAIL_SIDE = 160
"""Pixels of the screen of a small picture's longer side, so that a phone shows two in a line."""
_NAMES = {"image": "Images", "audio": "Sounds", "text": "Texts"}


def gallery(drawn: Sequence[DrawnSample], real: Sequence[Sample] = ()) -> Markup:
    """Generated samples in groups of the same modality, prompt and condition.

    Args:
        real: images of the data that are shown beside those that were drawn without a prompt.
    Returns:
        Markup for a page with the rules of `media_css`; pictures and sounds are data URIs.
    """
    parts = []
    for modality, name in _NAMES.items():
        chosen = [d for d in drawn if d.sample.modality == modality]
        if chosen:
            shown = Markup().join(
                _titled(title, list(members))
                for title, members in itertools.groupby(chosen, lambda d: d.title)
            )
            parts.append(Markup("<h3>{}</h3>{}").format(name, shown))
            if modality == "image" and real:
                parts.append(_real_images(real))
    return Markup().join(parts)


def sampling_words(sampling: Mapping[str, float]) -> str:
    """The settings that change something: "temperature 0.8, top-p 0.95"."""
    unset = {"temperature": None, "top_k": 0, "top_p": 1, "min_p": 0}
    return ", ".join(
        f"{name.replace('_', '-')} {value:g}"
        for name, value in sampling.items()
        if value != unset.get(name)
    )


def _titled(title: str, members: Sequence[DrawnSample]) -> Markup:
    groups = itertools.groupby(members, lambda d: (d.prompt, d.condition))
    return Markup('<section class="drawn"><h4>{}</h4>{}</section>').format(
        title, Markup().join(_group(list(group)) for _, group in groups)
    )


def _group(members: Sequence[DrawnSample]) -> Markup:
    """Samples of one prompt and condition, below what they were given."""
    first = members[0]
    shown: Markup
    if first.sample.modality == "image":
        figures = [_generated_picture(d) for d in members]
        if first.prompt is not None:
            figures.insert(0, _picture(first.prompt, "The real image", "the real image"))
        shown = Markup('<div class="pictures thumbnails">{}</div>').format(Markup().join(figures))
    elif first.sample.modality == "audio":
        players = [_generated_sound(d) for d in members]
        if first.prompt is not None:
            players.insert(0, _real_sound(first.prompt))
        shown = Markup('<div class="sounds">{}</div>').format(Markup().join(players))
    else:
        shown = Markup().join(_generated_text(d) for d in members)
    return _condition(first.condition) + shown


def _condition(condition: Sample | None) -> Markup:
    """The condition that samples follow: a caption in quotes, a picture or a sound."""
    if condition is None:
        return Markup()
    if condition.modality == "text":
        text = condition.data.decode("utf-8", "replace")
        return Markup('<blockquote class="given-text" dir="auto">{}</blockquote>').format(text)
    if condition.modality == "image":
        return _picture(condition, "The image that the text follows", "given")
    return sound_player(sample_pcm(condition), condition.header.rate, "given")


def _generated_picture(drawn: DrawnSample) -> Markup:
    lines = round(drawn.given_share * drawn.sample.header.height)
    caption = _seed_words(drawn)
    if lines:
        caption = f"{caption}; the {lines} lines beside the bar are given"
    return picture_element(
        sample_picture(drawn.sample),
        f"Generated image, seed {drawn.seed}",
        caption,
        given_lines=lines,
        side=THUMBNAIL_SIDE,
    )


def _generated_sound(drawn: DrawnSample) -> Markup:
    pcm = sample_pcm(drawn.sample)
    frames = round(drawn.given_share * len(pcm))
    title = _seed_words(drawn)
    if frames:
        title = f"{title}; the shaded {frames / drawn.sample.header.rate:.2g} s are given"
    return sound_player(pcm, drawn.sample.header.rate, title, frames)


def _real_sound(prompt: Sample) -> Markup:
    return sound_player(sample_pcm(prompt), prompt.header.rate, "the real sound")


def _generated_text(drawn: DrawnSample) -> Markup:
    """A text with its prompt set apart."""
    size = 0 if drawn.prompt is None else len(drawn.prompt.data)
    data = drawn.sample.data
    given, rest = (part.decode("utf-8", "replace") for part in (data[:size], data[size:]))
    return Markup(
        '<figure class="drawn-text"><div dir="auto"><span class="given">{}</span>{}</div>'
        "<figcaption>{}</figcaption></figure>"
    ).format(given, rest, _seed_words(drawn) + ("; the bold part is given" if given else ""))


def _real_images(real: Iterable[Sample]) -> Markup:
    figures = [
        _picture(sample, f"Real image {number}", "")
        for number, sample in enumerate(itertools.islice(real, MAX_REAL), 1)
    ]
    return Markup(
        '<section class="drawn"><h4>real images, for comparison</h4>'
        '<div class="pictures thumbnails">{}</div></section>'
    ).format(Markup().join(figures))


def _picture(sample: Sample, alt: str, caption: str) -> Markup:
    return picture_element(sample_picture(sample), alt, caption, side=THUMBNAIL_SIDE)


def _seed_words(drawn: DrawnSample) -> str:
    return f"seed {drawn.seed}, {sampling_words(drawn.sampling)}"
