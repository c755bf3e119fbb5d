"""What a night trains on: the teacher's samples about the memories, and self-replay, which protects what the model
already knows. filters.py says which completions are dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..rollout import Completion, Engine, Progress, Sampling
from .filters import apply_filters
from .parts import Part
from .prompts import Prompter
from .templates import Template


@dataclass(frozen=True)
class Window:
    """A part of a memory that the teacher sees at once."""

    memory_id: str
    source: str
    text: str
    index: int = 0  # among the windows of its memory


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

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class WrittenSamples:
    """Samples, and the number of completions dropped by reason (see `filters.FILTERS`)."""

    samples: list[Sample] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: WrittenSamples) -> WrittenSamples:
        return WrittenSamples(self.samples + other.samples, self.dropped + other.dropped)


def write_about(
    windows: Sequence[Window],
    template: Template,
    engine: Engine,
    prompter: Prompter,
    *,
    samples_per_window: int,
    max_new_tokens: int,
    ask_temperature: float,
    temperature: float,
    seed: int,
    keep_truncated: bool = False,
    progress: Progress | None = None,
) -> WrittenSamples:
    """
    Let the teacher write about each window by one template.

    Args:
        windows (`Sequence[Window]`):
            Passages that the teacher reads.
        template (`Template`):
            Template of its prompts.
        engine (`Engine`):
            Generates with the teacher's weights.
        prompter (`Prompter`):
            Renders the prompts.
        samples_per_window (`int`):
            Samples generated for each window, before filtering.
        max_new_tokens (`int`):
            Maximum length of a request and of an answer, in tokens.
        ask_temperature (`float`):
            Sampling temperature of requests.
        temperature (`float`):
            Sampling temperature of answers.
        seed (`int`):
            Seed for sampling.
        keep_truncated (`bool`, *optional*, defaults to `False`):
            Whether completions that were cut at `max_new_tokens` are kept.
        progress (`Callable[[int], None]`, *optional*):
            Called with the number of finished generations.

    Returns:
        `WrittenSamples`: samples of part `"memory"` and what was dropped.
    """
    repeated = [window for window in windows for _ in range(samples_per_window)]
    requests: list[tuple[Window, str]] = [(window, "") for window in repeated]
    dropped: Counter[str] = Counter()
    if template.ask is not None:
        prompts = [prompter(template.ask, context=w.text, source=w.source) for w in repeated]
        sampling = Sampling(max_new_tokens, ask_temperature, prompts[0][2], seed)
        completions = engine.generate([ids for ids, _, _ in prompts], sampling, progress)
        pairs = zip(repeated, completions, strict=True)
        kept, dropped = apply_filters(pairs, lambda w, c: (w.memory_id, c.text.casefold()), keep_truncated)
        requests = [(window, completion.text) for window, completion in kept]
    sampling = Sampling(max_new_tokens, temperature, (), seed + 1)
    return WrittenSamples([], dropped) + _answer(
        requests, template, engine, prompter, sampling, keep_truncated, progress
    )


def _answer(
    requests: list[tuple[Window, str]],
    template: Template,
    engine: Engine,
    prompter: Prompter,
    sampling: Sampling,
    keep_truncated: bool,
    progress: Progress | None,
) -> WrittenSamples:
    """Let the teacher answer each request with its window in the prompt; the student's prompt lacks the window."""
    if not requests:
        return WrittenSamples()
    students = [prompter(template.respond, request=request, source=w.source) for w, request in requests]
    teachers = [prompter(template.respond, request=r, source=w.source, context=w.text)[0] for w, r in requests]
    sampling = Sampling(sampling.max_new_tokens, sampling.temperature, students[0][2], sampling.seed)
    completions = engine.generate(teachers, sampling, progress)
    samples = [
        Sample("memory", w.memory_id, template.name, text, ids, teacher, c.text, c.ids, list(stop), w.index)
        for (w, _), (ids, text, stop), teacher, c in zip(requests, students, teachers, completions, strict=True)
    ]
    pairs = zip(samples, completions, strict=True)
    kept, dropped = apply_filters(pairs, lambda s, _: (s.prompt, s.memory_id, s.reference.casefold()), keep_truncated)
    return WrittenSamples([sample for sample, _ in kept], dropped)


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
    kept, dropped = apply_filters(pairs, lambda row, c: (row["prompt"], c.text), keep_truncated)
    samples = []
    for row, c in kept:
        prompt = row["prompt"], row["prompt_ids"], row["prompt_ids"]  # student and teacher see the same
        samples.append(Sample("earlier", row["memory_id"], row["template"], *prompt, c.text, c.ids, row["stop"]))
    return WrittenSamples(samples, dropped)
