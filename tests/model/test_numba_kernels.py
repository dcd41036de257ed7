"""Kernels of numba: kept on disk where there is a folder, announced where they take long."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from bytelm.model import numba_kernels
from bytelm.model.codec_features.incremental import BatchFeatures
from bytelm.model.codec_features.kernels import compile_kernels, push_ids, read_row
from bytelm.model.codec_features.vectorized import compute_codec_features


def test_long_compilation_is_announced_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numba_kernels._announce.cache_clear()
    monkeypatch.setattr(numba_kernels, "NOTICE_SECONDS", 60.0)
    with numba_kernels.compiling():
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(numba_kernels, "NOTICE_SECONDS", 0.02)
    for _ in range(2):
        with numba_kernels.compiling():
            time.sleep(0.2)
    notice = "compiling kernels, once on this machine (up to a minute)\n"
    assert capsys.readouterr().err == notice
    numba_kernels._announce.cache_clear()
    monkeypatch.setenv("LOCAL_RANK", "1")
    with numba_kernels.compiling():
        time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_a_kernel_without_a_folder_for_its_cache_is_compiled_all_the_same() -> None:
    namespace: dict[str, Callable[[int], int]] = {}
    # Numba finds no folder for code without a file.
    exec("def twice(x):\n    return 2 * x", namespace)
    assert numba_kernels.kernel(namespace["twice"])(21) == 42


def test_codec_features_compile_each_kernel_once() -> None:
    compile_kernels()
    ids = torch.randint(0, 256, (2, 64))
    compute_codec_features(ids, torch.zeros(2, 1), 8)
    compute_codec_features(ids.short().t().contiguous().t(), torch.zeros(2, 8).long(), 8)
    rows = BatchFeatures(2, 8, 100)
    rows.push_row(0, ids[0, ::2])
    rows.push(ids[:, 3])
    rows.push(ids[0, :1].expand(2))
    assert len(read_row.signatures) == len(push_ids.signatures) == 1
