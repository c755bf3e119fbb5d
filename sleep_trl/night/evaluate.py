"""Evaluation before and after a night: questions about the memories and earlier nights, and the base skill."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object

from ..distributed.progress import bar, echo
from ..evaluation.perplexity import find_guessing, mean_loss
from ..evaluation.probes import Item, Probe, perplexity_probe, reading_probe
from ..evaluation.recall import QAItem, ask, sample_items, window_with_answer
from ..rollout.synced import SyncedEngine
from ..runs.files import read_jsonl
from ..runs.folder import RunFolder
from ..runs.ledger import standing_nights
from .context import NightContext

MEASURES = {"skill": "reading questions", "perplexity": "perplexity"}


def evaluate(ctx: NightContext, when: str, left_out: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Ask the questions about the memories and those of earlier nights, and measure the base skill.

    Args:
        ctx (`NightContext`):
            The night.
        when (`str`):
            `"before"` or `"after"`.
        left_out (`Mapping[str, str]`, *optional*):
            Measures of the base skill that are not taken, each with the reason: after the night, those that were not
            taken before it.

    Returns:
        `dict`: `recall` without context; `with_context`, and the numbers of `questions` and `skill_questions` (only
        before); `base`, the pretrained model's recall (only before, and not on a first night); `earlier` by entry; the
        base skill as `skill`, the share of reading questions answered from their passages, and `perplexity`; `probes`,
        what these two were measured on; and `left_out`, which of them were not measured, and why.
    """
    config = ctx.config

    def score(name: str, items: Sequence[QAItem], with_context: bool) -> float | None:
        chosen = sample_items(items, config.evaluation.max_questions, config.seed)
        if len(chosen) < len(items):
            echo(f"Asking {len(chosen)} of {len(items)} questions (evaluation.max_questions)")
        with bar(f"Asking {name}", len(chosen)) as progress:
            return ask(
                chosen,
                ctx.answering(ctx.teachers[0] if ctx.teachers and name == "with context" else ctx.engine),
                ctx.prompter,
                with_context=with_context,
                metric=config.evaluation.metric,
                max_new_tokens=config.evaluation.max_new_tokens,
                progress=progress,
            )

    items = [
        QAItem(q.question, q.answers, window_with_answer(ctx.inputs.contexts[memory.id], q.answers))
        for memory in ctx.memories
        for q in memory.questions
    ]
    result: dict[str, Any] = {
        "recall": score(f"without context, {when}", items, False),
        "earlier": {entry: score(f"{entry}, {when}", items, False) for entry, items in earlier_items(ctx).items()},
    }
    reading, prose = _probes(ctx, left_out or {})
    result["skill"] = score(f"{reading.name}, {when}", reading.items, True)
    with bar(f"Perplexity of {prose.name}, {when}", len(prose.items)) as progress:
        loss = mean_loss(ctx.model, prose.items, progress)
    result["perplexity"] = None if loss is None else math.exp(loss)
    result["probes"] = {"skill": reading.name, "perplexity": prose.name}
    result["left_out"] = {name: p.left_out for name, p in (("skill", reading), ("perplexity", prose)) if p.left_out}
    if when == "before":
        texts = "texts that it knows (evaluation.perplexity)"
        reason = find_guessing(loss, ctx.inputs.vocabulary, prose.name, texts)
        if reason and not config.evaluation.perplexity:
            result["perplexity"], result["left_out"]["perplexity"] = None, reason
        if result["skill"] == 0 and not config.evaluation.skill:
            result["skill"] = None
            result["left_out"]["skill"] = (
                f"the model answers none of the {reading.name}, so it has nothing to lose; give passages with "
                f"questions that it can answer (evaluation.skill)"
            )
        for name, reason in result["left_out"].items():
            echo(f"The base skill is measured without {MEASURES[name]}: {reason}", style="yellow")
        result["questions"] = min(len(items), config.evaluation.max_questions)
        result["skill_questions"] = len(reading.items)
        result["with_context"] = score("with context", items, True)
        if ctx.earlier:
            with ctx.memory.as_base():
                result["base"] = score("without context, the pretrained model", items, False)
    return result


def _probes(ctx: NightContext, left_out: Mapping[str, str]) -> tuple[Probe[QAItem], Probe[list[int]]]:
    """Return what measures the base skill: reading questions, and texts for the perplexity."""
    inputs, files = ctx.inputs, ctx.config.evaluation
    name, texts = (path.name if path else "" for path in (files.skill, files.perplexity))
    reading = reading_probe(
        inputs.skill, name, ctx.prompter, inputs.largest_window, files.max_questions, ctx.config.seed
    )
    prose = perplexity_probe(inputs.prose, texts, ctx.tokenizer, inputs.context)
    return _unless(left_out.get("skill"), reading), _unless(left_out.get("perplexity"), prose)


def _unless(reason: str | None, probe: Probe[Item]) -> Probe[Item]:
    """Return a probe, or one without items if there is a reason to leave it out."""
    return replace(probe, items=[], left_out=reason) if reason else probe


def evaluate_after(ctx: NightContext, left_out: Mapping[str, str]) -> dict[str, Any]:
    """Ask again, without the measures that were `left_out` before the night. If the experts are routed and the model
    itself answers, `load` counts the tokens that each expert got, by layer."""
    if not ctx.memory.spec.is_routed:
        return evaluate(ctx, "after", left_out)
    if isinstance(ctx.engine, SyncedEngine):
        echo("The load of the experts is not counted: the engine has its own weights")
        return evaluate(ctx, "after", left_out)
    with ctx.memory.counting():
        result = evaluate(ctx, "after", left_out)
    loads = torch.tensor(gather_object([ctx.memory.load()]))  # (processes, layers, max_experts)
    return result | {"load": loads.sum(0).tolist()}


def earlier_items(ctx: NightContext) -> dict[str, list[QAItem]]:
    """Return the questions of earlier entries, by entry."""
    items: dict[str, list[QAItem]] = {entry.id: [] for entry in standing_nights(ctx.earlier)}
    if ctx.config.continue_from:
        for row in read_jsonl(RunFolder(ctx.config.continue_from).adapter.questions):
            items[row["entry"]].append(QAItem(row["question"], tuple(row["answers"])))
    return items
