"""Shared by the judges that use a model: its device, its longest input, batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sleep_trl.rewards.errors import RewardError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def choose_device(device: str) -> torch.device:
    """Return the device that a name stands for; `"auto"` is this process's GPU, else the CPU.

    The GPU's index is fixed here, since a reward with a time limit runs in another thread, where the current GPU is
    the first one.
    """
    import torch

    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def read_without_weights(what: str, model: str, revision: str | None = None) -> tuple[Any, Any]:
    """Return config and tokenizer of a judge's or reward's model.

    Args:
        what (`str`):
            What uses the model, for the message: "Judge 'lm'".
        model (`str`):
            Name on the Hugging Face hub or folder.
        revision (`str`, *optional*):
            Branch, tag or commit on the hub.

    Raises:
        `ValueError`: if there is no such model, or one of them does not load.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
        return config, AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), "")[:200].rstrip(".")
        raise ValueError(
            f"{what}: its model {model!r} cannot be read ({type(error).__name__}: {reason}). Check the name "
            f"or the folder, and the network."
        ) from error


def longest_input(model: Any, tokenizer: Any) -> int | None:
    """Return how many tokens a model reads, from its configuration and its tokenizer."""
    limits = [getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length]
    return min((limit for limit in limits if limit is not None and limit < 10**9), default=None)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in slices of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def check_batch_size(batch_size: int) -> None:
    """Raise `ValueError` unless a batch size is at least 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")


def whole_statements(texts: Sequence[str], contexts: Sequence[str] | None) -> list[str]:
    """Prepend each text's context."""
    if contexts is None:
        return list(texts)
    return [context + text for context, text in zip(contexts, texts, strict=True)]


def refuse_too_long(lengths: Sequence[int], limit: int | None, what: str, reader: str = "judge's model") -> None:
    """Raise if a text is longer than the model can read: nothing is truncated silently.

    Args:
        lengths (`Sequence[int]`):
            Lengths in tokens.
        limit (`int`, *optional*):
            Longest input of the model in tokens; `None` is no limit.
        what (`str`):
            What is too long, for the message: "lm: pair".
        reader (`str`, *optional*, defaults to `"judge's model"`):
            What cannot read it.

    Raises:
        `RewardError`: with the first text that is too long.
    """
    for index, length in enumerate(lengths):
        if limit is not None and length > limit:
            raise RewardError(
                f"{what} {index} has {length} tokens and the {reader} reads {limit}; choose one with a longer input, "
                f"or shorten the samples"
            )
