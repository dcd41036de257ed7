"""The model card of an exported model: README.md with the front matter that the hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from bytelm.modalities.base import FILE_VIEW
from bytelm.model.config import ModelConfig
from bytelm.model.flops import costs
from bytelm.pipelines.checkpoints.model_files import THIS_FOLDER
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.reporting.markdown import escaped, markdown_table
from bytelm.pipelines.reporting.report_tables import codec_tables, pair_table, result_table
from bytelm.pipelines.reporting.run_data import SetFacts
from bytelm.pipelines.reporting.run_view import evaluation_note
from bytelm.pipelines.runtime.environment import versions
from bytelm.pipelines.shards.set_summary import split_lines

UNKNOWN_LICENSE = "other"
"""The hub's id of a licence that is none of its list."""
SNIPPET_VALUES = 3_072
SNIPPET_SAMPLES = 1_024
"""Sub-pixels of the image, and samples of the sound, that the snippet draws, at most: seconds on a
CPU."""
SHOWN_CHARACTERS = 400
TASKS = {"text": "text-generation", "image": "unconditional-image-generation"}
"""The hub's tasks of models of one modality."""
_TEMPLATE = "model_card.md.j2"


@dataclass(frozen=True)
class CardFacts:
    """The facts of a model card."""

    name: str
    config: ModelConfig
    info: DatasetInfo
    step: int
    license: str | None
    """An id of the hub's list of licences; None if nobody named one."""
    sets: Sequence[SetFacts]
    evaluation: Mapping[str, Any] | None
    """The evaluation of these weights, as `bytelm evaluate --json` prints it."""
    samples: Path | None
    """The folder of the exported samples."""


def model_card(facts: CardFacts) -> str:
    """The card of a model in Markdown, with its front matter in YAML."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown: `escaped` is its filter
    )
    environment.filters["escaped"] = escaped
    records = _sample_records(facts.samples)
    return environment.get_template(_TEMPLATE).render(
        front_matter=yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True),
        name=facts.name,
        sentence=_sentence(facts),
        snippet=load_snippet(facts.info),
        version=versions()["bytelm"],
        evaluation=evaluation_note(facts.evaluation) if facts.evaluation else "",
        tables=_tables(facts.evaluation),
        data=[_set_line(entry) for entry in facts.sets] or ["unknown: the run keeps no config"],
        limits=_limits(facts),
        license_sentence=_license_sentence(facts.license),
        has_beginnings=any(record["given_share"] for record in records),
        samples=[_sample(facts.samples, record) for record in records if facts.samples],
    )


def front_matter(facts: CardFacts) -> dict[str, Any]:
    """The metadata of the card, by the keys that the hub knows."""
    modalities = sorted(facts.info.modalities)
    task = TASKS.get(modalities[0]) if len(modalities) == 1 else "any-to-any"
    values: dict[str, Any] = {"license": facts.license or UNKNOWN_LICENSE}
    if facts.license is None:
        values["license_name"] = "unknown"
    values["library_name"] = "bytelm"
    if task:
        values["pipeline_tag"] = task
    values["tags"] = ["bytelm", "megabyte", "byte-level", *modalities]
    if facts.sets:
        values["datasets"] = [_set_id(entry.path, entry.root) for entry in facts.sets]
    if facts.evaluation:
        values["metrics"] = ["bits_per_byte"]
        results = _results(facts.evaluation, task or "other")
        values["model-index"] = [{"name": facts.name, "results": results}]
    return values


def load_snippet(info: DatasetInfo) -> str:
    """Python that loads the model from the folder of the card and uses it."""
    lines = ["import bytelm", "", f"model = bytelm.load({THIS_FOLDER})"]
    drawn = [name for name in ("text", "image", "audio") if name in info.modalities]
    for name in drawn:
        view = info.views.get(name)
        if view == FILE_VIEW or view in ("deep", "s24be"):
            continue
        if name == "text":
            lines.append('print(model.generate("text", max_bytes=200)[0].decode())')
            lines.append('print(model.score("A sentence.").sum(), "nats")')
        elif name == "image":
            lines.append(f'model.generate("image"{_size(info)})[0].save("image.png")')
        else:
            lines.append(f'samples, rate = model.generate("audio"{_seconds(info)})[0]')
    lines.append('packed = model.compress(b"any bytes")')
    lines.append('assert model.decompress(packed) == b"any bytes"')
    return "\n".join(lines)


def _size(info: DatasetInfo) -> str:
    """The argument `size` of a frequent size of images; smaller where that takes long to draw."""
    if not info.headers.get("image"):
        return ""
    header = info.headers["image"][0]
    values = header.width * header.height * header.channels
    scale = min(1.0, (SNIPPET_VALUES / values) ** 0.5)
    width, height = (max(1, int(side * scale)) for side in (header.width, header.height))
    return f", size=({width}, {height})"


def _seconds(info: DatasetInfo) -> str:
    """The argument `seconds` of a sound that is soon drawn at any rate of the training set."""
    headers = info.headers.get("audio", ())
    most = max((header.rate * header.channels for header in headers), default=SNIPPET_SAMPLES)
    return f", seconds={min(1.0, SNIPPET_SAMPLES / most):.2g}"


def _sentence(facts: CardFacts) -> str:
    parameters = sum(cost.parameters for cost in costs(facts.config))
    kinds = ", ".join(sorted(facts.info.modalities))
    return (
        f"A MEGABYTE model of {parameters:,} parameters that reads and writes raw bytes ({kinds}), "
        f"trained by bytelm for {facts.step:,} steps. Its context has {facts.config.context:,} "
        f"bytes, in patches of {facts.config.patch}."
    )


def _tables(evaluation: Mapping[str, Any] | None) -> list[str]:
    if evaluation is None:
        return []
    pairs = pair_table(evaluation)
    tables = [result_table(evaluation), *codec_tables(evaluation), *([pairs] if pairs else [])]
    return [markdown_table(table) for table in tables]


def _results(evaluation: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    """An entry of the hub's `model-index` for each modality and for all."""
    about = evaluation["about"]
    name = ", ".join(_set_name(entry["path"]) for entry in about["sets"])
    kind = "_".join(_set_id(entry["path"], entry["root"]) for entry in about["sets"])
    return [
        {
            "task": {"type": task},
            "dataset": {"name": f"{name} ({modality})", "type": kind, "split": about["split"]},
            "metrics": [
                {
                    "type": "bits_per_byte",
                    "name": f"bits per byte, {modality}",
                    "value": round(figures["bits_per_byte"], 4),
                }
            ],
        }
        for modality, figures in evaluation["model"].items()
        if figures.get("bits_per_byte") is not None
    ]


