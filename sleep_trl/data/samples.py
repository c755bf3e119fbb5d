"""What the teacher writes at night: samples about the memories, and the self-replay that protects what it knew
before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from ..rollout import Completion, Engine, Progress, Sampling
from .parts import Part
from .prompts import Prompter
from .templates import Template

Item = TypeVar("Item")
SHINGLE = 4  # words; a text whose word 4-grams mostly repeat is a loop
MOST_REPEATED = 0.5  # share of repeated 4-grams above which a sample is dropped


@dataclass(frozen=True)
class Window:
    """A part of a memory that the teacher sees at once."""

    memory_id: str
    source: str
    text: str


@dataclass(frozen=True)
class Sample:
    """One thing that the teacher wrote: what the student is asked, what the teacher was asked, what it answered.

    `prompt` and `prompt_ids` have no privileged context; `teacher_prompt_ids` has. `reference_ids` ends with the
    end-of-sequence token where the teacher ended by itself. `stop` are the strings before which a completion ends.
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

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Written:
    """Samples, with the number of those dropped by reason (`empty`, `truncated`, `repetitive`, `duplicate`)."""

    samples: list[Sample] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Written) -> Written:
        return Written(self.samples + other.samples, self.dropped + other.dropped)


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
) -> Written:
    """
    Let the teacher write about each window by one template.

    Args:
        windows (`Sequence[Window]`):
            What the teacher reads.
        template (`Template`):
            How it is asked.
        engine (`Engine`):
            Generates with the teacher in view.
        prompter (`Prompter`):
            Makes the prompts.
        samples_per_window (`int`):
            Samples tried for each window, before de-duplication.
        max_new_tokens (`int`):
            Longest request and longest answer, in tokens.
        ask_temperature (`float`):
            Sampling temperature of requests.
        temperature (`float`):
            Sampling temperature of answers.
        seed (`int`):
            Seed of the draws.
        keep_truncated (`bool`, *optional*, defaults to `False`):
            Whether samples that did not end within `max_new_tokens` are kept.
        progress (`Callable[[int], None]`, *optional*):
            Called with the number of finished generations.

    Returns:
        `Written`: samples of part `"memory"` and what was dropped.
    """
    tries = [window for window in windows for _ in range(samples_per_window)]
    dropped: Counter[str] = Counter()
    requests: list[tuple[Window, str]] = [(window, "") for window in tries]
    if template.ask is not None:
        asked = [prompter(template.ask, context=w.text, source=w.source) for w in tries]
        sampling = Sampling(max_new_tokens, ask_temperature, asked[0][2], seed)
        answers = engine.generate([ids for ids, _, _ in asked], sampling, progress)
        pairs = zip(tries, answers, strict=True)
        kept = _keep(pairs, dropped, lambda w, c: (w.memory_id, c.text.casefold()), keep_truncated)
        requests = [(window, completion.text) for window, completion in kept]
    sampling = Sampling(max_new_tokens, temperature, (), seed + 1)
    return Written([], dropped) + _answer(requests, template, engine, prompter, sampling, keep_truncated, progress)


def _answer(
    requests: list[tuple[Window, str]],
    template: Template,
    engine: Engine,
    prompter: Prompter,
    sampling: Sampling,
    keep_truncated: bool,
    progress: Progress | None,
) -> Written:
    """Let the teacher answer requests with the window in view, and keep the prompts that the student will see."""
    if not requests:
        return Written()
    students = [prompter(template.respond, request=request, source=w.source) for w, request in requests]
    teachers = [prompter(template.respond, request=r, source=w.source, context=w.text)[0] for w, r in requests]
    sampling = Sampling(sampling.max_new_tokens, sampling.temperature, students[0][2], sampling.seed)
    completions = engine.generate(teachers, sampling, progress)
    samples = [
        Sample("memory", w.memory_id, template.name, text, ids, teacher, c.text, c.ids, list(stop))
        for (w, _), (ids, text, stop), teacher, c in zip(requests, students, teachers, completions, strict=True)
    ]
    dropped: Counter[str] = Counter()
    pairs = zip(samples, completions, strict=True)
    kept = _keep(pairs, dropped, lambda s, _: (s.prompt, s.memory_id, s.reference.casefold()), keep_truncated)
    return Written([sample for sample, _ in kept], dropped)


