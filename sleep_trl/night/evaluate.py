"""Before and after: the memories' questions, those of earlier nights, and the base skill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object

from ..data.documents import read_skill
from ..distributed.progress import bar, say
from ..evaluation.recall import Quiz, ask, sample_quizzes, window_with_answer
from ..rollout.synced import SyncedEngine
from ..runs.files import read_jsonl
from ..runs.ledger import standing
from .context import Bedroom


def evaluate(room: Bedroom, when: str) -> dict[str, Any]:
    """Ask the memories' questions, those of earlier nights, and the skill probe.

    Returns:
        `dict`: `recall` without context, `with_context` (before only), `base` (before only, and not on a first night:
        recall by the pretrained model), `skill` (`None` without a probe), `earlier` by entry.
    """
    config = room.config

    def score(name: str, quizzes: Sequence[Quiz], with_context: bool) -> float | None:
        chosen = sample_quizzes(quizzes, config.evaluation.max_questions, config.seed)
        if len(chosen) < len(quizzes):
            say(f"Asking {len(chosen)} of {len(quizzes)} questions (evaluation.max_questions)")
        with bar(f"Asking {name}", len(chosen)) as progress:
            return ask(
                chosen,
                room.teachers[0] if room.teachers and name == "with context" else room.engine,
                room.prompter,
                with_context=with_context,
                metric=config.evaluation.metric,
                max_new_tokens=config.evaluation.max_new_tokens,
                progress=progress,
            )

    quizzes = [
        Quiz(q.question, q.answers, window_with_answer(contexts, q.answers))
        for memory, contexts in zip(room.memories, room.contexts, strict=True)
        for q in memory.questions
    ]
    skill: list[Quiz] = []
    if config.evaluation.skill:
        skill = [Quiz(q.question, q.answers, m.text) for m in read_skill(config.evaluation.skill) for q in m.questions]
    result: dict[str, Any] = {
        "recall": score(f"without context, {when}", quizzes, False),
        "skill": score(f"fresh passages, {when}", skill, True),
        "earlier": {entry: score(f"{entry}, {when}", asked, False) for entry, asked in earlier_quizzes(room).items()},
    }
    if when == "before":
        result["with_context"] = score("with context", quizzes, True)
        if room.earlier:
            with room.memory.as_base():
                result["base"] = score("without context, the pretrained model", quizzes, False)
    return result


def evaluate_after(room: Bedroom) -> dict[str, Any]:
    """Ask again. If the experts are routed and the model itself answers, `load` says how many tokens went to each
    meanwhile, layer by layer."""
    if not room.memory.spec.is_routed:
        return evaluate(room, "after")
    if isinstance(room.engine, SyncedEngine):
        say("The load of the experts is not counted: an engine with weights of its own answers")
        return evaluate(room, "after")
    with room.memory.counting():
        result = evaluate(room, "after")
    loads = torch.tensor(gather_object([room.memory.load()]))  # (processes, layers, max_experts)
    return result | {"load": loads.sum(0).tolist()}


def earlier_quizzes(room: Bedroom) -> dict[str, list[Quiz]]:
    """Return the questions of earlier entries, by entry."""
    quizzes: dict[str, list[Quiz]] = {entry.id: [] for entry in standing(room.earlier) if not entry.holds}
    if room.config.continue_from:
        for row in read_jsonl(room.config.continue_from / "adapter" / "questions.jsonl"):
            quizzes[row["entry"]].append(Quiz(row["question"], tuple(row["answers"])))
    return quizzes
