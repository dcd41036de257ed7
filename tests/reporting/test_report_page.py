"""The page of a report: whole, self-contained, safe, and with what there is."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.run_folders import add_evaluation, add_records, documents, write_run

from bytelm.pipelines.reporting.markdown import summary
from bytelm.pipelines.reporting.report import make_report, numbers, page_path, read_views

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;{{7*7}}"


class Reader(HTMLParser):
    """Collects elements with their attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in self.raw else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.raw[self._inside].append(data)
        else:
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [a[name] or "" for _, a in self.elements if name in a]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with an evaluation of eight documents."""
    folder = write_run(tmp_path / "good")
    add_evaluation(folder, documents([180.0, 190, 200, 210, 220, 230, 240, 250]))
    return folder


def page_of(*runs: Path) -> str:
    return make_report(runs, runs[0] / "report.html", limit=0).read_text("utf-8")


def test_a_page_shows_curves_scores_maps_config_and_cost(run: Path) -> None:
    reader = Reader(page_of(run))
    anchors = reader.attributes("id")
    assert {"curves", "scores", "bits", "config", "data", "machine"} <= set(anchors)
    assert [link for link in reader.attributes("href") if link[1:] not in anchors] == []
    for words in ("2.150", "1.500–2.500", "by script", "Training loss", "steps: 40", "99.000"):
        assert words in reader.text
    assert reader.text.index("this model2.150") < reader.text.index("xz3.250")
    charts = [json.loads(c) for c in reader.attributes("data-chart")]
    assert {s["name"] for c in charts for s in c["series"]} >= {"train", "val", "loss"}


def test_a_map_of_one_bin_is_named_in_place_of_a_chart(run: Path) -> None:
    place = {"title": "by place in the UTF-8 character", "labels": ["only"], "shape": [1]}
    script = {"title": "by script", "labels": ["Latin", "digits"], "shape": [2]}
    maps = [{**script, "bits": [9.0, 5.0], "bytes": [2, 2]}, {**place, "bits": [9.0], "bytes": [4]}]
    add_evaluation(run, documents([180.0] * 9), maps={"text": maps})
    text = Reader(page_of(run)).text
    words = "Not drawn, since all bytes are in one bin: by place in the UTF-8 character (only)."
    assert words in text
    assert text.count("by place in the UTF-8 character") == 1


def test_versions_of_codecs_and_missing_ones_stand_below_their_tables(run: Path) -> None:
    versions = {"xz": "Python 3.11.2", "gzip": "gzip 1.12", "bzip2": "Python 3.11.2"}
    scored = documents([180.0] * 9)
    add_evaluation(run, scored, codec_versions=versions, codecs_missing={"zstd": "apt install it"})
    text = Reader(page_of(run)).text
    assert "Codecs by Python 3.11.2 (xz, bzip2), gzip 1.12." in text
    assert "Not measured: zstd (apt install it)." in text


def test_a_page_loads_nothing_and_allows_only_its_own_script(run: Path) -> None:
    page = page_of(run)
    reader = Reader(page)
    for name in ("src", "href", "srcset", "action"):
        assert all(value.startswith(("#", "data:")) for value in reader.attributes(name))
    assert not re.search(r"@import|url\(", page)
    (policy,) = (a["content"] for tag, a in reader.elements if tag == "meta" and "http-equiv" in a)
    assert policy
    assert policy.startswith("default-src 'none'")
    for kind in ("script", "style"):
        (content,) = reader.raw[kind]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert not re.search(r"script-src[^;]*unsafe", policy)


def test_hostile_names_values_and_keys_stay_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "<b>run", sets=[HOSTILE])
    config = json.loads((folder / "config.json").read_text())
    config["train"][HOSTILE] = HOSTILE
    (folder / "config.json").write_text(json.dumps(config))
    add_records(
        folder,
        {"kind": "skipped", "step": 41, "loss": "nan", "documents": [HOSTILE]},
        {"kind": "damage", "step": 41, "bytes": 3, "cause": HOSTILE},
        {"kind": "eval", "step": 41, HOSTILE: {"bits_per_byte": 1.0}},
    )
    add_evaluation(
        folder,
        documents([100.0, 200.0], HOSTILE, HOSTILE),
        codecs={"text": {HOSTILE: 1.0}},
        codecs_missing={HOSTILE: HOSTILE},
        maps={
            "text": [
                {
                    "name": "x",
                    "title": HOSTILE,
                    "axis": "x",
                    "labels": [HOSTILE, "b"],
                    "shape": [2],
                    "bits": [1.0, 2.0],
                    "bytes": [1, 2],
                }
            ]
        },
    )
    other = write_run(tmp_path / "other")
    add_evaluation(other, documents([100.0, 200.0], HOSTILE, HOSTILE))
    for runs in ([folder], [folder, other]):
        reader = Reader(page_of(*runs))
        assert len(reader.raw["script"]) == 1
        assert [tag for tag, _ in reader.elements if tag == "img"] == []
        assert not [n for _, a in reader.elements for n in a if n.startswith("on")]
        assert HOSTILE in reader.text


def test_hostile_names_have_no_meaning_in_markdown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run|`x`")
    add_evaluation(folder, documents([100.0, 200.0]), codecs={"text": {"a|b\n# c <b>": 1.0}})
    text = summary(read_views([folder], 0))
    (row,) = (line for line in text.splitlines() if line.startswith("| a"))
    assert row.startswith("| a\\|b \\# c \\<b\\> | 1.000 |")
    assert "\\`x\\`" in text.splitlines()[0]


@pytest.mark.parametrize("kept", [("config.json",), ("metrics.jsonl",), ("checkpoints",)])
def test_a_run_with_parts_missing_has_a_page_that_says_so(
    kept: tuple[str, ...], tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "checkpoints" / "step-00000040").mkdir(parents=True)
    for path in folder.iterdir():
        if path.name not in kept:
            path.rename(tmp_path / path.name)
    text = Reader(page_of(folder)).text
    assert "Not on this page" in text
    assert ("metrics.jsonl is missing" in text) == ("metrics.jsonl" not in kept)
    assert ("config.json is missing" in text) == ("config.json" not in kept)


def test_lines_that_are_no_record_are_counted_and_one_that_is_being_written_is_not(
    tmp_path: Path,
) -> None:
    folder = write_run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train"}\n[1, 2]\n\x00\x00\n{"kind": "train", "step": 41, "lo')
    views = read_views([folder], 0)
    assert views[0].data.metrics.last_step == 40
    assert any("3 lines of metrics.jsonl" in line for line in views[0].missing)


def test_values_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    record = {"kind": "train", "step": 41, "loss": None, "grad_norm": None}
    add_records(folder, record, {"kind": "eval", "step": 41, "text": {"bits_per_byte": None}})
    assert "NaN" not in page_of(folder)


def test_a_model_that_diverged_has_a_page(tmp_path: Path) -> None:
    folder, nothing = write_run(tmp_path / "run"), float("nan")
    figures = {"bits_per_byte": nothing, "coded_bits_per_byte": nothing, "payload_bytes": 200}
    add_evaluation(
        folder,
        documents([nothing, 100.0]),
        model={"text": figures, "total": figures},
        intervals={},
        with_weights={"text": {"bits_per_byte": nothing, "weight_bytes": 5}},
    )
    assert "not a number: the model diverged" in page_of(folder, write_run(tmp_path / "other"))
    assert summary(read_views([folder], 0))


def test_a_folder_without_a_run_is_refused_with_a_way_out(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="bytelm train --out"):
            read_views([folder], 0)
    with pytest.raises(ValueError, match="is a folder"):
        page_path([tmp_path], tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        page_path([tmp_path], tmp_path / "missing" / "page.html")


def test_several_runs_have_differences_and_what_differs_in_config_and_data(
    run: Path, tmp_path: Path
) -> None:
    other = write_run(tmp_path / "elsewhere" / "good", steps=80, sets=["gone", "more"], seed=3)
    add_evaluation(other, documents([170.0, 185, 190, 205, 210, 225, 230, 245]), step=80)
    reader = Reader(page_of(run, other))
    assert f"{other} against {run}" in reader.text
    assert "-0.075" in reader.text  # 20 of 240 bits of each document fewer, on average 7.5 of 100
    for words in ("train.seed03", "train.steps4080", "data.sets[1].path–more"):
        assert words in reader.text
    values = numbers(read_views([run, other], 0))
    (difference,) = values["differences"]
    assert difference["modalities"][0]["change"] == pytest.approx(-0.075)
    assert values["config_differences"]["train.seed"] == ["0", "3"]
    assert json.dumps(values, allow_nan=False)


def test_ten_thousand_documents_and_many_steps_make_a_page_of_a_few_megabytes(
    tmp_path: Path,
) -> None:
    folder = write_run(tmp_path / "run", steps=20_000)
    bits = [100.0 + number % 700 for number in range(10_000)]
    add_evaluation(folder, documents(bits), step=20_000)
    assert len(page_of(folder)) < 4_000_000
