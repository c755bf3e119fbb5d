"""Where a completion ends: at an end-of-sequence token, or before a stop string for models that seldom end by
themselves."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .engine import Completion, Sampling, StopReason


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that end a completion: the model's and the tokenizer's."""
    declared = model.generation_config.eos_token_id if model.generation_config else None
    ends = declared if isinstance(declared, list) else [declared]
    return sorted({i for i in [*ends, tokenizer.eos_token_id] if i is not None})


def complete(
    ids: list[int],
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    eos_ids: Sequence[int],
    logprobs: list[float] | None = None,
) -> Completion:
    """
    Cut off generated tokens after the end of the text, and return the completion with its stop reason.

    Args:
        ids (`list[int]`):
            Generated token ids, possibly beyond the end.
        sampling (`Sampling`):
            How they were generated.
        tokenizer (`PreTrainedTokenizerBase`):
            Decodes them.
        eos_ids (`Sequence[int]`):
            Tokens that end a completion.
        logprobs (`list[float]`, *optional*):
            Log probability of each id.
    """
    end = next((i for i, token in enumerate(ids) if token in eos_ids), None)
    reason: StopReason = "length" if end is None else "eos"
    ids = ids if end is None else ids[: end + 1]
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    if (position := first_stop(text, sampling.stop)) is not None:
        text, reason, ids = text[:position], "stop", ids[: tokens_before(ids, sampling.stop, tokenizer)]
    return Completion(ids, text.strip(), reason, None if logprobs is None else logprobs[: len(ids)])


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Return the position of the first stop string in a text, or `None`."""
    return min((position for string in stop if (position := text.find(string)) >= 0), default=None)


def tokens_before(ids: Sequence[int], stop: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """
    Return the number of tokens before the first stop string.

    Args:
        ids (`Sequence[int]`):
            Token ids of a completion.
        stop (`Sequence[str]`):
            The stop strings.
        tokenizer (`PreTrainedTokenizerBase`):
            Decodes them.

    Returns:
        `int`: the length of `ids` if no stop string occurs. A token that contains both the end of the text and the
        start of the stop string is counted, unless that part of the text is white space.
    """

    def decode(count: int) -> str:
        return str(tokenizer.decode(ids[:count], skip_special_tokens=True))

    text = decode(len(ids))
    if (end := first_stop(text, stop)) is None:
        return len(ids)
    kept = text[:end].rstrip()
    # From the end: until its last token, a character of several tokens decodes to replacement characters.
    count = next(n for n in range(len(ids), -1, -1) if kept.startswith(decode(n)))
    return next((n for n in range(count, len(ids)) if decode(n).startswith(kept)), len(ids))
