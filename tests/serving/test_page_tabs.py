"""The page has the tabs of what the model learned, and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.served import DATASET_INFO
from helpers.tiny_models import tiny_model

from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.serving.drawing import LoadedModel
from bytelm.pipelines.serving.jobs import JobQueue

pytest.importorskip("gradio", reason="gradio is not installed")
EARLIER = {
    key: value for key, value in DATASET_INFO.to_extra()["seen"].items() if key != "modalities"
}


def tabs(info: DatasetInfo) -> list[str]:
    from bytelm.pipelines.serving.page import build_page

    queue = JobQueue()
    page = build_page(LoadedModel(tiny_model("two"), info, "tiny"), queue)
    queue.close(30)
    components = page.get_config_file()["components"]
    return [c["props"]["label"] for c in components if c["type"] == "tabitem"]


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (
            replace(DATASET_INFO, modalities=frozenset({"text"}), pairs=frozenset()),
            ["Text", "Surprise map", "Compress"],
        ),
        (
            replace(DATASET_INFO, pairs=frozenset({("text", "audio")})),
            ["Image", "Sound", "Text", "Sound from a caption", "Surprise map", "Compress"],
        ),
        (
            DatasetInfo.from_extra({**DATASET_INFO.to_extra(), "seen": EARLIER}),
            [
                *("Image", "Sound", "Text", "Image from a caption", "Description"),
                *("Surprise map", "Compress"),
            ],
        ),
    ],
    ids=["texts alone", "transcripts", "a model of an earlier version"],
)
def test_a_model_has_the_tabs_of_what_it_learned(info: DatasetInfo, expected: list[str]) -> None:
    assert tabs(info) == expected
