"""Cues: a few neighboring words of a sentence, by which a student is asked for the whole of it (ours).

A model that learns a sentence under a single prompt can recite it, but does not find it when a question comes from
somewhere else. So each sentence is learned under several prompts, with a cue each. That takes no teacher who asks well.
"""

from __future__ import annotations

import random

import regex

from .words import UNSPACED

LENGTHS = (2, 4, 3, 5)  # words of a cue, in turn
_LONG = 4  # letters of a word that says what a sentence is about

# In scripts without spaces, two characters count as a word.
_WORD = regex.compile(
    rf"(?V1)(?:[{UNSPACED}]\p{{M}}*){{1,2}}"
    rf"|[[\p{{L}}\p{{N}}]--[{UNSPACED}]](?:[^\s{UNSPACED}]*[[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}]])?"
)


def cues_of(sentence: str, count: int) -> list[str]:
    """
    Choose parts of a sentence, spread over it.

    Args:
        sentence (`str`):
            The sentence, in any script.
        count (`int`):
            How many parts to choose.

    Returns:
        `list[str]`: at most `count` different parts of two to five words each, and of at most half of the sentence. A
        short sentence has fewer.
    """
    words = list(_WORD.finditer(sentence))
    cues = list[str]()
    for turn in range(count):
        length = min(LENGTHS[turn % len(LENGTHS)], max(1, len(words) // 2))
        last = len(words) - length
        wanted = round(last * turn / max(1, count - 1))
        for first in sorted(range(last + 1), key=lambda place: abs(place - wanted)):
            part = words[first : first + length]
            cue = sentence[part[0].start() : part[-1].end()]
            if cue not in cues and any(map(_says_something, part)):
                cues.append(cue)
                break
    return cues


def hint_of(title: str, number: int) -> str:
    """Return some words of a title, drawn by `number`, with one that says something if there is one: who asks about a
    document seldom gives its whole title."""
    words, rng = list(_WORD.finditer(title)), random.Random(f"{number} {title}")
    if not words:
        return title
    kept = rng.choice([word for word in words if _says_something(word)] or words)
    shown = [word[0] for word in words if word is kept or rng.random() < 0.5]
    return (" " if any(map(str.isspace, title)) else "").join(shown)


def _says_something(word: regex.Match[str]) -> bool:
    """Whether a word is long, has a digit, or a capital letter inside a sentence; in scripts without case each does."""
    text = word[0]
    is_named = text != text.lower() and word.start() > 0
    return len(text) >= _LONG or is_named or any(map(str.isdigit, text)) or text.upper() == text.lower()
