"""Sets that all models of an experiment are trained and scored on.

WORK/sets/NAME     the shard set of a folder of files
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from bytelm.modalities import MODALITIES
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
from bytelm.pipelines.shards.reader import ShardSet


class Corpora:
    """Sets of one modality each, packed into rows of one length."""

    def __init__(self, sets: Mapping[str, ShardSet], config: PlanConfig) -> None:
        """
        Raises:
            ValueError: a set holds more than one modality, or has no `val`.
        """
        self.config = config
        modality_of = {name: _modality(name, shard_set) for name, shard_set in sets.items()}
        self.by_modality = {
            modality: [name for name in sets if modality_of[name] == modality]
            for modality in MODALITIES
            if modality in modality_of.values()
        }
        """Names of the sets of each modality."""
        sources = [
            Source(shard_set, "train", 1 / len(self.by_modality[modality_of[name]]))
            for name, shard_set in sets.items()
        ]
        self.train = Plan(sources, self.config)
        """Modalities in equal bytes, and sets of one modality in equal bytes."""
        self.val = {name: Plan([Source(s, "val")], self.config) for name, s in sets.items()}

    def val_bytes(self) -> int:
        """Payload bytes of `val` of all sets."""
        return sum(sum(plan.source_bytes) for plan in self.val.values())


def prepare_sets(folders: Sequence[Path], work: Path, console: Console) -> dict[str, ShardSet]:
    """Make a shard set of each folder unless it exists; returns the sets by the folders' names.

    Raises:
        ValueError: two folders have one name, or `prepare` refuses a folder.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"two folders have the same name ({', '.join(names)}): rename one")
    sets = {}
    for name, folder in zip(names, folders, strict=True):
        out = work / "sets" / name
        prepare([folder], out, PrepareOptions(), console)
        sets[name] = ShardSet(out)
    return sets


def _modality(name: str, shard_set: ShardSet) -> str:
    """The one modality of a set."""
    held = [m for m in MODALITIES if any(shard.bytes[m] for shard in shard_set.shards)]
    if len(held) != 1:
        raise ValueError(
            f"{name} holds {' and '.join(held)}, and modalities are mixed in equal bytes by set: "
            "give a folder for each modality"
        )
    return held[0]
