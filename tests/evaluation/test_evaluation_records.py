"""The file of an evaluation in its run's folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from helpers.evaluations import FIGURES, made_up_evaluation

from bytelm.pipelines.evaluation.records import (
    Evaluation,
    keep_evaluation,
    read_evaluation,
)

FILE = "step-00000100-val-plain.json"


def test_an_evaluation_is_read_back(tmp_path: Path) -> None:
    evaluation = made_up_evaluation()
    path = keep_evaluation(tmp_path, evaluation)
    assert path == tmp_path / "evaluations" / FILE
    assert read_evaluation(path) == evaluation
    assert json.loads(path.read_text()) == evaluation.to_dict()


def test_only_an_evaluation_of_the_same_documents_is_replaced(tmp_path: Path) -> None:
    whole = made_up_evaluation()
    other_set = [{"path": "sets/other", "root": "1" * 64}]
    keep_evaluation(tmp_path, whole)
    sample = keep_evaluation(tmp_path, made_up_evaluation({"limit": 5}))
    other = keep_evaluation(tmp_path, made_up_evaluation({"sets": other_set}))
    later = keep_evaluation(tmp_path, made_up_evaluation({"date": "2027"}))
    again = keep_evaluation(tmp_path, made_up_evaluation({"limit": 5, "date": "2027"}))
    keep_evaluation(tmp_path, made_up_evaluation({"split": "test"}))
    assert again == sample != other
    assert later.name == FILE
    assert read_evaluation(later).about["date"] == "2027"
    assert len(list((tmp_path / "evaluations").iterdir())) == 4


def test_figures_that_are_no_numbers_are_null(tmp_path: Path) -> None:
    model = {"image": {**FIGURES, "bits_per_byte": math.nan}}
    path = keep_evaluation(tmp_path, made_up_evaluation(model=model))
    assert "NaN" not in path.read_text()
    assert read_evaluation(path).model["image"]["bits_per_byte"] is None


def test_other_files_are_refused_by_name_and_replaced(tmp_path: Path) -> None:
    path = keep_evaluation(tmp_path, made_up_evaluation())
    values = json.loads(path.read_text())
    for content, message in (
        ("{", "cannot be read"),
        (json.dumps({**values, "format": 99}), "format 99"),
        (json.dumps({"format": 1}), "no whole evaluation"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message) as error:
            read_evaluation(path)
        assert FILE in str(error.value)
    keep_evaluation(tmp_path, made_up_evaluation())
    assert isinstance(read_evaluation(path), Evaluation)
