"""Optional packages that are missing, broken or there."""

from __future__ import annotations

from pathlib import Path

import pytest

from bytelm.pipelines.runtime.optional_packages import can_import


def test_a_package_whose_import_fails_is_as_good_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whale_broken.py").write_text("raise AttributeError('made for another numpy')\n")
    (tmp_path / "whale_whole.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert not can_import("whale_missing")
    assert not can_import("whale_broken")
    assert can_import("whale_whole")
