"""What a night will ask its model outside of training: the prompts, as far as they are known before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

from ..config import RunConfig, first_rollout_step
from ..data.parts import Part
from ..data.rows import MARGIN
from ..data.samples import HELD_OUT, Window
from ..data.shipped_sets import readable_prompts, take
from ..data.templates import PromptTemplate, Template
from ..data.writing import tasks_of
from ..evaluation.probes import reading_probe
from ..evaluation.recall import QAItem, window_with_answer
from .extent import COUNTED, wanted_samples
from .inputs import RunInputs
from .peak_memory import Asking, Texts

T = TypeVar("T")


def find_askings(inputs: RunInputs) -> list[Asking]:
    """Return the longest prompts of each kind, as many as make a batch: questions with and without their text, reading
    questions, windows to write about, and the beginnings of general samples."""
    data, evaluation = inputs.config.dataset, inputs.config.evaluation
    question = Template.load("question_answer").respond

    def asked(items: Sequence[QAItem], with_context: bool) -> Asking:
        chosen = _longest(items, lambda item: len(item.question) + with_context * len(item.context or ""), inputs)
        context = [item.context if with_context else None for item in chosen]
        prompts = [
            inputs.prompter(question, request=item.question, context=text)[0]
            for item, text in zip(chosen, context, strict=True)
        ]
        return Asking(prompts, evaluation.max_new_tokens)

    items = [QAItem(q.question, q.answers) for memory in inputs.memories for q in memory.questions]
    reading = reading_probe(
        inputs.skill,
        str(evaluation.skill),
        inputs.prompter,
        inputs.largest_window,
        evaluation.max_questions,
        inputs.config.seed,
    )
    askings = [asked(items, False), asked(_with_context(inputs), True), asked(reading.items, True)]
    askings += [Asking(prompts, data.max_new_tokens, "writing") for prompts in _about_windows(inputs)]
    if data.general_share > 0 and data.general_samples:
        askings.append(Asking(_general(inputs), data.general_max_new_tokens, "writing"))
    return askings


def find_texts(inputs: RunInputs, askings: Sequence[Asking]) -> list[Texts]:
    """Return what a forward pass of training reads: rows about memories and earlier nights, and general ones. Requests,
    samples and prefixes about memories count together as much as the longest sentence that is written about: what a
    model asks and answers about a sentence is seldom longer."""
    data, lengths, count = inputs.config.dataset, inputs.lengths, inputs.prompter.count_tokens
    about = [(template, window, number) for template, of in _written(inputs) for window, number in of]
    sentences = dict.fromkeys(
        sentence
        for template, window, number in about
        for sentence in window.sentences[: number if template.is_per_sentence else None]
    )
    windows = dict.fromkeys(window.text for _, window, _ in about)
    sample = min(data.max_new_tokens, max(map(count, _longest(sentences, len, inputs)), default=data.max_new_tokens))
    window = max(map(count, _longest(windows, len, inputs)), default=0)
    prefix = min(lengths.rollout, max(0, data.general_max_new_tokens - lengths.rollout))
    return lay_out_texts(
        inputs.config,
        inputs.rows_by_part,
        inputs.batches.per_device,
        student=lengths.student + lengths.title + sample,
        teacher=lengths.teacher + lengths.title + window + sample,
        sample=sample,
        general=max(map(len, askings[-1].prompts), default=0) + prefix,
    )


def lay_out_texts(
    config: RunConfig,
    parts: Mapping[Part, int],
    per_device: int,
    *,
    student: int,
    teacher: int,
    sample: int,
    general: int,
) -> list[Texts]:
    """
    Return what a forward pass of training reads, given how long its texts are.

    Args:
        config (`RunConfig`):
            The run.
        parts (`Mapping[str, int]`):
            Prompts of each part in a step.
        per_device (`int`):
            Rollouts in a forward pass of a device.
        student (`int`):
            Tokens of a prompt without a memory.
        teacher (`int`):
            Tokens of a prompt with its window.
        sample (`int`):
            Tokens of what the teacher writes.
        general (`int`):
            Tokens of a general prompt with the beginning that it is given.
    """
    data, seeding = config.dataset, config.seeding
    share = per_device / seeding.rollouts_per_step
    learned, others = (math.ceil(share * n) for n in (parts["memory"] + parts["earlier"], parts["general"]))
    # The last step has rollouts if any has, so a night of one step tells.
    has_rollouts = first_rollout_step(seeding.alpha, seeding.lmbda, seeding.rollout_start, steps=1) < 1
    rollouts = seeding.num_generations if has_rollouts else 0
    rollout = min(seeding.max_completion_length, sample + MARGIN)
    texts = [Texts(learned, student, teacher, sample, rollouts, rollout)]
    if others:
        texts.append(Texts(others, general, general, data.general_max_new_tokens, replayed=data.general_samples))
    return texts


def _with_context(inputs: RunInputs) -> list[QAItem]:
    """Return the questions with their texts. If there is so much text that a plan does not count all of it, those of
    the longest memories, as many as it would count."""
    asked = [memory for memory in inputs.memories if memory.questions]
    if inputs.extent.share == 1:
        contexts = inputs.contexts
    else:
        by_length = sorted(asked, key=lambda memory: len(memory.text), reverse=True)
        within = accumulate(len(memory.text) for memory in by_length)
        asked = [memory for memory, size in zip(by_length, within, strict=True) if size <= COUNTED] or by_length[:1]
        contexts = inputs.contexts_of(asked)
    return [
        QAItem(q.question, q.answers, window_with_answer(contexts[memory.id], q.answers))
        for memory in asked
        for q in memory.questions
    ]


def _longest(items: Collection[T], length: Callable[[T], int], inputs: RunInputs) -> list[T]:
    return sorted(items, key=length, reverse=True)[: inputs.config.evaluation.batch_size]


def _written(inputs: RunInputs) -> Iterator[tuple[Template, list[tuple[Window, int]]]]:
    """Yield each template with the windows that it writes about and the number of samples about each: with
    `seeding.steps`, no more than a night has rows for. If a plan counts only a part of the text, all of that part."""
    data, extent = inputs.config.dataset, inputs.extent
    numbers = inputs.sample_counts if extent.share == 1 else wanted_samples(data, extent.reading)
    for template, of_template in zip(map(Template.load, data.templates), numbers, strict=True):
        yield template, [pair for pair in zip(extent.reading, of_template, strict=True) if pair[1]]


def _about_windows(inputs: RunInputs) -> Iterator[list[list[int]]]:
    """Yield the prompts about windows by each template, those of its requests and those of its samples."""
    data = inputs.config.dataset
    for template, windows in _written(inputs):
        if template.is_given:
            continue
        longest = _longest(windows, lambda pair: len(pair[0].text), inputs)
        tasks = [task for pair in longest for task in tasks_of(*pair, template, data.cues_per_sentence)]
        sides: list[PromptTemplate] = [side for side in (template.ask, template.respond) if side is not None]
        for side in sides:
            yield [
                inputs.prompter(
                    side,
                    context=task.window.text,
                    source=task.window.source,
                    request=task.sentence or "",
                    sentence=task.sentence,
                )[0]
                for task in tasks[: inputs.config.evaluation.batch_size]
            ]


def _general(inputs: RunInputs) -> list[list[int]]:
    """Return the prompts of the general samples, each with the beginning that it is given."""
    data = inputs.config.dataset
    room = inputs.context - data.general_max_new_tokens
    given = [memory.text for memory in inputs.general]
    texts = given or readable_prompts(inputs.prompter, room, inputs.general_seed)[0]
    count = HELD_OUT + data.general_samples
    chosen = _longest(take(texts, count, once=2 * HELD_OUT), len, inputs)
    nothing = [inputs.prompter.general()] * min(count, inputs.config.evaluation.batch_size)
    prompts = list(map(inputs.prompter.general, chosen)) or nothing
    return [prompt + beginning for prompt, _, beginning in prompts]
