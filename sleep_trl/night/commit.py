"""The end of a night: experts, what later nights need of this one, the grown model, and the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import PartialState

from ..data import Sample, Template
from ..data.documents import MemoryText
from ..distributed.zero3 import takes_part_in_saving
from ..memory import base_fingerprint, fold, save_memory
from ..planning.night_source import fail_silent
from ..runs.files import read_jsonl, write_jsonl, write_text
from ..runs.ledger import LedgerEntry, Source, now, owning, write_ledger
from ..runs.model_card import model_card
from .consolidate import PassedOn
from .context import Bedroom


def commit(
    room: Bedroom,
    expert: int,
    passed: list[PassedOn],
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
    if not takes_part_in_saving(room.model):
        return {}
    config, adapter = room.config, room.adapter
    about = {sample.memory_id for sample in samples if sample.part == "memory"}
    taught = [memory for memory in room.memories if memory.id in about]
    ledger = _write_entries(room, expert, passed, taught, {"before": before, "after": after}, lost)
    entry = ledger[-1]
    if lost:
        room.restore()
        samples = []
    save_memory(room.memory, adapter)
    difference = None
    if not room.memory.spec.is_routed:
        probe = torch.tensor([room.prompter.question(Template.load("question_answer"), "x")], device=room.model.device)
        difference = fold(room.memory, config.output_dir / "model", probe)
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
    room.accumulated.save(adapter)
    write_jsonl(adapter / "prompts.jsonl", [*_earlier_rows(room, "prompts.jsonl", lost), *prompts.values()])
    write_jsonl(adapter / "questions.jsonl", [*_earlier_rows(room, "questions.jsonl", lost), *questions])
    if difference is not None:
        room.tokenizer.save_pretrained(config.output_dir / "model")
        card = model_card(config.model, ledger, room.memory.active, "checkpoint")
        write_text(config.output_dir / "model" / "README.md", card)
    write_ledger(config.output_dir / "ledger.jsonl", ledger)
    fail_silent(config, [memory for memory in room.memories if memory.id not in about])
    new = ledger[len(room.earlier) :]
    onward = [{"entry": e.id, "level": e.level, "holds": list(e.holds)} for e in new if e.holds]
    return {"entry": entry.id, "fold_difference": difference, "rolled_back": lost, "consolidations": onward}


def _write_entries(
    room: Bedroom,
    expert: int,
    passed: list[PassedOn],
    taught: list[MemoryText],
    metrics: dict[str, Any],
    lost: str | None,
) -> list[LedgerEntry]:
    """Return the ledger with the night's entries: those of its consolidations in their order, and its own last."""
    ledger, when, experts = list(room.earlier), now(), room.memory.records
    fate = {"dropped": when if lost else None, "rolled_back": lost}
    silent = {index for index, record in experts.items() if not record.is_enabled}

    def write(expert: int, sources: Iterable[Source], **what: Any) -> None:
        entry = LedgerEntry(
            id=f"entry-{len(ledger) + 1:03}",
            date=when,
            expert=expert,
            level=experts[expert].level,
            fingerprint=room.memory.fingerprint(expert),
            base=base_fingerprint(room.memory),
            parents=tuple(e.id for e in owning(ledger) if e.expert not in silent and e.id not in what.get("holds", ())),
            sources=tuple(sources),
            **what,
            **fate,
        )
        ledger.append(entry)

    if (what := room.relearning) is not None:
        ledger[:] = [e.model_copy(update={"dropped": when}) if e.id in what.dropped and not lost else e for e in ledger]
        sources = dict.fromkeys(s for e in room.earlier if e.id in what.holds for s in e.sources)
        write(expert, sources, holds=what.holds, metrics=metrics)
        return ledger
    for one in passed:
        sources = dict.fromkeys(s for e in room.earlier if e.id in one.holds for s in e.sources)
        write(one.expert, sources, holds=one.holds, metrics={})
    memories = (Source(id=m.id, source=m.source, sha256=m.sha256) for m in taught)
    write(expert, memories, tokens=room.tokens, metrics=metrics)
    return ledger


def _earlier_rows(room: Bedroom, name: str, lost: str | None) -> list[dict[str, Any]]:
    gone = room.relearning.forgotten if room.relearning and not lost else ()
    rows = read_jsonl(room.config.continue_from / "adapter" / name) if room.config.continue_from else ()
    return [row for row in rows if row["entry"] not in gone]
