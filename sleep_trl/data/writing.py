"""Let the teacher write about the memories, sentence by sentence, and check what it wrote.

A template that asks for a request is asked about each sentence of a window in turn, with the whole window in view. Each
answer is then checked: the teacher has to give it again, it has to stand where the teacher was asked about, and the
student must not give it without the text. A small teacher asks better than it answers: where an answer fails, the
sentence itself takes its place, and where nothing is usable, it is tried again (ours).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..rollout import Completion, Engine, Progress, Sampling
from .cues import cues_of, hint_of
from .drops import DroppedText, Drops
from .filters import Check, Item, apply_filters
from .prompts import Prompter
from .samples import Sample, Window, WrittenSamples
from .subjects import is_about, name_subject
from .templates import Template

Agree = Callable[[str, str], bool]
STAGES = 4  # generations of a sample: request, answer, the answer again, the answer without the text

TURNS_APART = 10_000  # seeds of a try and of the next

CHECKED_BEYOND = 8  # tokens by which an answer may be longer than those it is compared with

_QUOTED = ("inconsistent", "unsupported", "question", "echo")  # reasons for which a sentence takes an answer's place


@dataclass(frozen=True)
class Task:
    """What to write about: a window, the sentence of it to ask about, or `None` for the whole, and the request, once it
    is written, or the cue of a given sample, with its number among the cues of the sentence."""

    window: Window
    sentence: str | None = None
    request: str = ""
    turn: int = 0


@dataclass(frozen=True)
class Writing:
    """How the teacher writes.

    Args:
        max_new_tokens (`int`):
            Maximum length of a request and of an answer, in tokens.
        ask_temperature (`float`):
            Sampling temperature of requests.
        temperature (`float`):
            Sampling temperature of answers.
        top_p (`float`, *optional*, defaults to `1.0`):
            Both are sampled from the most likely tokens whose probabilities add up to this.
        keep_truncated (`bool`, *optional*, defaults to `False`):
            Whether completions that were cut at `max_new_tokens` are kept.
        seed (`int`, *optional*, defaults to `0`):
            Seed for sampling.
        sentence_tokens (`int`, *optional*, defaults to `64`):
            How much of a sentence is shown when the teacher is asked about it.
    """

    max_new_tokens: int
    ask_temperature: float
    temperature: float
    top_p: float = 1.0
    keep_truncated: bool = False
    seed: int = 0
    sentence_tokens: int = 64


def tasks_of(window: Window, count: int, template: Template, cues: int = 1) -> list[Task]:
    """
    Return what is to be written about a window.

    Args:
        window (`Window`):
            What to write about.
        count (`int`):
            How many tasks. If the template is about sentences, they take turns.
        template (`Template`):
            Template to write by.
        cues (`int`, *optional*, defaults to `1`):
            Cues of each sentence, if the template takes cues. No task is given twice then, so there may be fewer than
            `count`.
    """
    sentences: Sequence[str | None] = (window.sentences if template.is_per_sentence else ()) or (None,)
    if not template.takes_cues:
        return [Task(window, sentences[number % len(sentences)]) for number in range(count)]
    by_sentence = [cues_of(sentence or "", cues) or [""] for sentence in sentences]
    tasks = [
        Task(window, sentence, of_sentence[turn], turn)
        for turn in range(cues)
        for sentence, of_sentence in zip(sentences, by_sentence, strict=True)
        if turn < len(of_sentence)
    ]
    return tasks[:count]


def write_about(
    tasks: Sequence[Task],
    template: Template,
    engine: Engine,
    prompter: Prompter,
    writing: Writing,
    *,
    agree: Agree | None = None,
    student: Engine | None = None,
    tries: int = 1,
    progress: Progress | None = None,
) -> WrittenSamples:
    """
    Let the teacher write about windows by one template.

    Args:
        tasks (`Sequence[Task]`):
            What to write about; one sample each, before filtering.
        template (`Template`):
            Template of its prompts.
        engine (`Engine`):
            Generates with the teacher's weights.
        prompter (`Prompter`):
            Renders the prompts.
        writing (`Writing`):
            Lengths, temperatures and seed.
        agree (`Callable[[str, str], bool]`, *optional*):
            Whether two answers say the same. If given, answers to requests are checked.
        student (`Engine`, *optional*):
            Generates with the student's weights, to find out what it knows without the text. Default: `engine`.
        tries (`int`, *optional*, defaults to `1`):
            How often a task is tried while its sample is dropped, if the template asks for a request.
        progress (`Callable[[int], None]`, *optional*):
            Called with the number of finished generations, [`generations_of`] a task altogether. Those that are not
            needed count as finished.

    Returns:
        `WrittenSamples`: samples of part `"memory"` and what was dropped.
    """
    report, asked, written = progress or (lambda count: None), set[object](), WrittenSamples()
    turns, stages = _turns_and_stages(template, agree, tries)
    left = list(tasks)
    for turn in range(turns):
        tried, of_turn = left, replace(writing, seed=writing.seed + TURNS_APART * turn)
        writer = _Writer(template, engine, prompter, of_turn, report, asked)
        written += _write_once(tried, writer, stages, agree, student or engine)
        left = _still_without(tasks, written.samples)
        report(stages * (len(tried) - len(left)) * (turns - 1 - turn))
    return written


def _write_once(
    tasks: Sequence[Task], writer: _Writer, stages: int, agree: Agree | None, student: Engine
) -> WrittenSamples:
    dropped = Drops()
    if writer.template.ask is not None:
        asked, dropped = writer.ask(tasks)
        writer.progress((stages - 1) * (len(tasks) - len(asked)))
        tasks = asked
    answered, unusable = writer.answer(tasks)
    dropped += unusable
    if agree is not None and writer.template.ask is not None:
        writer.progress((stages - 2) * (len(tasks) - len(answered)))
        answered, disproved = writer.check(answered, tasks, student, agree)
        dropped += disproved
    return WrittenSamples([sample for sample, _ in answered], dropped)


def _still_without(tasks: Sequence[Task], samples: Sequence[Sample]) -> list[Task]:
    """Return the tasks that have no sample, as many of a sentence as it lacks."""
    found = Counter((sample.memory_id, sample.window, sample.sentence) for sample in samples)
    left = []
    for task in tasks:
        about = task.window.memory_id, task.window.index, task.sentence
        found[about] -= 1
        if found[about] < 0:
            left.append(task)
    return left


def generations_of(template: Template, agree: Agree | None, tries: int = 1) -> int:
    """Return how often something is generated for a task, at most."""
    turns, stages = _turns_and_stages(template, agree, tries)
    return turns * stages


def _turns_and_stages(template: Template, agree: Agree | None, tries: int) -> tuple[int, int]:
    if template.ask is None:
        return 1, 1
    return tries, 2 if agree is None else STAGES


@dataclass(frozen=True)
class _Writer:
    """A teacher that writes by one template, see [`write_about`]. Each stage returns what is kept, and counts what is
    dropped by reason."""

    template: Template
    engine: Engine
    prompter: Prompter
    writing: Writing
    progress: Progress
    asked: set[object]  # what was asked already

    def ask(self, tasks: Sequence[Task]) -> tuple[list[Task], Drops]:
        """Write the requests. One that does not name what it is about gets the title of its document."""
        assert self.template.ask is not None
        if not tasks:
            return [], Drops()
        prompts = [
            self.prompter(
                self.template.ask, context=task.window.text, source=task.window.source, sentence=self._shown(task)
            )[0]
            for task in tasks
        ]
        stop = self.template.ask.render(chat=self.prompter.has_chat, context="").stop
        sampling = self._sampling(self.writing.ask_temperature, stop, 0)
        kept, dropped = self._filter(
            zip(tasks, self.engine.generate(prompts, sampling, self.progress), strict=True),
            lambda task, c: (task.window.memory_id, c.text.casefold()),
            lambda t, c: DroppedText(t.window.memory_id, self.template.name, t.sentence or "", c.text),
            seen=self.asked,
        )
        return [replace(task, request=name_subject(c.text, task.window.source)) for task, c in kept], dropped

    def answer(self, tasks: Sequence[Task]) -> tuple[list[tuple[Sample, Completion]], Drops]:
        """Answer each request with its window in the prompt; the student's prompt lacks the window."""
        if not tasks:
            return [], Drops()
        respond = self.template.respond
        hints = _hints(tasks) if "hint" in respond.names else [None] * len(tasks)
        shared = [
            {"request": task.request, "source": task.window.source, "hint": hint, "turn": task.turn}
            for task, hint in zip(tasks, hints, strict=True)
        ]
        students = [self.prompter(respond, **variables) for variables in shared]
        teachers = [
            self.prompter(respond, context=task.window.text, **variables)[0]
            for task, variables in zip(tasks, shared, strict=True)
        ]
        if self.template.is_given:
            completions = [self._given(task) for task in tasks]
            self.progress(len(tasks))
        else:
            sampling = self._sampling(self.writing.temperature, students[0][2], 1)
            completions = self.engine.generate(teachers, sampling, self.progress)
        samples = [
            Sample(
                "memory",
                task.window.memory_id,
                self.template.name,
                text,
                ids,
                teacher,
                c.text,
                c.ids,
                list(stop),
                task.window.index,
                task.sentence,
                task.request,
            )
            for task, (ids, text, stop), teacher, c in zip(tasks, students, teachers, completions, strict=True)
        ]
        return self._filter(zip(samples, completions, strict=True), _by_prompt, _describe)

    def check(
        self, answered: Sequence[tuple[Sample, Completion]], tasks: Sequence[Task], student: Engine, agree: Agree
    ) -> tuple[list[tuple[Sample, Completion]], Drops]:
        """Drop the samples whose answer the student gives without the text. If the teacher does not give it again, or
        it does not stand in the sentence asked about or the one before, that sentence becomes the answer."""
        if not answered:
            return [], Drops()
        samples = [sample for sample, _ in answered]
        windows = {(task.window.memory_id, task.window.index): task.window for task in tasks}
        asked_about = [windows[s.memory_id, s.window].around(s.sentence) for s in samples]
        # Longer than any answer to agree with, no longer: what a student that knows nothing says is long.
        longest = max(len(sample.reference_ids) for sample in samples) + CHECKED_BEYOND
        sampling = self._sampling(self.writing.temperature, tuple(samples[0].stop), 2, longest)
        again = self.engine.generate([s.teacher_prompt_ids for s in samples], sampling, self.progress)
        sampling = replace(sampling, temperature=0.0, top_p=1.0)
        known = student.generate([s.prompt_ids for s in samples], sampling, self.progress)
        checks = [
            Check(agree, a.text, k.text, text, s.request)
            for a, k, text, s in zip(again, known, asked_about, samples, strict=True)
        ]

        def quote(sample: Sample, reason: str) -> tuple[Sample, Completion] | None:
            title = windows[sample.memory_id, sample.window].source
            if reason not in _QUOTED or not is_about(sample.request, sample.sentence or "", title):
                return None
            given = self._give(sample.sentence or "")
            return replace(sample, reference=given.text, reference_ids=given.ids, is_quoted=True), given

        return self._filter(answered, _by_prompt, _describe, checks, quote)

    def _filter(
        self,
        pairs: Iterable[tuple[Item, Completion]],
        identity: Callable[[Item, Completion], object],
        describe: Callable[[Item, Completion], DroppedText],
        checks: Sequence[Check] | None = None,
        instead: Callable[[Item, str], tuple[Item, Completion] | None] | None = None,
        seen: set[object] | None = None,
    ) -> tuple[list[tuple[Item, Completion]], Drops]:
        return apply_filters(
            pairs,
            identity,
            checks=checks,
            keep_truncated=self.writing.keep_truncated,
            describe=describe,
            instead=instead,
            seen=seen,
        )

    def _sampling(self, temperature: float, stop: tuple[str, ...], turn: int, most: int | None = None) -> Sampling:
        """Return how a stage samples: each with a seed of its own."""
        length = min(self.writing.max_new_tokens, most or self.writing.max_new_tokens)
        return Sampling(length, temperature, stop, self.writing.seed + turn, top_p=self.writing.top_p)

    def _shown(self, task: Task) -> str | None:
        """Return the sentence to ask about, or how it begins, unless it is all that the window says."""
        if task.sentence is None or len(task.window.sentences) < 2:
            return None
        return self.prompter.begin(task.sentence, self.writing.sentence_tokens)

    def _given(self, task: Task) -> Completion:
        """Return the sample that the template gives."""
        text = self.template.respond.render(
            chat=self.prompter.has_chat, source=task.window.source, context=task.window.text, sentence=task.sentence
        ).reference
        assert text is not None
        return self._give(text)

    def _give(self, text: str) -> Completion:
        """Return a text as if it were generated. In a chat it ends the turn."""
        prompter = self.prompter
        end = prompter.answer_end
        ids = prompter.ids(text if prompter.has_chat else f" {text}")
        return Completion([*ids, end] if prompter.has_chat and end is not None else ids, text, "eos")


