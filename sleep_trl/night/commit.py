"""The end of a night: experts, what later nights need of this one, the grown model, and the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import PartialState

from ..data.documents import MemoryText
from ..data.samples import Sample
from ..data.templates import Template
from ..distributed.zero3 import takes_part_in_saving
from ..memory import base_fingerprint, fold, save_memory
from ..planning.night_source import fail_unused
from ..runs.files import read_jsonl, write_jsonl, write_text
from ..runs.ledger import LedgerEntry, Source, expert_owners, now, write_ledger
from ..runs.model_card import model_card
from .consolidate import Promotion
from .context import NightContext


def commit(
    ctx: NightContext,
    expert: int,
    passed: list[Promotion],
    samples: list[Sample],
    before: dict[str, Any],
    after: dict[str, Any],
    lost: str | None = None,
) -> dict[str, Any]:
    """Write the experts, the grown model, what later nights need of this one, and the ledger, in this order.

    A night that has `lost` too much, in words, leaves its lines in the ledger, and the model as it was before. Memories
    about which nothing usable was written are in no entry; records of a wake buffer among them have failed.

    Routed experts do not fold into a checkpoint: then there is no `model/`, and no `fold_difference`.
    """
    if not takes_part_in_saving(ctx.model):
        return {}
    config, adapter = ctx.config, ctx.adapter
    about = {sample.memory_id for sample in samples if sample.part == "memory"}
    taught = [memory for memory in ctx.memories if memory.id in about]
    ledger = _write_entries(ctx, expert, passed, taught, {"before": before, "after": after}, lost)
    entry = ledger[-1]
    if lost:
        ctx.restore()
        samples = []
    save_memory(ctx.memory, adapter)
    difference = None
    if not ctx.memory.spec.is_routed:
        probe = torch.tensor([ctx.prompter.question(Template.load("question_answer"), "x")], device=ctx.model.device)
        difference = fold(ctx.memory, config.output_dir / "model", probe)
    if not PartialState().is_main_process:
        return {}
    prompts = {
        (s.prompt, s.template): {
            "entry": entry.id,
            "memory_id": s.memory_id,
            "template": s.template,
            "prompt": s.prompt,
            "prompt_ids": s.prompt_ids,
            "stop": s.stop,
        }
        for s in samples
        if s.part == "memory"
    }
    questions = [
        {"entry": entry.id, "question": q.question, "answers": list(q.answers)}
        for m in ([] if lost else taught)
        for q in m.questions
    ]
    ctx.accumulated.save(adapter)
    write_jsonl(adapter / "prompts.jsonl", [*_earlier_rows(ctx, "prompts.jsonl", lost), *prompts.values()])
    write_jsonl(adapter / "questions.jsonl", [*_earlier_rows(ctx, "questions.jsonl", lost), *questions])
    if difference is not None:
        ctx.tokenizer.save_pretrained(config.output_dir / "model")
        card = model_card(config.model, ledger, ctx.memory.active, "checkpoint")
        write_text(config.output_dir / "model" / "README.md", card)
    write_ledger(config.output_dir / "ledger.jsonl", ledger)
    fail_unused(config, [memory for memory in ctx.memories if memory.id not in about])
    new = ledger[len(ctx.earlier) :]
    promoted = [{"entry": e.id, "level": e.level, "holds": list(e.holds)} for e in new if e.holds]
    return {"entry": entry.id, "fold_difference": difference, "rolled_back": lost, "consolidations": promoted}


def _write_entries(
    ctx: NightContext,
    expert: int,
    passed: list[Promotion],
    taught: list[MemoryText],
    metrics: dict[str, Any],
    lost: str | None,
) -> list[LedgerEntry]:
    """Return the ledger with the night's entries: those of its consolidations in their order, and its own last."""
    ledger, when, experts = list(ctx.earlier), now(), ctx.memory.records
    fate = {"dropped": when if lost else None, "rolled_back": lost}
    silent = {index for index, record in experts.items() if not record.is_enabled}

    def write(expert: int, sources: Iterable[Source], **what: Any) -> None:
        entry = LedgerEntry(
            id=f"entry-{len(ledger) + 1:03}",
            date=when,
            expert=expert,
            level=experts[expert].level,
            fingerprint=ctx.memory.fingerprint(expert),
            base=base_fingerprint(ctx.memory),
            parents=tuple(
                e.id for e in expert_owners(ledger) if e.expert not in silent and e.id not in what.get("holds", ())
            ),
            sources=tuple(sources),
            **what,
            **fate,
        )
        ledger.append(entry)

    if (what := ctx.relearning) is not None:
        ledger[:] = [e.model_copy(update={"dropped": when}) if e.id in what.dropped and not lost else e for e in ledger]
        sources = dict.fromkeys(s for e in ctx.earlier if e.id in what.holds for s in e.sources)
        write(expert, sources, holds=what.holds, metrics=metrics)
        return ledger
    for one in passed:
        sources = dict.fromkeys(s for e in ctx.earlier if e.id in one.holds for s in e.sources)
        write(one.expert, sources, holds=one.holds, metrics={})
    memories = (Source(id=m.id, source=m.source, sha256=m.sha256) for m in taught)
    write(expert, memories, tokens=ctx.inputs.tokens, metrics=metrics)
    return ledger


def _earlier_rows(ctx: NightContext, name: str, lost: str | None) -> list[dict[str, Any]]:
    gone = ctx.relearning.forgotten if ctx.relearning and not lost else ()
    rows = read_jsonl(ctx.config.continue_from / "adapter" / name) if ctx.config.continue_from else ()
    return [row for row in rows if row["entry"] not in gone]
