"""The dreaming of a night: its tasks, its quiz, and its dreams as samples for the new expert.

Windows of the memories become tasks with questions (the quiz). `DreamingTrainer`, passed in as an argument, writes
dreams about each, tries them out and rewards them. The rewarded dreams of the last round become part `"dream"` of the
data set, on which the same expert is trained once more by Knowledge Seeding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import RunConfig
from ..data.documents import MemoryText
from ..data.prompts import Prompter
from ..data.samples import Sample, Window
from ..data.templates import Template
from ..distributed.progress import bar, echo
from ..dreams.measure import HELDOUT, Task
from ..dreams.quiz import WrittenQuiz, write_quiz
from ..evaluation.recall import QAItem
from ..rollout import Engine

COLUMNS = (
    "prompt",
    "task_id",
    "context",
    "questions",
    "learn_prompt_ids",
    "teacher_probability",
    "trial_reward",
    "trial_gain",
    "trial_low",
    "trial_high",
)
"""Columns that a reward of dreams gets, in addition to TRL's. `teacher_probability` only if it has a parameter of that
name."""

Row = dict[str, Any]


class Dreamer(Protocol):
    """Writes dreams about tasks, and trains the active expert to write better ones.

    Rows have `prompt`, `task_id`, `context`, `questions`, and `learn_prompt_ids`, the prompt of a dream when it is
    learned. Returns a record of each dream of all processes; see `DreamingTrainer.trials`.
    """

    def __call__(
        self,
        config: RunConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: list[Row],
        samples: list[Sample],
        folder: Path,
    ) -> list[Row]: ...


def find_tasks(memories: Sequence[MemoryText], windows: Sequence[Window]) -> list[tuple[Window, Task]]:
    """Return a task for each window, with the questions about its memory whose answer is in the window, and the text
    that its memory has under the key `heldout`."""
    by_id = {memory.id: memory for memory in memories}
    tasks = []
    for window in windows:
        text, memory = window.text.casefold(), by_id[window.memory_id]
        answerable = [q for q in memory.questions if any(a.casefold() in text for a in q.answers)]
        items = tuple(QAItem(q.question, q.answers, window.text) for q in answerable)
        heldout = memory.columns.get(HELDOUT)
        tasks.append((window, Task(f"{window.memory_id} {window.index + 1}", window.text, items, heldout)))
    return tasks


def write_tasks(
    config: RunConfig, tasks: Sequence[tuple[Window, Task]], engine: Engine, prompter: Prompter, seed: int
) -> list[Row]:
    """Write the questions of each task, and leave out tasks that the measure cannot measure.

    Returns:
        `list[dict]`: rows for a [`Dreamer`].
    """
    dream, data = config.dream, config.dataset
    dropped: Counter[str] = Counter()
    with_questions = [task for _, task in tasks]
    if dream.measure == "quiz":
        with bar("Writing the quiz", 4 * len(tasks) * dream.questions_per_task) as step:
            quiz: WrittenQuiz = write_quiz(
                with_questions,
                engine,
                prompter,
                questions_per_task=dream.questions_per_task,
                max_new_tokens=data.max_new_tokens,
                ask_temperature=data.ask_temperature,
                temperature=data.temperature,
                seed=seed,
                progress=step,
            )
        with_questions, dropped = quiz.tasks, quiz.dropped
    template = Template.load(dream.template)
    rows = [
        {
            "prompt": dream_prompt(prompter, template, window),
            "task_id": task.id,
            "context": task.context,
            "memory_id": window.memory_id,
            "questions": [{"question": q.question, "answers": list(q.answers)} for q in task.questions],
            **({HELDOUT: task.heldout} if dream.measure == "heldout_loss" else {}),
            **_prompts(prompter, template, window),
        }
        for (window, _), task in zip(tasks, with_questions, strict=True)
        if _can_be_measured(task, dream.measure)
    ]
    measured = dream.measure
    if measured in ("quiz", "questions"):
        left_out = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items()))
        measured = f"{sum(len(row['questions']) for row in rows)} questions; dropped: {left_out or 0}"
    echo(f"Dreaming about {len(rows)} of {len(tasks)} windows, measured by {measured}")
    return rows


def _can_be_measured(task: Task, measure: str) -> bool:
    if measure == "heldout_loss":
        return bool(task.heldout)
    return bool(task.questions) or measure not in ("quiz", "questions")


def dream_prompt(prompter: Prompter, template: Template, window: Window) -> str | list[dict[str, str]]:
    """Return the prompt that asks for a dream: text, or a message for a chat model."""
    text = prompter.text(template.respond, context=window.text, source=window.source)
    return [{"role": "user", "content": text}] if prompter.has_chat else text


def _prompts(prompter: Prompter, template: Template, window: Window) -> Row:
    """Return the prompts of a dream for the student and the teacher, as token ids."""
    student = prompter(template.respond, source=window.source)[0]
    return {
        "learn_prompt_ids": student or prompter.general()[0],
        "teacher_prompt_ids": prompter(template.respond, context=window.text, source=window.source)[0],
    }


def as_samples(config: RunConfig, rows: Sequence[Row], records: Sequence[Row], prompter: Prompter) -> list[Sample]:
    """Return the rewarded dreams of the last round as samples, each once."""
    last = max((record["step"] for record in records), default=0)
    by_task = {row["task_id"]: row for row in rows}
    template = Template.load(config.dream.template)
    samples: dict[tuple[str, str], Sample] = {}
    for record in records:
        if record["step"] == last and record["rewarded"] and record["ids"]:
            row = by_task[record["task_id"]]
            ids = row["learn_prompt_ids"]
            samples[row["task_id"], record["dream"]] = Sample(
                "dream",
                row["memory_id"],
                template.name,
                prompter.tokenizer.decode(ids, skip_special_tokens=True),
                ids,
                row["teacher_prompt_ids"],
                record["dream"],
                record["ids"],
            )
    return list(samples.values())


def summarize(records: Sequence[Row], learnt: int) -> Row:
    """Count the dreams of each round by outcome. `gain` is their mean gain, as a share of questions."""
    rounds = []
    for step in sorted({record["step"] for record in records}):
        tried = [r for r in records if r["step"] == step and r["selected"]]
        gains = [r["trial_gain"] for r in tried if r["trial_gain"] is not None]
        rounds.append(
            {
                "dreams": sum(record["step"] == step for record in records),
                "tried": len(tried),
                "failed": sum(record["error"] is not None for record in tried),
                "rewarded": sum(record["rewarded"] for record in tried),
                "gain": sum(gains) / len(gains) if gains else None,
            }
        )
    return {"rounds": rounds, "learnt": learnt}