def _hints(tasks: Sequence[Task]) -> list[str]:
    """Return some words of the title of each task's document, or all where those and the request stand for several."""
    drawn = [hint_of(task.window.source, number) for number, task in enumerate(tasks)]
    about: dict[tuple[str, str], set[str]] = {}
    for hint, task in zip(drawn, tasks, strict=True):
        about.setdefault((hint, task.request), set()).add(task.window.memory_id)
    return [
        hint if len(about[hint, task.request]) == 1 else task.window.source
        for hint, task in zip(drawn, tasks, strict=True)
    ]


def _by_prompt(sample: Sample, _: Completion) -> object:
    return sample.prompt, sample.memory_id, sample.reference.casefold()


def drop_collisions(written: WrittenSamples, titles: Mapping[str, str]) -> WrittenSamples:
    """Drop the samples whose prompt several memories answer in different ways: the student could not tell them apart.
    Memories without a title are left alone, since many templates have nothing else to tell them apart by."""
    answers: dict[str, dict[str, set[str]]] = {}
    for sample in written.samples:
        by_memory = answers.setdefault(sample.prompt, {})
        by_memory.setdefault(sample.memory_id, set()).add(sample.reference.casefold())
    collide = {
        prompt
        for prompt, by_memory in answers.items()
        if len(by_memory) > 1 and len(set.union(*by_memory.values())) > 1
    }
    kept, texts = [], []
    for sample in written.samples:
        if sample.prompt in collide and titles.get(sample.memory_id):
            texts.append(replace(_describe(sample), reason="collision"))
        else:
            kept.append(sample)
    return WrittenSamples(kept, written.dropped + Drops({"collision": len(texts)}, texts))  # a sum keeps no zeros


def _describe(sample: Sample, _: Completion | None = None) -> DroppedText:
    request = sample.request or sample.prompt
    return DroppedText(sample.memory_id, sample.template, sample.sentence or "", request, sample.reference)


def measure_coverage(windows: Sequence[Window], samples: Sequence[Sample]) -> dict[str, int]:
    """Count the sentences that state something, `sentences`, and those of them with a sample, `covered`."""
    stated = {(window.memory_id, sentence) for window in windows for sentence in window.sentences}
    covered = stated.intersection((sample.memory_id, sample.sentence) for sample in samples)
    return {"sentences": len(stated), "covered": len(covered)}
