"""Cutting a memory into windows that fit the teacher's context, at sentence boundaries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

CountTokens = Callable[[str], int]

# A sentence ends with its punctuation and closing quotes, or with a line; the white space behind it belongs to it.
SENTENCE = re.compile(r".*?(?:[.!?。!?…]+[\"'”’)\]]*(?:\s+|$)|\n+|$)", re.DOTALL)


def split_all(texts: Iterable[str], count_tokens: CountTokens, window: int, overlap: int) -> list[list[str]]:
    """Split each memory into windows, as [`split_windows`] does. Small windows overlap by half of one at most."""
    return [split_windows(text, count_tokens, window, min(overlap, window // 2)) for text in texts]


def split_windows(text: str, count_tokens: CountTokens, window: int, overlap: int) -> list[str]:
    """
    Split a text into windows of whole sentences that together cover all of it.

    Args:
        text (`str`):
            The memory.
        count_tokens (`Callable[[str], int]`):
            Length of a text in tokens, without special tokens.
        window (`int`):
            Longest window, in tokens.
        overlap (`int`):
            Tokens of whole sentences that a window repeats of the one before it, at most.

    Returns:
        `list[str]`: the windows. A sentence longer than a window is split between words.

    Raises:
        `ValueError`: if the overlap is not smaller than the window.
    """
    if overlap >= window:
        raise ValueError(
            f"The overlap of windows ({overlap} tokens) must be smaller than the window ({window} tokens)."
        )
    if count_tokens(text) <= window:
        return [text]
    pieces = [piece for sentence in split_sentences(text) for piece in _fit(sentence, count_tokens, window)]
    lengths = [count_tokens(piece) for piece in pieces]
    windows: list[str] = []
    start = 0
    while True:
        end, total = start, 0
        while end < len(pieces) and (end == start or total + lengths[end] <= window):
            total += lengths[end]
            end += 1
        windows.append("".join(pieces[start:end]).strip())
        if end == len(pieces):
            return windows
        repeated, back = 0, end
        while back - 1 > start and repeated + lengths[back - 1] <= overlap:
            back -= 1
            repeated += lengths[back]
        start = back


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences; joined, they are the text again."""
    return [sentence for sentence in SENTENCE.findall(text) if sentence]


def _fit(sentence: str, count_tokens: CountTokens, window: int) -> list[str]:
    """Halve a sentence between words (a word between characters) until every piece fits a window."""
    if count_tokens(sentence) <= window or len(sentence) < 2:
        return [sentence]
    middle = len(sentence) // 2
    space = sentence.find(" ", middle)
    cut = space + 1 if 0 <= space < len(sentence) - 1 else middle
    return _fit(sentence[:cut], count_tokens, window) + _fit(sentence[cut:], count_tokens, window)
