"""What a night trains on: the teacher's samples about the memories (writing.py), and self-replay, which protects what
the model already knows. filters.py says which completions are dropped."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..rollout import Completion, Engine, Progress, Sampling
from .drops import Drops
from .filters import apply_filters
from .parts import Part
from .prompts import Prompter
from .windows import token_windows

HELD_OUT = 8  # general samples held out from training, to measure agreement with the base


@dataclass(frozen=True)
class Window:
    """A part of a memory that the teacher sees at once.

    Args:
        memory_id (`str`):
            Id of the memory.
        source (`str`):
            What names the memory in prompts: its title, or how it begins.
        text (`str`):
            What the teacher reads.
        index (`int`, *optional*, defaults to `0`):
            Number among the windows of its memory.
        sentences (`tuple[str, ...]`, *optional*):
            The sentences that state something, which the teacher is asked about one by one.
    """

    memory_id: str
    source: str
    text: str
    index: int = 0
    sentences: tuple[str, ...] = ()

    def around(self, sentence: str | None) -> str:
        """Return a sentence after the one before it, which has the names for its pronouns; without one, the text."""
        if sentence not in self.sentences:
            return sentence or self.text
        place = self.sentences.index(sentence)
        return " ".join(self.sentences[max(0, place - 1) : place + 1])


@dataclass(frozen=True)
class Sample:
    """A prompt for the student, the teacher's version of it, and the teacher's answer.

    `prompt` and `prompt_ids` lack the privileged context; `teacher_prompt_ids` contains it. `reference_ids` ends with
    the end-of-sequence token if the teacher's answer did. `stop` holds the strings that end a completion, exclusive.
    """

    part: Part
    memory_id: str
    template: str
    prompt: str
    prompt_ids: list[int]
    teacher_prompt_ids: list[int]
    reference: str
    reference_ids: list[int]
    stop: list[str] = field(default_factory=list)
    window: int = 0  # index of the window it was written about
    sentence: str | None = None  # the sentence that the request was about
    request: str = ""  # what was asked, if the template lets the teacher write requests
    is_quoted: bool = False  # whether the sentence took the place of the teacher's answer

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class WrittenSamples:
    """Samples, and the number of completions dropped by reason (see `filters.FILTERS`) with examples."""

    samples: list[Sample] = field(default_factory=list)
    dropped: Drops = field(default_factory=Drops)

    def __add__(self, other: WrittenSamples) -> WrittenSamples:
        return WrittenSamples(self.samples + other.samples, self.dropped + other.dropped)


def write_general(
    engine: Engine,
    prompter: Prompter,
    count: int,
    max_new_tokens: int,
    seed: int,
    texts: Sequence[str] = (),
    progress: Progress | None = None,
) -> WrittenSamples:
    """Let the model write without any memory in its prompt: the general part of self-replay (ours).

    Truncated samples are kept, since training reads them in parts.

    Args:
        engine (`Engine`):
            Generates the samples.
        prompter (`Prompter`):
            Renders the prompts.
        count (`int`):
            Number of samples, before filtering.
        max_new_tokens (`int`):
            Maximum length of a sample, in tokens.
        seed (`int`):
            Seed for sampling.
        texts (`Sequence[str]`, *optional*):
            Texts that a chat model answers and a base model continues, used in turn; without any, a base model starts
            from nothing, and a chat model is asked for a short text.
        progress (`Callable[[int], None]`, *optional*):
            Called with the number of finished generations.

    Returns:
        `WrittenSamples`: samples of part `"general"` and what was dropped.
    """
    prompts = [prompter.general(text) for text in texts] or [prompter.general()]
    starts = [prompts[i % len(prompts)] for i in range(count)]
    sampling = Sampling(max_new_tokens, 1.0, (), seed)
    completions = engine.generate([prompt + prefix for prompt, _, prefix in starts], sampling, progress)
    samples = []
    for (prompt, text, prefix), completion in zip(starts, completions, strict=True):
        ids = prefix + completion.ids
        reference = str(prompter.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        samples.append(Sample("general", "", "general", text, prompt, prompt, reference, ids))
    pairs = [(s, Completion(s.reference_ids, s.reference, "length")) for s in samples]
    kept, dropped = apply_filters(pairs, lambda s, _: (s.prompt, s.reference), keep_truncated=True)
    return WrittenSamples([sample for sample, _ in kept], dropped)


def read_plain(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], count: int, tokens: int, seed: int
) -> list[Sample]:
    """Cut texts into pieces that the model reads as they are, with nothing before them: general samples for which
    nothing is generated (ours). What is replayed is the model's distribution along them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        texts (`Sequence[str]`):
            The texts.
        count (`int`):
            Maximum number of pieces. If the texts have more, they are drawn at random.
        tokens (`int`):
            Maximum length of a piece, in tokens behind the first, which is the prompt.
        seed (`int`):
            Seed for the order.
    """
    pieces = token_windows(texts, tokenizer, tokens + 1)
    return [
        Sample("general", "", "plain", tokenizer.decode(start), start, start, tokenizer.decode(rest), rest)
        for piece in random.Random(seed).sample(pieces, min(count, len(pieces)))
        for start, rest in [(piece[:1], piece[1:])]
    ]


def write_earlier(
    prompts: Sequence[dict[str, Any]],
    engine: Engine,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    keep_truncated: bool = False,
    progress: Progress | None = None,
) -> WrittenSamples:
    """Let the model answer the prompts of earlier nights from its weights: the other part of self-replay (ours).

    Args:
        prompts (`Sequence[dict]`):
            Rows with `memory_id`, `template`, `prompt`, `prompt_ids` and `stop`, the strings that end an answer.
        engine (`Engine`):
            Generates the answers.
        max_new_tokens (`int`):
            Maximum length of an answer, in tokens.
        temperature (`float`):
            Sampling temperature.
        seed (`int`):
            Seed for sampling.
        keep_truncated (`bool`, *optional*, defaults to `False`):
            Whether answers that were cut at `max_new_tokens` are kept.
        progress (`Callable[[int], None]`, *optional*):
            Called with the number of finished generations.

    Returns:
        `WrittenSamples`: samples of part `"earlier"` and what was dropped.
    """
    pairs: list[tuple[dict[str, Any], Completion]] = []
    for number, stop in enumerate(sorted({tuple(row["stop"]) for row in prompts})):
        rows = [row for row in prompts if tuple(row["stop"]) == stop]
        sampling = Sampling(max_new_tokens, temperature, stop, seed + 100 * number)
        pairs += zip(rows, engine.generate([row["prompt_ids"] for row in rows], sampling, progress), strict=True)
    kept, dropped = apply_filters(pairs, lambda row, c: (row["prompt"], c.text), keep_truncated=keep_truncated)
    samples = []
    for row, c in kept:
        prompt = row["prompt"], row["prompt_ids"], row["prompt_ids"]  # student and teacher see the same
        samples.append(Sample("earlier", row["memory_id"], row["template"], *prompt, c.text, c.ids, row["stop"]))
    return WrittenSamples(samples, dropped)
