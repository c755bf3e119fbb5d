"""The interface of engines: prompts in, completions out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

StopReason = Literal["eos", "stop", "length"]
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Sampling:
    """How to generate.

    Args:
        max_new_tokens (`int`):
            Maximum length of a completion, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature; `0` is greedy decoding. The distribution is not truncated (no top-k, no top-p).
        stop (`tuple[str, ...]`, *optional*):
            Stop strings; a completion ends before the first one.
        seed (`int`, *optional*, defaults to `0`):
            Seed of this call; earlier draws have no effect.
        logprobs (`bool`, *optional*, defaults to `False`):
            Also return the log probability of each token under the distribution it was drawn from.
    """

    max_new_tokens: int
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: bool = False


@dataclass(frozen=True)
class Completion:
    """One generated text: its token ids (including a final end-of-sequence token), the text, why it ended, and, if
    requested, the log probability of each token."""

    ids: list[int]
    text: str
    stop_reason: StopReason
    logprobs: list[float] | None = None


class Engine(Protocol):
    """Anything that generates with the current model: the experts in view take part."""

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[Completion]:
        """Generate one completion per prompt, in the order of the prompts. All processes call it and get all results.

        Args:
            prompts (`Sequence[list[int]]`):
                Token ids of each prompt, including special tokens.
            sampling (`Sampling`):
                How to generate.
            progress (`Callable[[int], None]`, *optional*):
                Called with the number of prompts that this process has just finished.
        """
        ...

    def close(self) -> None:
        """Release what the engine started."""
        ...
