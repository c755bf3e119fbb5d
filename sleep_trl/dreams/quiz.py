"""The quiz: questions that the model writes and answers with the context in its prompt, so that no labels are needed
(method 3.4, ours)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..data.prompts import Prompter
from ..data.templates import Template
from ..evaluation.metrics import normalize_answer
from ..evaluation.recall import QAItem
from ..rollout import Engine, Progress, Sampling
from .measure import Task


@dataclass
class WrittenQuiz:
    """Tasks with their questions, and the number of questions dropped by reason (`empty`, `duplicate`, `disputed`:
    the answers of one question differ, `unanswered`)."""

    tasks: list[Task] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def write_quiz(
    tasks: Sequence[Task],
    engine: Engine,
    prompter: Prompter,
    *,
    questions_per_task: int,
    answers_per_question: int = 3,
    max_new_tokens: int,
    ask_temperature: float = 1.0,
    temperature: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> WrittenQuiz:
    """
    Let the model write questions about each context, and keep those that it answers the same each time.

    Args:
        tasks (`Sequence[Task]`):
            The contexts. Questions that a task already has are replaced.
        engine (`Engine`):
            Generates with the context in the prompt.
        prompter (`Prompter`):
            Makes the prompts, by the `question_answer` template.
        questions_per_task (`int`):
            Questions to write for each context, before any are dropped.
        answers_per_question (`int`, *optional*, defaults to `3`):
            Answers sampled for each question, all of which have to agree after normalization.
        max_new_tokens (`int`):
            Longest question and longest answer, in tokens.
        ask_temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature of questions.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature of answers. If it is low, wrong answers are repeated as well; if it is high, few agree.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.
        progress (`Callable[[int], None]`, *optional*):
            Called with the number of finished generations.

    Returns:
        `WrittenQuiz`: the tasks in their order, each with the questions that were kept.
    """
    template = Template.load("question_answer")
    assert template.ask is not None
    dropped: Counter[str] = Counter()
    tries = [task for task in tasks for _ in range(questions_per_task)]
    asked = [prompter(template.ask, context=task.context) for task in tries]
    sampling = Sampling(max_new_tokens, ask_temperature, asked[0][2] if asked else (), seed)
    written = engine.generate([ids for ids, _, _ in asked], sampling, progress)
    questions: dict[tuple[str, str], tuple[Task, str]] = {}
    for task, completion in zip(tries, written, strict=True):
        if not completion.text or completion.stop_reason == "length":
            dropped["empty"] += 1
        elif (key := (task.id, completion.text.casefold())) in questions:
            dropped["duplicate"] += 1
        else:
            questions[key] = task, completion.text
    asked_of = list(questions.values())
    answers = [q for q in asked_of for _ in range(answers_per_question)]
    prompts = [prompter(template.respond, request=request, context=task.context) for task, request in answers]
    sampling = Sampling(max_new_tokens, temperature, prompts[0][2] if prompts else (), seed + 1)
    completions = engine.generate([ids for ids, _, _ in prompts], sampling, progress)
    kept: dict[str, list[QAItem]] = {task.id: [] for task in tasks}
    for i, (task, request) in enumerate(asked_of):
        replies = completions[i * answers_per_question : (i + 1) * answers_per_question]
        texts = {normalize_answer(reply.text) for reply in replies}
        if any(reply.stop_reason == "length" for reply in replies) or "" in texts:
            dropped["unanswered"] += 1
        elif len(texts) > 1:
            dropped["disputed"] += 1
        else:
            kept[task.id].append(QAItem(request, (replies[0].text,), task.context))
    return WrittenQuiz([replace(task, questions=tuple(kept[task.id])) for task in tasks], dropped)
