"""Where a text ends, for models that do not end by themselves: before the first of some strings."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Return the position of the first of the strings in a text, or `None` if it has none of them."""
    return min((position for string in stop if (position := text.find(string)) >= 0), default=None)


def tokens_before(ids: Sequence[int], stop: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """
    Return how many tokens stand before the first of the strings.

    Args:
        ids (`Sequence[int]`):
            Token ids of a completion.
        stop (`Sequence[str]`):
            The strings that end it.
        tokenizer (`PreTrainedTokenizerBase`):
            Decodes them.

    Returns:
        `int`: the length of `ids` if none of the strings occurs. A token that spells the end of the text and the
        beginning of the string is left out.
    """

    def decode(count: int) -> str:
        return str(tokenizer.decode(ids[:count], skip_special_tokens=True))

    text = decode(len(ids))
    if (end := first_stop(text, stop)) is None:
        return len(ids)
    kept = len(text[:end].rstrip())
    return next(n for n in range(len(ids) + 1) if len(decode(n + 1)) > kept)
