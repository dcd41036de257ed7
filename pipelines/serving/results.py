"""HTML of the playground: results, uploads, and the line about the state of a job."""

from __future__ import annotations

import PIL.Image
from markupsafe import Markup

from bytelm.modalities.base import Sample
from bytelm.pipelines.reporting.media_files import data_uri, sample_pcm, sample_picture
from bytelm.pipelines.reporting.pictures import picture_element
from bytelm.pipelines.reporting.sound_pictures import sound_player, waveform_svg
from bytelm.pipelines.serving.drawing import Drawing
from bytelm.pipelines.serving.scoring import Compressed

FADED = 0.75
"""Share of white over the part of a picture that is not given to the model."""


def note(text: str) -> Markup:
    """A line about the state of a job."""
    return Markup('<p class="note" role="status">{}</p>').format(text)


def alert(text: str) -> Markup:
    """A line with the reason why there is no result."""
    return Markup('<p class="alert" role="alert">{}</p>').format(text)


def drawing_html(drawing: Drawing, is_whole: bool) -> Markup:
    """The results of a request, or what is drawn of them so far."""
    show = {"text": _texts, "image": _images, "audio": _sounds}[drawing.samples[0].modality]
    return show(drawing, is_whole)


def drawing_note(drawing: Drawing) -> str:
    """A line about the progress of a drawing and its speed."""
    is_text = drawing.samples[0].modality == "text"
    of_all = (
        f"{drawing.drawn:,} bytes" if is_text else f"{drawing.drawn:,} of {drawing.total:,} bytes"
    )
    return f"{of_all} in {drawing.seconds:.1f} s, {drawing.speed:,.0f} a second"


def kept_rows_html(sample: Sample, rows: int) -> Markup:
    """An uploaded image, faded below the rows that the model is given."""
    picture = sample_picture(sample).convert("RGB")
    below = picture.crop((0, rows, picture.width, picture.height))
    white = PIL.Image.new("RGB", below.size, "white")
    picture.paste(PIL.Image.blend(below, white, FADED), (0, rows))
    words = f"{picture.width} × {picture.height} pixels; the model is given the upper {rows} rows"
    return Markup('<div class="pictures">{}</div>').format(
        picture_element(picture, "the image as the model is given it", words)
    )


def kept_seconds_html(sample: Sample, seconds: float) -> Markup:
    """An uploaded sound, and how much of it the model is given."""
    header = sample.header
    given = f"The model is given the first {seconds:g} s."
    return sound_player(sample_pcm(sample), header.rate) + note(given)


def compressed_html(compressed: Compressed) -> Markup:
    """Sizes of a file, smallest first, and a link to save the container."""
    sizes = {"this model": len(compressed.container), **compressed.codecs}
    rows = Markup().join(
        Markup("<tr{}><td>{}</td><td>{:,}</td><td>{:.3f}</td></tr>").format(
            Markup(' class="ours"') if name == "this model" else "",
            name,
            size,
            8 * size / max(1, compressed.payload_size),
        )
        for name, size in sorted(sizes.items(), key=lambda item: item[1])
    )
    what = {"text": "the file", "image": "its pixels", "audio": "its samples"}
    missing = Markup().join(
        Markup("<li>{}: <code>{}</code></li>").format(*item) for item in compressed.missing.items()
    )
    return Markup(
        '<table class="sizes"><caption>{name} has {size:,} bytes; {payload:,} bytes of {what} are '
        "coded.</caption><thead><tr><th></th><th>bytes</th><th>bits per byte</th></tr></thead>"
        "<tbody>{rows}</tbody></table>"
        '<p class="note">The model\'s own size is not counted. '
        '<a class="save" download="{name}.blm" href="{uri}">Save {name}.blm</a>, which '
        "<code>bytelm decompress</code> restores with this model.</p>"
        '<ul class="note">{missing}</ul>'
    ).format(
        name=compressed.name,
        size=compressed.size,
        payload=compressed.payload_size,
        what=what[compressed.modality],
        rows=rows,
        missing=missing,
        uri=data_uri("application/octet-stream", compressed.container),
    )


def _texts(drawing: Drawing, is_whole: bool) -> Markup:
    size = drawing.prompt_size
    return Markup().join(
        Markup('<pre class="drawn-text" dir="auto"><b>{}</b>{}</pre>').format(
            sample.data[:size].decode(errors="replace"), _tail(sample.data[size:], is_whole)
        )
        for sample in drawing.samples
    )


def _tail(data: bytes, is_whole: bool) -> str:
    """A text's bytes as characters; without a character that is still being drawn."""
    if not is_whole:
        for cut in range(1, min(4, len(data)) + 1):
            if data[-cut] >= 0xC0:
                data = data[:-cut]
                break
    return data.decode(errors="replace")


def _images(drawing: Drawing, is_whole: bool) -> Markup:
    figures = (
        picture_element(sample_picture(sample), f"drawn image {number}")
        for number, sample in enumerate(drawing.samples, 1)
    )
    return Markup('<div class="pictures">{}</div>').format(Markup().join(figures))


def _sounds(drawing: Drawing, is_whole: bool) -> Markup:
    parts = [(sample_pcm(sample), sample.header.rate) for sample in drawing.samples]
    if is_whole:
        return Markup().join(sound_player(pcm, rate) for pcm, rate in parts)
    return Markup().join(waveform_svg(pcm, rate) for pcm, rate in parts if len(pcm))
