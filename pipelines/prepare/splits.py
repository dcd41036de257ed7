"""Which split a document is in: the rules for names of folders and files, and for small sets.

A document's split is the first of these that says one: a table of its dataset, the split folder
that it lies in, the name of its tar or table, the hash of its key.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence

from bytelm.pipelines.prepare.documents import hash_position
from bytelm.pipelines.shards.format import SPLITS

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""The split that a word names, as Hugging Face's datasets read it."""
SMALLEST_DIVIDED = 3
"""Documents from which on every split has one."""

_NO_LETTERS = re.compile(r"[^a-z]+")


def split_of_word(name: str) -> str | None:
    """The split that a folder's whole name says: `Train`, `validation`, `dev`."""
    return SPLIT_NAMES.get(name.lower())


def split_of_folder(name: str) -> str | None:
    """The split that the first or the last word of a folder's name says: `train2017`,
    `dev-clean`, `digits_test`. None where these words name two splits."""
    words = _NO_LETTERS.split(name.lower())
    return _only_split([words[0], words[-1] or words[0]])


def split_of_file_name(name: str) -> str | None:
    """The split that a word in the name of a tar or table says: `train-00000-of-00004.parquet`,
    `digits-test.tar`. None where words name two splits."""
    return _only_split(_NO_LETTERS.split(os.path.basename(name).lower()))


def _only_split(words: Sequence[str]) -> str | None:
    named = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return named.pop() if len(named) == 1 else None


def divide_folder(subfolders: Sequence[str], is_source: bool) -> dict[str, str]:
    """The split of each split folder in a folder.

    A folder is divided where it has a folder of train beside one of val or test. A source is
    divided by its folder `train` alone, too.

    Args:
        subfolders: names of the folders in it.
        is_source: whether it is a source, and no folder below one.
    Returns:
        splits by name; empty where the folder is not divided.
    """
    splits = {name: split for name in subfolders if (split := split_of_folder(name))}
    is_divided = "train" in splits.values() and len(set(splits.values())) > 1
    if is_divided:
        return splits
    return {n: s for n, s in splits.items() if is_source and split_of_word(n) == s == "train"}


def divide_sources(names: Sequence[str]) -> list[str | None]:
    """The splits of sources whose own folders are split folders, as in `data/train data/val`.

    They count where one of them is train and another is not.
    """
    splits = [split_of_word(name) for name in names]
    named = {split for split in splits if split}
    return splits if "train" in named and len(named) > 1 else [None] * len(names)


def fill_empty_splits(
    digests: Sequence[bytes],
    splits: Sequence[str],
    shares: tuple[float, float, float],
    others: Counter[str],
) -> list[str]:
    """The splits of a small set, so that none is empty.

    From SMALLEST_DIVIDED documents on, an empty split gets the document whose hash is nearest to
    its share, from the largest split. All of fewer documents go to train. Neither depends on the
    order of the documents.

    Args:
        digests: SHA-256 of the keys of documents whose split the hash decides.
        splits: their splits by `split_of`.
        shares: of train, val and test. A split without a share stays empty.
        others: number of documents in each split that names decide.
    """
    filled = list(splits)
    if len(filled) + others.total() < SMALLEST_DIVIDED:
        return ["train"] * len(filled) if shares[0] > 0 else filled
    for number, split in enumerate(SPLITS):
        counts = others + Counter(filled)
        movable = Counter(s for s in filled if counts[s] > 1)
        if counts[split] or not shares[number] or not movable:
            continue
        largest = max(sorted(movable), key=lambda s: movable[s])
        begin = sum(shares[:number])
        end = begin + shares[number]
        nearest = min(
            (i for i, s in enumerate(filled) if s == largest),
            key=lambda i: (_distance(hash_position(digests[i]), begin, end), digests[i]),
        )
        filled[nearest] = split
    return filled


def _distance(position: float, begin: float, end: float) -> float:
    return max(begin - position, position - end, 0.0)
