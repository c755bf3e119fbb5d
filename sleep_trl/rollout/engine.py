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
            Sampling temperature; `0` is greedy decoding. Only `top_p` truncates the distribution (no top-k).
        stop (`tuple[str, ...]`, *optional*):
            Stop strings; a completion ends before the first one.
        seed (`int`, *optional*, defaults to `0`):
            Seed of this call; earlier draws have no effect.
        logprobs (`bool`, *optional*, defaults to `False`):
            Also return the log probability of each token under the distribution it was drawn from: after the
            temperature, and renormalized over the tokens that `top_p` keeps.
        top_p (`float`, *optional*, defaults to `1.0`):
            Sample from the smallest set of most probable tokens whose probabilities, after the temperature, add up to
            at least this value, in (0, 1]. At `1` the distribution is not truncated; greedy decoding is not affected.

    Raises:
        `ValueError`: if `top_p` is outside (0, 1].
    """

    max_new_tokens: int
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: bool = False
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1 (1 does not truncate), got {self.top_p}.")


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