def _set_name(path: str) -> str:
    """The last part of a set's path: the rest concerns the machine it was trained on."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _set_id(path: str, root: str) -> str:
    """A name of a set that no dataset of the hub has."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", _set_name(path)).strip("-.") or "set"
    return f"{name}-{root[:8] or 'unknown'}"


def _set_line(entry: SetFacts) -> str:
    """A set's name, root hash, and amount by split as far as its report has it."""
    if entry.report is None:
        return f"{_set_name(entry.path)}: cannot be read any more"
    line = f"{_set_name(entry.path)}, root hash {entry.root[:16]}"
    if "splits" not in entry.report:  # no report of `prepare`
        return line
    splits = [part for part in split_lines(entry.report) if ": empty" not in part]
    return f"{line}: {'; '.join(splits)}"


def _limits(facts: CardFacts) -> list[str]:
    absent = sorted({"text", "image", "audio"} - facts.info.modalities)
    lines = [
        "It knows what its training data holds, repeats mistakes and prejudices of it, and may "
        "repeat parts of it word for word.",
        "What it generates may be false or offensive, and nothing filters it.",
        f"It sees at most {facts.config.context:,} bytes at once; longer documents are read in "
        "pieces, of which none sees the one before it.",
        "Files that it has compressed need these very weights to be restored.",
    ]
    if absent:
        lines.append(f"It was trained on no {' and no '.join(absent)}, and is no use for that.")
    return lines


def _license_sentence(name: str | None) -> str:
    if name is None:
        return (
            "No licence was named: ask the authors of this model and of its data before you use or "
            "share it."
        )
    return f"The model is licensed as {name}."


# --- samples ---


def _sample_records(folder: Path | None) -> list[dict[str, Any]]:
    if folder is None:
        return []
    records: list[dict[str, Any]] = json.loads((folder / "samples.json").read_text("utf-8"))
    return records


def _sample(folder: Path, record: Mapping[str, Any]) -> str:
    """A sample in Markdown: a picture, a player, or the text."""
    path = f"{folder.name}/{record['file']}"
    title = f"{escaped(record['title'])}, seed {record['seed']}"
    if record["modality"] == "image":
        return f"![{title}]({path})"
    if record["modality"] == "audio":
        return f"[{title}]({path})"
    text = (folder / record["file"]).read_bytes().decode("utf-8", "replace")[:SHOWN_CHARACTERS]
    quoted = "\n".join(f"    {line}" for line in text.splitlines())
    return f"{title}:\n\n{quoted}"


def _template(name: str) -> str:
    folder = resources.files("bytelm.pipelines.reporting") / "templates"
    return (folder / name).read_text("utf-8")
