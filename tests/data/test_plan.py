"""The plan: every byte once, shares by bytes, random access, and everything that decides rows."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.sets import SetMaker, audio, image, text
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.pipelines.data.mixture import MERGED_ROWS
from bytelm.pipelines.data.packing import PlanConfig, best_fit, shuffled
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.source_order import PlannedRow
from bytelm.pipelines.shards.reader import ShardSet

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}


def config(**changes: Any) -> PlanConfig:
    values: dict[str, Any] = {"row_length": 256, "patch": 8, "views": VIEWS}
    return PlanConfig(**{**values, **changes})


def payload_ranges(row: PlannedRow) -> Iterator[tuple[int, int, int]]:
    """(member's offset in the tar, first payload byte, their end) of each span of a row."""
    columns = (row.index["offset"], row.spans.payload_start, row.spans.payload_stop)
    yield from zip(*(column.tolist() for column in columns), strict=True)


def delivered(plan: Plan, epoch: int) -> Counter[tuple[int, str, int, int]]:
    """How often each payload byte comes: (source, shard, member's offset, byte of the payload)."""
    count: Counter[tuple[int, str, int, int]] = Counter()
    for number in range(plan.rows(epoch)):
        row = plan.row(epoch, number)
        opening = np.array([8 if m == 0 else 16 for m in row.index["modality"]])  # P = 8
        assert (opening + row.spans.length).sum() <= plan.config.row_length
        assert set(np.diff(row.spans.document, prepend=-1).tolist()) <= {0, 1}
        for member, start, stop in payload_ranges(row):
            count.update((row.source, row.shard.name, member, i) for i in range(start, stop))
    return count


@pytest.mark.parametrize("packing", ["best_fit", "concat_then_split"])
@pytest.mark.parametrize("pair_order", ["stored", "drawn"])
@pytest.mark.parametrize("shuffle_window", [1, 2, 100])
def test_an_epoch_delivers_every_byte_once(
    mixed_set: ShardSet, packing: str, pair_order: str, shuffle_window: int
) -> None:
    plan = Plan(
        [Source(mixed_set)],
        config(packing=packing, pair_order=pair_order, shuffle_window=shuffle_window),
    )
    total = sum(sum(s.bytes.values()) for s in mixed_set.split("train"))
    for epoch in (0, 1):
        count = delivered(plan, epoch)
        assert set(count.values()) == {1}
        assert len(count) == total


def rows_of(plan: Plan, epoch: int) -> list[list[tuple[int, int, int]]]:
    return [list(payload_ranges(plan.row(epoch, r))) for r in range(plan.rows(epoch))]


def test_rows_are_found_in_any_order_and_in_another_process(make_set: SetMaker) -> None:
    """Two sources, so that rows have to be merged, over three epochs."""
    sets = [
        make_set([[text(bytes(n))] for n in range(1, 200, 3)], "a", 5),
        make_set([[audio(n)] for n in range(1, 900, 11)], "b", 4),
    ]
    plan = Plan(
        [Source(s, weight=w) for s, w in zip(sets, (3.0, 1.0), strict=True)],
        config(shuffle_window=2),
    )
    forward = [rows_of(plan, epoch) for epoch in range(3)]
    assert sum(map(len, forward)) > 3 * MERGED_ROWS
    other = pickle.loads(pickle.dumps(plan))
    positions = [(e, r) for e in range(3) for r in range(len(forward[e]))]
    for i in np.random.default_rng(1).permutation(len(positions))[:300]:
        epoch, row = positions[i]
        assert list(payload_ranges(other.row(epoch, row))) == forward[epoch][row]


def test_seed_and_epoch_change_the_order_and_nothing_else_does(mixed_set: ShardSet) -> None:
    rows = rows_of(Plan([Source(mixed_set)], config()), 0)
    assert rows == rows_of(Plan([Source(ShardSet(mixed_set.location))], config()), 0)
    assert rows != rows_of(Plan([Source(mixed_set)], config()), 1)
    assert rows != rows_of(Plan([Source(mixed_set)], config(seed=1)), 0)


def test_the_hash_names_all_that_decides_rows(make_set: SetMaker) -> None:
    first = make_set([[text(b"abc")]], "first")
    second = make_set([[text(b"abd")]], "second")
    plans = [
        Plan([Source(first)], config()),
        Plan([Source(second)], config()),
        Plan([Source(first), Source(second)], config()),
        Plan([Source(first, weight=1.0), Source(second, weight=2.0)], config()),
        *(
            Plan([Source(first)], config(**change))
            for change in (
                {"seed": 1},
                {"row_length": 264},
                {"patch": 16},
                {"packing": "concat_then_split"},
                {"pair_order": "drawn"},
                {"shuffle_window": 3},
                {"views": {**VIEWS, "audio": "u8"}},
            )
        ),
    ]
    assert len({p.hash for p in plans}) == len(plans)
    assert Plan([Source(first)], config()).hash == plans[0].hash


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (5.0, 1.0, 2.0)])
@pytest.mark.parametrize("packing", ["best_fit", "concat_then_split"])
def test_shares_stay_within_a_row_of_the_target(
    make_set: SetMaker, weights: tuple[float, ...], packing: str
) -> None:
    """Documents differ 1000x in size; sources end at different times and begin again."""
    rng = np.random.default_rng(3)
    sets = [
        make_set([[text(bytes(int(n)))] for n in rng.integers(3, 60, 80)], "text", 9),
        make_set([[image(60, 50, seed=i)] for i in range(3)], "image", 1),
        make_set([[audio(int(n), seed=i)] for i, n in enumerate(rng.integers(5, 900, 30))], "a", 4),
    ]
    sources = [Source(s, weight=w) for s, w in zip(sets, weights, strict=True)]
    plan = Plan(sources, config(packing=packing, shuffle_window=2))
    target = np.array(weights) / sum(weights)
    amount = np.zeros(3)
    rows = [0, 0, 0]
    for number in range(plan.rows(0)):
        row = plan.row(0, number)
        rows[row.source] += 1
        amount[row.source] += sum(stop - start for _, start, stop in payload_ranges(row))
        assert np.abs(amount - amount.sum() * target).max() <= plan.config.row_length
    assert plan.source_rows(0) == rows
    count = delivered(plan, 0)
    per_source = [{k for k in count if k[0] == i} for i in range(3)]
    totals = [sum(sum(s.bytes.values()) for s in shards.split("train")) for shards in sets]
    assert [len(s) for s in per_source] == totals, "every source is delivered whole"
    assert any({count[k] for k in s} == {1} for s in per_source), "one source is delivered once"


