"""Words of a text in any script, as checks of what was written compare them (ours)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import regex

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that write no spaces between words, for a set of `regex`."""

_PART = regex.compile(
    rf"(?V1)(?P<unspaced>[{UNSPACED}](?:[{UNSPACED}\p{{M}}])*)"
    rf"|[[\p{{L}}\p{{N}}]--[{UNSPACED}]][[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]]*"
)
_UNSPACED = regex.compile(f"[{UNSPACED}]")
_CHARACTER = regex.compile(r"\X")
_MARKS = regex.compile("[\u064b-\u0652\u0670\u0640]")  # vowel signs of Arabic, tatweel: written or not
_ARABIC_PREFIX = regex.compile(r"[وف]?(?:[بكل]?ال|لل|[بكل])?")
_ENDING = 3  # letters of a Korean word that may be particles
_SHORTEST_STEM = 2
_SHORTEST_INFLECTED = 4
_PER_WORD = 2.5  # characters of a word in scripts without spaces, about


def words_of(text: str) -> list[str]:
    """Return the words of a text without their case, and in scripts without spaces each pair of neighboring characters.

    Args:
        text (`str`):
            Any text. Punctuation and the vowel signs of Arabic are left out.
    """
    return list(_words(_MARKS.sub("", text.casefold())))


def has_words(text: str, least: int) -> bool:
    """Return whether a text has at least so many words, in scripts without spaces about."""
    spaced = unspaced = 0
    for part in _PART.finditer(_MARKS.sub("", text)):
        if run := part["unspaced"]:
            unspaced += len(_CHARACTER.findall(run))
        else:
            spaced += 1
        if spaced + unspaced / _PER_WORD >= least:
            return True
    return least <= 0


def share_in(words: list[str], text: str) -> float:
    """Return the share of words that stand in a text; 1 if there is no word.

    A word of four letters or more may have an ending there, as in languages that inflect. In scripts without spaces a
    word may stand anywhere, and in Arabic and Korean without the particles that are written onto it.
    """
    plain = _MARKS.sub("", text.casefold())
    there = set(_words(plain))

    def stands(word: str) -> bool:
        if word in there:
            return True
        forms = list(forms_of(word))
        if _UNSPACED.match(word) or len(forms) > 1:
            return any(form in plain for form in forms)
        return len(word) >= _SHORTEST_INFLECTED and any(other.startswith(word) for other in there)

    return sum(map(stands, words)) / len(words) if words else 1.0


def _words(text: str) -> Iterator[str]:
    for part in _PART.finditer(text):
        if (run := part["unspaced"]) is None:
            yield part[0]
            continue
        characters = _CHARACTER.findall(run)
        pairs = pairwise(characters)
        yield from (first + second for first, second in pairs)
        if len(characters) == 1:
            yield run


def forms_of(word: str) -> Iterator[str]:
    """Yield a word, and what is left of it without what may be particles."""
    yield word
    if "\u0620" <= word[0] <= "\u064a":
        stem = word[_ARABIC_PREFIX.match(word).end() :]  # type: ignore[union-attr]
        if len(stem) > _SHORTEST_STEM:
            yield stem
    elif "\uac00" <= word[0] <= "\ud7a3":
        yield word[: max(_SHORTEST_STEM, len(word) - _ENDING)]
