"""Evaluation before and after a night: questions about the memories and earlier nights, and the base skill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object

from ..distributed.progress import bar, echo
from ..evaluation.recall import QAItem, ask, sample_items, window_with_answer
from ..rollout.synced import SyncedEngine
from ..runs.files import read_jsonl
from ..runs.folder import RunFolder
from ..runs.ledger import active_entries
from .context import NightContext


def evaluate(ctx: NightContext, when: str) -> dict[str, Any]:
    """Ask the questions about the memories, those of earlier nights, and the skill probe.

    Args:
        ctx (`NightContext`):
            The night.
        when (`str`):
            `"before"` or `"after"`.

    Returns:
        `dict`: `recall` without context; `with_context` (only before); `base`, the pretrained model's recall (only
        before, and not on a first night); `skill` (`None` without a probe); `earlier` by entry.
    """
    config = ctx.config

    def score(name: str, items: Sequence[QAItem], with_context: bool) -> float | None:
        chosen = sample_items(items, config.evaluation.max_questions, config.seed)
        if len(chosen) < len(items):
            echo(f"Asking {len(chosen)} of {len(items)} questions (evaluation.max_questions)")
        with bar(f"Asking {name}", len(chosen)) as progress:
            return ask(
                chosen,
                ctx.teachers[0] if ctx.teachers and name == "with context" else ctx.engine,
                ctx.prompter,
                with_context=with_context,
                metric=config.evaluation.metric,
                max_new_tokens=config.evaluation.max_new_tokens,
                progress=progress,
            )

    items = [
        QAItem(q.question, q.answers, window_with_answer(contexts, q.answers))
        for memory, contexts in zip(ctx.memories, ctx.inputs.contexts, strict=True)
        for q in memory.questions
    ]
    skill = [QAItem(q.question, q.answers, m.text) for m in ctx.inputs.skill for q in m.questions]
    result: dict[str, Any] = {
        "recall": score(f"without context, {when}", items, False),
        "skill": score(f"fresh passages, {when}", skill, True),
        "earlier": {entry: score(f"{entry}, {when}", items, False) for entry, items in earlier_items(ctx).items()},
    }
    if when == "before":
        result["with_context"] = score("with context", items, True)
        if ctx.earlier:
            with ctx.memory.as_base():
                result["base"] = score("without context, the pretrained model", items, False)
    return result


def evaluate_after(ctx: NightContext) -> dict[str, Any]:
    """Ask again. If the experts are routed and the model itself answers, `load` counts the tokens that each expert got,
    by layer."""
    if not ctx.memory.spec.is_routed:
        return evaluate(ctx, "after")
    if isinstance(ctx.engine, SyncedEngine):
        echo("The load of the experts is not counted: the engine has its own weights")
        return evaluate(ctx, "after")
    with ctx.memory.counting():
        result = evaluate(ctx, "after")
    loads = torch.tensor(gather_object([ctx.memory.load()]))  # (processes, layers, max_experts)
    return result | {"load": loads.sum(0).tolist()}


def earlier_items(ctx: NightContext) -> dict[str, list[QAItem]]:
    """Return the questions of earlier entries, by entry."""
    items: dict[str, list[QAItem]] = {entry.id: [] for entry in active_entries(ctx.earlier) if not entry.holds}
    if ctx.config.continue_from:
        for row in read_jsonl(RunFolder(ctx.config.continue_from).adapter.questions):
            items[row["entry"]].append(QAItem(row["question"], tuple(row["answers"])))
    return items
