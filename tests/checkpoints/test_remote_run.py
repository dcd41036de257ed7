"""Runs at a URL: what is found there."""

from __future__ import annotations

from pathlib import Path

import pytest

from bytelm.pipelines.checkpoints.remote_run import fetch_config


def test_a_url_without_a_runs_config_is_refused(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    with pytest.raises(ValueError, match=r"has no config\.json of a run: name its CONFIG"):
        fetch_config(url)
    (tmp_path / "config.json").write_text('{"train": {"steps": 1}}')
    assert fetch_config(url) == {"train": {"steps": 1}}