def test_sources_without_weights_pass_once(make_set: SetMaker) -> None:
    sets = [
        make_set([[text(bytes(n))] for n in range(1, 90)], "a", 5),
        make_set([[audio(n)] for n in range(1, 300, 7)], "b", 2),
    ]
    plan = Plan([Source(s) for s in sets], config(shuffle_window=3))
    assert set(delivered(plan, 0).values()) == {1}


def test_positions_go_on_into_the_next_epoch(mixed_set: ShardSet) -> None:
    plan = Plan([Source(mixed_set)], config())
    rows = plan.rows(0)
    positions = plan.positions(0, rows - 1)
    assert [next(positions) for _ in range(2)] == [(0, rows - 1), (1, 0)]
    assert next(plan.positions(0, rows)) == (1, 0)


def test_pairs_come_in_both_orders_when_drawn(make_set: SetMaker) -> None:
    pairs = [[text(b"name"), image(3, 3, seed=i)] for i in range(20)]
    shard_set = make_set(pairs)
    for order, expected in (("stored", {"text"}), ("drawn", {"text", "image"})):
        plan = Plan([Source(shard_set)], config(pair_order=order))
        first = set()
        for r in range(plan.rows(0)):
            row = plan.row(0, r)
            begins = np.flatnonzero(np.diff(row.spans.document, prepend=-1))
            first |= {("text", "image")[m] for m in row.index["modality"][begins]}
            assert row.spans.is_last.sum() == len(begins)
        assert first == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=60))
def test_best_fit_overfills_no_row_and_wastes_little(patches: list[int]) -> None:
    lengths = sorted((8 * p for p in patches), reverse=True)
    row_of_piece, rows = best_fit(np.array(lengths), 96, 8)
    fill = np.bincount(row_of_piece, weights=lengths, minlength=rows)
    assert fill.max() <= 96
    assert fill.min() > 0
    least = -(-sum(lengths) // 96)
    assert rows <= int(np.ceil(11 / 9 * max(least, 1))) + 4  # best fit decreasing, of the optimum


def test_shuffled_is_the_same_in_every_version() -> None:
    """Recorded once: a run that resumes under another numpy has to find the same rows."""
    assert shuffled(8, 0, 1, "rows").tolist() == [3, 5, 4, 6, 7, 1, 0, 2]
    assert sorted(shuffled(1000, 5).tolist()) == list(range(1000))


def test_impossible_plans_name_cause_and_way_out(make_set: SetMaker, tmp_path: Path) -> None:
    shard_set = make_set([[text(b"abc")], [audio(5)]])
    with pytest.raises(ValueError, match="no multiple of the patch"):
        config(row_length=100)
    with pytest.raises(ValueError, match="use 24 or more"):
        config(row_length=16)
    with pytest.raises(ValueError, match="choose one of best_fit, concat_then_split"):
        config(packing="loose")
    with pytest.raises(ValueError, match="text has no view 'utf16'"):
        config(views={**VIEWS, "text": "utf16"})
    match = r"no documents in split 'test', and \d+ in train.*: prepare it from more files"
    with pytest.raises(ValueError, match=match):
        Plan([Source(shard_set, "test")], config())
    with pytest.raises(ValueError, match="to every set of the mixture, or to none"):
        Plan([Source(shard_set, weight=1.0), Source(shard_set)], config())
    with pytest.raises(ValueError, match="above 0"):
        Plan([Source(shard_set, weight=0.0)], config())
    with pytest.raises(ValueError, match="--keep-files"):
        Plan([Source(shard_set)], config(views={**VIEWS, "audio": "file"}))
