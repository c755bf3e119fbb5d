"""What the night asks of whatever generates text: prompts in, completions out, the same for every engine."""

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
            Longest completion, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature; `0` is greedy decoding. The distribution is never truncated (no top-k, no top-p).
        stop (`tuple[str, ...]`, *optional*):
            Strings before which a completion ends.
        seed (`int`, *optional*, defaults to `0`):
            Seed of this call, whatever was drawn before.
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
    """One generated text: its token ids (a final end-of-sequence token included), the text, why it ended, and the log
    probability of each token if it was asked for."""

    ids: list[int]
    text: str
    stop_reason: StopReason
    logprobs: list[float] | None = None


class Engine(Protocol):
    """Anything that generates with the model as it is at that moment: whichever experts are in view take part."""

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[Completion]:
        """Generate one completion a prompt, in the prompts' order, on all processes alike.

        Args:
            prompts (`Sequence[list[int]]`):
                Token ids of each prompt, special tokens included.
            sampling (`Sampling`):
                How to generate.
            progress (`Callable[[int], None]`, *optional*):
                Called with the number of prompts just finished by this process.
        """
        ...

    def close(self) -> None:
        """End what the engine started."""
        ...
