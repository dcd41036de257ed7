"""The sample of documents that `--limit` takes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers.sets import SetMaker, image, text, write_set

from bytelm.modalities.base import Sample
from bytelm.pipelines.evaluation.selection import choose_documents, document_count
from bytelm.pipelines.shards.reader import ShardSet

DOCUMENTS = [[text(b"document %d" % number)] for number in range(40)]


def contents(sets: list[ShardSet]) -> set[bytes]:
    """The bytes of every document of some sets of texts."""
    return {
        shard_set.read(shard, row)
        for shard_set in sets
        for shard in shard_set.split("train")
        for row in shard_set.index(shard)
    }


def test_samples_are_nested_and_do_not_depend_on_the_shards(tmp_path: Path) -> None:
    few = write_set(tmp_path / "few", DOCUMENTS, per_shard=20)
    many = write_set(tmp_path / "many", DOCUMENTS, per_shard=3)
    turned = write_set(tmp_path / "turned", DOCUMENTS[::-1], per_shard=7)
    smaller: set[bytes] = set()
    for limit in (1, 7, 39, 40, 100):
        chosen = contents(choose_documents([few], "train", limit))
        assert len(chosen) == min(limit, 40)
        assert smaller <= chosen
        assert chosen == contents(choose_documents([many], "train", limit))
        assert chosen == contents(choose_documents([turned], "train", limit))
        smaller = chosen


def test_a_sample_is_no_run_of_neighbours(tmp_path: Path) -> None:
    whole = write_set(tmp_path / "set", DOCUMENTS, per_shard=10)
    (chosen,) = choose_documents([whole], "train", 20)
    numbers = sorted(int(c.split()[1]) for c in contents([chosen]))
    assert sum(numbers) / 20 == pytest.approx(19.5, abs=6)
    assert len({number // 10 for number in numbers}) == 4
    for part in (chosen, pickle.loads(pickle.dumps(chosen))):
        assert document_count([part], "train") == 20
        assert len(contents([part])) == 20


def test_sets_are_sampled_evenly_and_documents_whole(make_set: SetMaker) -> None:
    def pair(seed: int) -> list[Sample]:
        return [text(b"a caption"), image(3, 2, seed=seed)]

    large = make_set(DOCUMENTS, "large")
    small = make_set([[text(b"only")], [text(b"two")]], "small")
    pairs = make_set([pair(seed) for seed in range(9)], "pairs")
    for limit, expected in ((1, [1]), (3, [1, 1, 1]), (9, [4, 2, 3]), (51, [40, 2, 9])):
        chosen = choose_documents([large, small, pairs], "train", limit)
        assert [document_count([part], "train") for part in chosen] == expected
    (shard, *_) = chosen[-1].split("train")
    index = chosen[-1].index(shard)
    assert (np.bincount(index["document"]) == 2).all()


def test_a_set_without_documents_stays(make_set: SetMaker) -> None:
    """Its reader says what is wrong with it."""
    empty = make_set([[text(b"train")]], "empty")
    full = make_set([[text(b"train")]], "full", val=DOCUMENTS)
    assert choose_documents([empty, full], "val", 3)[0] is empty
