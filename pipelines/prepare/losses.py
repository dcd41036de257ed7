"""How much of the sources was lost, and whether that is too much.

A loss weighs what it loses. Three shares are counted, and none may be too large:

- of the files, with members of tars and rows of tables;
- of their bytes, since a tar that was cut off is one file. Files of a kind that is no document,
  such as a program, weigh by their number alone;
- of the pairs: documents of several parts of which one was refused, and captions that fit no file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bytelm.modalities.detect import claimed_modality
from bytelm.pipelines.prepare.captions import SIDECAR_SUFFIXES
from bytelm.pipelines.prepare.documents import (
    CAPTION_ALONE,
    HARMLESS_REASONS,
    SkippedFile,
    SourceDocument,
)
from bytelm.pipelines.prepare.sources import FoundDocuments
from bytelm.pipelines.shards.set_summary import NAMES_SHOWN, reason_line

WEIGHTLESS_REASONS = ("unknown kind", "compressed", "over the limit")
"""Reasons that keep out whole files by their kind or by the user's limit, so that their bytes tell
nothing about what was lost of the rest."""
SMALLEST_JUDGED = {"files": 1, "bytes": 10_000, "pairs": 3}
"""Smallest loss whose share is judged: in a handful of small files a share of bytes or pairs means
little beside that of the files."""

_PARTNER = {"media": "caption", "caption": "media"}
_WAY_OUT = re.compile(r"`|pip install|first$")
"""Details that name a command or an act, rather than describe a file."""


@dataclass(frozen=True)
class Loss:
    """A part of a whole, in files, bytes or pairs."""

    lost: int
    total: int

    @property
    def share(self) -> float:
        """From 0 to 1; 0 of nothing."""
        return min(self.lost / self.total, 1.0) if self.total else 0.0


@dataclass(frozen=True)
class Losses:
    """Losses of the sources. The field names stand in manifests."""

    files: Loss
    bytes: Loss
    pairs: Loss

    def as_report(self) -> dict[str, Any]:
        """The losses for a manifest."""
        return asdict(self)


def count_losses(found: FoundDocuments, skipped: Sequence[SkippedFile]) -> Losses:
    """Count what was lost of the sources.

    Args:
        found: the documents before they were decoded.
        skipped: what did not become part of a document, then and now.
    """
    files = found.files + found.unseen_files
    size = found.size + found.unseen_bytes
    harmless = [s for s in skipped if s.reason in HARMLESS_REASONS and s.reason != CAPTION_ALONE]
    bad = [s for s in skipped if s.reason not in HARMLESS_REASONS]
    weightless = [s for s in bad if s.reason in WEIGHTLESS_REASONS]
    lost_size = sum(s.size for s in bad) - sum(s.size for s in weightless)
    total_size = size - sum(s.size for s in (*harmless, *weightless))
    return Losses(
        files=Loss(sum(s.count for s in bad), files - sum(s.count for s in harmless)),
        bytes=Loss(lost_size, max(total_size, lost_size)),
        pairs=_pair_loss(skipped, found.documents),
    )


def _pair_loss(skipped: Sequence[SkippedFile], documents: Sequence[SourceDocument]) -> Loss:
    """Pairs of which a part was skipped, and captions that fit no file."""
    bad = {s.name for s in skipped if s.reason not in HARMLESS_REASONS}
    alone = {s.name for s in skipped if s.reason == CAPTION_ALONE}
    roles = {(_stem(name), _role(name)) for name in bad}
    widowed = {(stem, _PARTNER[role]) for stem, role in roles if role}
    pairs = broken = 0
    for document in documents:
        names = {part.name for part in document.parts}
        is_pair = len(document.parts) > 1
        is_broken = (is_pair and not bad.isdisjoint(names)) or (
            bool(widowed) and any((_stem(name), _role(name)) in widowed for name in names)
        )
        pairs += is_pair or is_broken
        broken += is_broken
        if alone:
            alone -= names
    return Loss(broken + len(alone), pairs + len(alone))


def _role(name: str) -> str | None:
    """The part of a pair that a file's name claims to be: "media", "caption", or None."""
    if claimed_modality(name):
        return "media"
    return "caption" if name.lower().endswith(SIDECAR_SUFFIXES) else None


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def check_losses(losses: Losses, skipped: Sequence[SkippedFile], max_share: float) -> None:
    """Raise ValueError where one of the shares that were lost is above `max_share`."""
    kinds = {"files": losses.files, "bytes": losses.bytes, "pairs": losses.pairs}
    judged = {kind: loss for kind, loss in kinds.items() if loss.lost >= SMALLEST_JUDGED[kind]}
    too_large = [kind for kind, loss in judged.items() if loss.share > max_share]
    if not too_large:
        return
    kind = "files" if "files" in too_large else too_large[0]
    loss = judged[kind]
    causes = [s for s in skipped if s.reason not in HARMLESS_REASONS or kind == "pairs"]
    raise ValueError(
        f"{loss.lost:,} of {loss.total:,} {kind} ({loss.share:.1%}) are bad, more than "
        f"{max_share:.0%}: {list_reasons(causes)}; mend or remove them, or allow more with "
        "--max-bad-share"
    )


def list_reasons(skipped: Sequence[SkippedFile]) -> str:
    """The number of skipped files for each reason, their first names, and the ways out that their
    details name."""
    lines = [reason_line(reason, group) for reason, group in group_reasons(skipped).items()]
    ways_out = dict.fromkeys(s.detail for s in skipped if _WAY_OUT.search(s.detail))
    shown = "".join(f"; {detail}" for detail in list(ways_out)[:NAMES_SHOWN])
    return (", ".join(lines) or "the sources are empty") + shown


def group_reasons(skipped: Sequence[SkippedFile]) -> dict[str, dict[str, Any]]:
    """The files, entries, bytes and first names of each reason, in the order of the reasons."""
    reasons: dict[str, dict[str, Any]] = {}
    for entry in skipped:
        reason = reasons.setdefault(
            entry.reason, {"count": 0, "entries": 0, "bytes": 0, "names": []}
        )
        reason["count"] += entry.count
        reason["entries"] += 1
        reason["bytes"] += entry.size
        if len(reason["names"]) < NAMES_SHOWN:
            reason["names"].append(entry.name)
    return dict(sorted(reasons.items()))
