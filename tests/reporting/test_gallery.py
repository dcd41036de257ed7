"""A gallery shows what was generated, what was given for it, and what is real."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
from helpers.sets import audio, image, text

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Sample
from bytelm.model.decoding.sampling import Sampling
from bytelm.pipelines.reporting.drawn_samples import (
    DrawnSample,
    newest_samples,
    read_drawn_samples,
)
from bytelm.pipelines.reporting.gallery import MAX_REAL, gallery, sampling_words

SAMPLING = asdict(Sampling(temperature=0.8, top_p=0.95))


def drawn(sample: Sample, seed: int = 0, **fields: Any) -> DrawnSample:
    values = {"title": "a title", "prompt": None, "given_share": 0.0, "condition": None}
    return DrawnSample(sample, seed=seed, sampling=SAMPLING, **{**values, **fields})


def pictures(html: str) -> list[PIL.Image.Image]:
    found = re.findall(r'(?:src|href)="data:image/png;base64,([^"]+)"', html)
    return [PIL.Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_hostile_texts_titles_and_captions_are_escaped() -> None:
    evil = "<script>alert(1)</script>\"'"
    html = gallery(
        [
            drawn(text(b"<b>" + evil.encode()), title=evil, prompt=text(b"<b>")),
            drawn(image(2, 2), title=evil, condition=text(evil.encode())),
        ]
    )
    assert "<script" not in html
    assert "<b>" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;") == 4


def test_a_finished_image_has_its_given_lines_marked_beside_the_real_one() -> None:
    real = image(8, 6, seed=1)
    half = len(real.data) // 2
    finished = replace(real, data=real.data[:half] + bytes(half))
    html = gallery([drawn(finished, prompt=real, given_share=0.5)])
    assert [picture.tobytes() for picture in pictures(html)] == [real.data, finished.data]
    assert "the real image" in html
    assert re.search(r'class="given-bar" x="-2" width="1" height="3.0"', html)
    assert "seed 0, temperature 0.8, top-p 0.95; the 3 lines beside the bar are given" in html


def test_small_images_are_enlarged_by_whole_factors() -> None:
    html = gallery([drawn(image(50, 30))])
    assert 'width="150" height="90" alt="Generated image, seed 0"' in html


def test_samples_of_one_prompt_share_its_title_and_its_original() -> None:
    first, second = image(4, 4, seed=1), image(4, 4, seed=2)
    html = gallery(
        [drawn(image(4, 4, seed=i), i, prompt=(first, second)[i // 2]) for i in range(4)]
    )
    assert html.count("a title") == 1
    assert html.count("the real image") == 2


def test_real_images_are_shown_for_comparison_and_limited() -> None:
    html = gallery([drawn(image(4, 4))], [image(4, 4, seed=i) for i in range(MAX_REAL + 5)])
    assert len(pictures(html)) == 1 + MAX_REAL
    assert "Real image 1" not in gallery([drawn(text(b"a"))], [image(4, 4)])


def test_a_finished_sound_is_played_beside_the_real_one_with_its_given_part_shaded() -> None:
    real = audio(1600, rate=16000)
    html = gallery([drawn(audio(800, rate=16000, seed=2), prompt=real, given_share=0.25)])
    waves = re.findall(r'src="data:audio/wav;base64,([^"]+)"', html)
    lengths = [len(soundfile.read(io.BytesIO(base64.b64decode(wave)))[0]) for wave in waves]
    assert lengths == [1600, 800]
    assert '<rect class="given-area" width="150.00"' in html  # a quarter of 600 columns
    assert "the shaded 0.013 s are given" in html


def test_a_generated_text_has_its_prompt_set_apart_and_its_own_direction() -> None:
    html = gallery([drawn(text("Ein Wal\xff".encode("latin-1")), prompt=text(b"Ein "))])
    assert '<div dir="auto"><span class="given">Ein </span>Wal\ufffd</div>' in html


def test_a_text_follows_the_picture_that_it_describes() -> None:
    html = gallery([drawn(text(b"a whale"), condition=image(4, 4))])
    assert html.index("The image that the text follows") < html.index("a whale")


def test_settings_that_change_nothing_are_left_out() -> None:
    assert sampling_words(asdict(Sampling())) == "temperature 1"
    assert sampling_words({"temperature": 0.9, "top_k": 40, "min_p": 0.05}) == (
        "temperature 0.9, top-k 40, min-p 0.05"
    )


def write_samples(folder: Path, *samples: Sample, **fields: Any) -> None:
    folder.mkdir(parents=True)
    records = []
    for number, sample in enumerate(samples):
        path = MODALITIES[sample.modality].write_file(sample, folder / f"sample-{number}")
        record = {"file": path.name, "modality": sample.modality, "seed": number, "prompt": None}
        record |= {"condition_on": None, "sampling": SAMPLING, "title": "a title"}
        records.append(record | fields)
    (folder / "samples.json").write_text(json.dumps(records))


def test_samples_of_a_folder_are_read_with_prompts_and_captions(tmp_path: Path) -> None:
    samples = text(b"any \xff bytes"), image(4, 3), audio(20)
    write_samples(tmp_path / "samples/step-00000010", *samples, condition_on=None)
    step, folder = newest_samples(tmp_path) or (0, tmp_path)
    found, problems = read_drawn_samples(folder)
    assert (step, problems) == (10, [])
    assert [d.sample.data for d in found] == [sample.data for sample in samples]
    write_samples(
        tmp_path / "samples/step-00000020",
        *samples[1:2],
        prompt="sample-0.png",
        condition_on="a caption",
        given_share=0.5,
    )
    step, folder = newest_samples(tmp_path) or (0, tmp_path)
    (found, _) = read_drawn_samples(folder)
    assert step == 20
    assert found[0].prompt == samples[1]
    assert found[0].condition == text(b"a caption")
    assert found[0].given_share == 0.5


def test_a_run_without_samples_has_none(tmp_path: Path) -> None:
    (tmp_path / "samples/step-00000010").mkdir(parents=True)
    assert newest_samples(tmp_path) is None


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        ({"file": "missing.png"}, "cannot read"),
        ({"file": "../../secret.png"}, "is no file of the folder"),
        ({"modality": "smell"}, "smell"),
        ({"seed": None}, "NoneType"),
    ],
)
def test_a_sample_that_cannot_be_read_has_a_line(
    damage: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    write_samples(tmp_path / "s", image(4, 3), **damage)
    found, (problem,) = read_drawn_samples(tmp_path / "s")
    assert not found
    assert problem.startswith(f"a sample in {tmp_path / 's'} cannot be read")
    assert cause in problem


def test_a_damaged_list_of_samples_has_a_line(tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text('[{"file": ')
    found, (problem,) = read_drawn_samples(tmp_path)
    assert not found
    assert "samples.json cannot be read" in problem


def test_a_page_of_noise_stays_small() -> None:
    samples = [drawn(image(600, 500, seed=i), i) for i in range(4)]
    html = gallery(samples, [image(2000, 1500, seed=i) for i in range(2)])
    sizes = np.array([picture.size for picture in pictures(html)])
    assert sizes.max() <= 320
    assert len(html) < 3_000_000
