"""Classes of a text's bytes: the script of their character, and their place in it.

n bytes
"""

from __future__ import annotations

import functools
import unicodedata
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bytelm.modalities.base import Bytes
from bytelm.modalities.evaluation_head import Ints

Bools = npt.NDArray[np.bool_]

_NAME_STARTS = {
    "LATIN": "Latin",
    "GREEK": "Greek",
    "CYRILLIC": "Cyrillic",
    "ARMENIAN": "Armenian",
    "HEBREW": "Hebrew",
    "ARABIC": "Arabic",
    "DEVANAGARI": "Devanagari",
    "BENGALI": "Bengali",
    "TAMIL": "Tamil",
    "THAI": "Thai",
    "GEORGIAN": "Georgian",
    "CJK": "Han",
    "HIRAGANA": "Hiragana",
    "KATAKANA": "Katakana",
    "HANGUL": "Hangul",
}
"""Scripts by the first word of the Unicode names of their letters."""
SPACE, INVALID, CUT = "white space", "invalid UTF-8", "cut by a piece's edge"
SCRIPTS = (
    *_NAME_STARTS.values(),
    *("other letters", "numbers", "punctuation", "symbols and marks", SPACE, "control characters"),
    *(INVALID, CUT),
)
PLACES = (
    *(f"byte {k} of {length}" for length in range(1, 5) for k in range(1, length + 1)),
    *(INVALID, CUT),
)
_FIRST_PLACE = {2: 1, 3: 3, 4: 6}
"""Index in PLACES of the first byte of a character, by its length."""
_SECOND_BYTES = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}
"""Second bytes that are allowed, where not all of 0x80 to 0xBF are (RFC 3629)."""
_LENGTHS = np.zeros(256, np.uint8)
_LENGTHS[:0x80], _LENGTHS[0xC2:0xE0], _LENGTHS[0xE0:0xF0], _LENGTHS[0xF0:0xF5] = 1, 2, 3, 4
_UNKNOWN = 255


class ByteClasses(NamedTuple):
    """Classes of bytes, each [n]."""

    script: Bytes
    """Index in SCRIPTS."""
    place: Bytes
    """Index in PLACES."""


def byte_classes(text: Bytes, is_first: bool = True, is_last: bool = True) -> ByteClasses:
    """Classify the bytes of a text, or of a part of one.

    Args:
        text: [n].
        is_first, is_last: whether the text begins, and ends, with this part; if not, bytes of a
            character that the edge may cut belong to the class CUT.
    """
    script, place = _script_table().take(text), np.zeros(len(text), np.uint8)
    high = np.flatnonzero(text >= 0x80)
    if not len(high):
        return ByteClasses(script, place)
    script[high], place[high] = SCRIPTS.index(INVALID), PLACES.index(INVALID)
    lengths = _LENGTHS[text[high]]
    for length in (2, 3, 4):
        first = high[lengths == length]
        first = first[first + length <= len(text)]
        if not len(first):
            continue
        characters = text[first[:, None] + np.arange(length)]
        is_valid = _is_valid(characters)
        first, characters = first[is_valid], characters[is_valid]
        scripts = _scripts(_code_points(characters))
        for k in range(length):
            script[first + k], place[first + k] = scripts, _FIRST_PLACE[length] + k
    for edge in (_cut_start(text, is_first), _cut_end(text, is_last)):
        script[edge], place[edge] = SCRIPTS.index(CUT), PLACES.index(CUT)
    return ByteClasses(script, place)


def count_words(script: Bytes, is_first: bool = True) -> int:
    """Words that begin in a text, or a part of one: runs of characters that are not white space.

    A word that begins with the first byte of a further part is not counted, since the bytes before
    it are unknown.

    Args:
        script: [n] as `byte_classes` gives it.
        is_first: whether the text begins with this part.
    """
    is_space = script == SCRIPTS.index(SPACE)
    begins_word = is_space[:-1] & ~is_space[1:]
    return int(np.count_nonzero(begins_word)) + bool(is_first and len(script) and not is_space[0])


def _is_valid(characters: Bytes) -> Bools:
    """[k] whether sequences of bytes [k, length] with a valid first byte are characters."""
    is_valid: Bools = ((characters[:, 1:] & 0xC0) == 0x80).all(axis=1)
    if characters.shape[1] > 2:
        first, second = characters[:, 0], characters[:, 1]
        for limited, (low, high) in _SECOND_BYTES.items():
            is_valid &= (first != limited) | ((second >= low) & (second <= high))
    return is_valid


def _code_points(characters: Bytes) -> Ints:
    """[k] code points of valid characters [k, length], length 2 to 4."""
    length = characters.shape[1]
    points = characters[:, 0].astype(np.int32) & (0x7F >> length)
    for k in range(1, length):
        points = points << 6 | (characters[:, k] & 0x3F)
    return points


def _cut_start(text: Bytes, is_first: bool) -> slice:
    """Bytes that may go on with a character of the part before."""
    leading = 0
    while not is_first and leading < min(3, len(text)) and text[leading] & 0xC0 == 0x80:
        leading += 1
    return slice(0, leading)


def _cut_end(text: Bytes, is_last: bool) -> slice:
    """Bytes of a character that may go on in the next part."""
    for back in range(1, min(3, len(text)) + 1):
        if text[-back] & 0xC0 != 0x80:
            is_cut = not is_last and _LENGTHS[text[-back]] > back
            return slice(len(text) - back, len(text) if is_cut else len(text) - back)
    return slice(len(text), len(text))


def _scripts(points: Ints) -> Bytes:
    """[k] index in SCRIPTS of code points."""
    table = _script_table()
    scripts = table[points]
    unknown = points[scripts == _UNKNOWN]
    if not len(unknown):
        return scripts
    for point in set(unknown.tolist()):
        table[point] = _script_of(chr(point))
    return table[points]


@functools.cache
def _script_table() -> Bytes:
    """Index in SCRIPTS by code point; _UNKNOWN above ASCII until a text has the character."""
    table = np.full(0x110000, _UNKNOWN, np.uint8)
    table[:0x80] = [_script_of(chr(point)) for point in range(0x80)]
    return table


def _script_of(character: str) -> int:
    """Index in SCRIPTS of a character."""
    category = unicodedata.category(character)[0]
    if character.isspace():
        name = SPACE
    elif category in "LM":
        first_word = unicodedata.name(character, "").split(" ")[0]
        name = _NAME_STARTS.get(first_word, "other letters" if category == "L" else "")
    else:
        name = {"N": "numbers", "P": "punctuation", "C": "control characters"}.get(category, "")
    return SCRIPTS.index(name or "symbols and marks")
