"""The evaluation head of texts."""

from __future__ import annotations

from bytelm.modalities.evaluation_head import Breakdown, EvaluationHead, ScoredSegment
from bytelm.modalities.text_classes import PLACES, SCRIPTS, byte_classes, count_words


class TextHead(EvaluationHead):
    """Bits per byte, character and word; by script, and by place in a UTF-8 character.

    Characters are counted by their first bytes, words by `text_classes.count_words`.
    """

    counters = ("characters", "words")
    breakdowns = (
        Breakdown("script", "by script", "script", SCRIPTS),
        Breakdown("utf8_place", "by place in a UTF-8 character", "place", PLACES),
    )

    def update(self, segment: ScoredSegment) -> None:
        super().update(segment)
        is_first = segment.offset == 0
        script, place = byte_classes(segment.payload, is_first, segment.is_last)
        self.spread("script", script, segment.payload_units)
        self.spread("utf8_place", place, segment.payload_units)
        self.count("characters", int(((segment.payload & 0xC0) != 0x80).sum()))
        self.count("words", count_words(script, is_first))

    def figures(self) -> dict[str, float]:
        return {
            **super().figures(),
            "bits_per_character": self.bits_per(self.counted("characters")),
            "bits_per_word": self.bits_per(self.counted("words")),
        }