def write_general(
    engine: Engine,
    prompter: Prompter,
    count: int,
    max_new_tokens: int,
    seed: int,
    texts: Sequence[str] = (),
    progress: Progress | None = None,
) -> Written:
    """Let the model write freely, without any memory: the general part of self-replay (ours).

    Samples may end at `max_new_tokens`: they are read in parts anyway.

    Args:
        texts (`Sequence[str]`, *optional*):
            Ordinary texts that the samples go on from, each in its turn; without any, the model begins by itself.
    """
    begin = [prompter.general(text) for text in texts] or [prompter.general()]
    starts = [begin[i % len(begin)] for i in range(count)]
    sampling = Sampling(max_new_tokens, 1.0, (), seed)
    completions = engine.generate([prompt + begun for prompt, _, begun in starts], sampling, progress)
    samples = []
    for (prompt, text, begun), completion in zip(starts, completions, strict=True):
        ids = begun + completion.ids
        written = str(prompter.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        samples.append(Sample("general", "", "general", text, prompt, prompt, written, ids))
    dropped: Counter[str] = Counter()
    pairs = [(s, Completion(s.reference_ids, s.reference, "length")) for s in samples]
    kept = _keep(pairs, dropped, lambda s, _: (s.prompt, s.reference), keep_truncated=True)
    return Written([sample for sample, _ in kept], dropped)


def write_earlier(
    prompts: Sequence[dict[str, Any]],
    engine: Engine,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    keep_truncated: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Let the model answer prompts of earlier nights from its weights: the other part of self-replay (ours).

    Args:
        prompts (`Sequence[dict]`):
            Rows with `memory_id`, `template`, `prompt`, `prompt_ids` and `stop`, the strings that end an answer.
    """
    pairs: list[tuple[dict[str, Any], Completion]] = []
    for number, stop in enumerate(sorted({tuple(row["stop"]) for row in prompts})):
        rows = [row for row in prompts if tuple(row["stop"]) == stop]
        sampling = Sampling(max_new_tokens, temperature, stop, seed + 100 * number)
        pairs += zip(rows, engine.generate([row["prompt_ids"] for row in rows], sampling, progress), strict=True)
    dropped: Counter[str] = Counter()
    kept = _keep(pairs, dropped, lambda row, c: (row["prompt"], c.text), keep_truncated)
    samples = []
    for row, c in kept:
        prompt = row["prompt"], row["prompt_ids"], row["prompt_ids"]
        samples.append(Sample("earlier", row["memory_id"], row["template"], *prompt, c.text, c.ids, row["stop"]))
    return Written(samples, dropped)


def _keep(
    pairs: Iterable[tuple[Item, Completion]],
    dropped: Counter[str],
    key: Callable[[Item, Completion], object],
    keep_truncated: bool = False,
) -> list[tuple[Item, Completion]]:
    """Drop what teaches nothing and count it by reason: empty, truncated, repetitive, or seen before."""
    seen: set[object] = set()
    kept: list[tuple[Item, Completion]] = []
    for item, completion in pairs:
        if not completion.text:
            dropped["empty"] += 1
        elif completion.stop_reason == "length" and not keep_truncated:
            dropped["truncated"] += 1
        elif is_repetitive(completion.text):
            dropped["repetitive"] += 1
        elif (identity := key(item, completion)) in seen:
            dropped["duplicate"] += 1
        else:
            seen.add(identity)
            kept.append((item, completion))
    return kept


def is_repetitive(text: str) -> bool:
    """Return whether most 4-word sequences of a text occur in it before (a degenerate loop)."""
    words = text.split()
    shingles = [tuple(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)]
    return bool(shingles) and 1 - len(set(shingles)) / len(shingles) > MOST_REPEATED
