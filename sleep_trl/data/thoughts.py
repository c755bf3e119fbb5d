"""What a reasoning model thinks before it answers, `<think>...</think>`: neither learned nor recorded, unless asked for
(ours). What a night teaches are answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..rollout import Completion, Engine, Progress, Sampling

BEGIN, END = "<think>", "</think>"


def without_thoughts(text: str) -> str:
    """Return a text without the thoughts in it and the white space after them. A thought whose beginning is missing,
    since the chat template wrote it, begins with the text; one that does not end takes the rest."""
    kept, rest = "", text
    while END in rest or BEGIN in rest:
        before, begin, after = rest.partition(BEGIN)
        if END in before or not begin:
            kept, rest = "", rest.partition(END)[2].lstrip()
            continue
        kept += before
        rest = after.partition(END)[2].lstrip() if END in after else ""
    return kept + rest


def has_thoughts(text: str) -> bool:
    """Return whether there is a thought in a text, or a part of one."""
    return BEGIN in text or END in text


class WithoutThoughts:
    """An engine whose completions begin after their last thought. One that ends inside a thought is empty.

    Args:
        engine (`Engine`):
            Generates.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
    """

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase) -> None:
        self.engine, self.tokenizer = engine, tokenizer

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[Completion]:
        from ..distributed.progress import echo  # imports torch, which the endpoint does without

        written = self.engine.generate(prompts, sampling, progress)
        answers = [self._answer(completion) for completion in written]
        if count := sum(not a.text and has_thoughts(c.text) for a, c in zip(answers, written, strict=True)):
            echo(
                f"{count} of {len(answers)} completions end inside a thought (<think>) and count as empty. Turn "
                f"thinking off (chat_template_kwargs), or allow longer ones",
                "yellow",
            )
        return answers

    def close(self) -> None:
        self.engine.close()

    def _answer(self, completion: Completion) -> Completion:
        """Return a completion from the first token of its answer on."""
        if not has_thoughts(completion.text):
            return completion
        text = without_thoughts(completion.text).strip()
        if not text:
            return replace(completion, ids=[], text="", logprobs=None)
        ids, thoughts = completion.ids, completion.text.count(END)
        first = next(n for n in range(len(ids) + 1) if self._decode(ids[:n]).count(END) == thoughts)
        while not self._decode(ids[first : first + 1]).strip():  # the white space after it
            first += 1
        logprobs = completion.logprobs and completion.logprobs[first:]
        return replace(completion, ids=ids[first:], text=text, logprobs=logprobs)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))
