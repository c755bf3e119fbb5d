"""Split a memory into windows of whole sentences that fit the teacher's context."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

CountTokens = Callable[[str], int]

# A sentence ends with punctuation and closing quotes, or at a line break; white space after it belongs to it.
SENTENCE = re.compile(r".*?(?:[.!?。!?…]+[\"'”’)\]]*(?:\s+|$)|\n+|$)", re.DOTALL)


def split_all(texts: Iterable[str], count_tokens: CountTokens, window: int, overlap: int) -> list[list[str]]:
    """Split each memory with [`split_windows`]. The overlap is limited to half a window."""
    return [split_windows(text, count_tokens, window, min(overlap, window // 2)) for text in texts]


def split_windows(text: str, count_tokens: CountTokens, window: int, overlap: int) -> list[str]:
    """
    Split a text into windows of whole sentences that together cover it.

    Args:
        text (`str`):
            The memory.
        count_tokens (`Callable[[str], int]`):
            Returns the length of a text in tokens, without special tokens.
        window (`int`):
            Maximum length of a window, in tokens.
        overlap (`int`):
            Maximum number of tokens, in whole sentences, that a window repeats from the previous one.

    Returns:
        `list[str]`: the windows. A sentence longer than a window is split between words.

    Raises:
        `ValueError`: if the overlap is not smaller than the window.
    """
    if overlap >= window:
        raise ValueError(
            f"The overlap of windows ({overlap} tokens) must be smaller than the window ({window} tokens). Lower it."
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
    """Split a text into sentences, which joined give the text again."""
    return [sentence for sentence in SENTENCE.findall(text) if sentence]


def _fit(sentence: str, count_tokens: CountTokens, window: int) -> list[str]:
    """Halve a sentence between words (a word between characters) until every piece fits a window."""
    if count_tokens(sentence) <= window or len(sentence) < 2:
        return [sentence]
    middle = len(sentence) // 2
    space = sentence.find(" ", middle)
    cut = space + 1 if 0 <= space < len(sentence) - 1 else middle
    return _fit(sentence[:cut], count_tokens, window) + _fit(sentence[cut:], count_tokens, window)
