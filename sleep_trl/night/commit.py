"""The end of a night: write the experts, the grown model, what later nights need, and the ledger."""

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
from ..runs.checksums import record_folder
from ..runs.files import read_jsonl, write_jsonl, write_text
from ..runs.folder import RunFolder
from ..runs.ledger import LedgerEntry, Source, expert_owners, now, write_ledger
from ..runs.model_card import model_card
from .consolidate import Promotion
from .context import NightContext


def commit(
    ctx: NightContext,
    expert: int,
    promotions: list[Promotion],
    samples: list[Sample],
    learned: list[Sample],
    before: dict[str, Any],
    after: dict[str, Any],
    failure: str | None = None,
) -> dict[str, Any]:
    """Write the experts, the grown model, what later nights need of this one, and the ledger, in this order.

    A night that is rolled back leaves its lines in the ledger, and the model as it was before. Memories that were not
    trained on are in no entry. Records of a wake buffer among them are marked as failed if nothing usable was written
    about them; the others stay queued.

    Args:
        ctx (`NightContext`):
            The night.
        expert (`int`):
            Its own expert.
        promotions (`list[Promotion]`):
            Its consolidations, in order.
        samples (`list[Sample]`):
            Its data set.
        learned (`list[Sample]`):
            Those about the memories that were trained on.
        before (`dict`):
            Evaluation before the night.
        after (`dict`):
            Evaluation after it.
        failure (`str`, *optional*):
            Why the night is rolled back.

    Returns:
        `dict`: the night's `entry`; the memories that are `not_trained`; `fold_difference`, `None` if the experts are
        routed and there is no `model/`;
        `rolled_back`, the reason; and `consolidations`.
    """
    if not takes_part_in_saving(ctx.model):
        return {}
    config, folder = ctx.config, RunFolder(ctx.config.output_dir)
    used_ids, written_ids = ({s.memory_id for s in some if s.part == "memory"} for some in (learned, samples))
    used = [memory for memory in ctx.memories if memory.id in used_ids]
    ledger = _write_entries(ctx, expert, promotions, used, {"before": before, "after": after}, failure)
    entry = ledger[-1]
    if failure:
        ctx.restore()
    save_memory(ctx.memory, folder.adapter.path)
    difference = None
    if not ctx.memory.spec.is_routed:
        probe = torch.tensor([ctx.prompter.question(Template.load("question_answer"), "x")], device=ctx.model.device)
        difference = fold(ctx.memory, folder.model, probe)
    if not PartialState().is_main_process:
        return {}
    ctx.accumulated.save(folder.adapter.path)
    prompts, questions = ([], []) if failure else (_prompt_rows(entry, learned), _question_rows(entry, used))
    for path, own in ((folder.adapter.prompts, prompts), (folder.adapter.questions, questions)):
        write_jsonl(path, [*_earlier_rows(ctx, path.name, failure), *own], is_checked=True)
    if difference is not None:
        ctx.tokenizer.save_pretrained(folder.model)
        variables = config.chat_template_kwargs if ctx.prompter.has_chat else {}
        card = model_card(config.model, ledger, ctx.memory.active, "checkpoint", variables, config.model_revision)
        write_text(folder.model / "README.md", card)
        record_folder(folder.model)  # all of it is on disk before the ledger names it
    write_ledger(folder.ledger, ledger)
    fail_unused(config, [memory for memory in ctx.memories if memory.id not in written_ids])
    new = ledger[len(ctx.earlier) :]
    made = [e for e in new if e.holds and not failure]
    return {
        "entry": entry.id,
        "not_trained": [memory.id for memory in ctx.memories if memory.id not in used_ids],
        "fold_difference": difference,
        "rolled_back": failure,
        "consolidations": [{"entry": e.id, "level": e.level, "holds": list(e.holds)} for e in made],
    }


def _write_entries(
    ctx: NightContext,
    expert: int,
    promotions: list[Promotion],
    memories: list[MemoryText],
    metrics: dict[str, Any],
    failure: str | None,
) -> list[LedgerEntry]:
    """Return the ledger with the night's entries: those of its consolidations in order, then its own."""
    ledger, when, experts = list(ctx.earlier), now(), ctx.memory.records
    status = {"dropped": when if failure else None, "rolled_back": failure}
    disabled = {index for index, record in experts.items() if not record.is_enabled}

    def add_entry(expert: int, sources: Iterable[Source], **fields: Any) -> None:
        entry = LedgerEntry(
            id=f"entry-{len(ledger) + 1:03}",
            date=when,
            expert=expert,
            level=experts[expert].level,
            fingerprint=ctx.memory.fingerprint(expert),
            base=base_fingerprint(ctx.memory),
            parents=tuple(
                e.id for e in expert_owners(ledger) if e.expert not in disabled and e.id not in fields.get("holds", ())
            ),
            sources=tuple(sources),
            **fields,
            **status,
        )
        ledger.append(entry)

    def sources_of(entries: Iterable[str]) -> Iterable[Source]:
        return dict.fromkeys(source for e in ctx.earlier if e.id in entries for source in e.sources)

    if (relearning := ctx.relearning) is not None:
        dropped = () if failure else relearning.dropped
        ledger[:] = [e.model_copy(update={"dropped": when}) if e.id in dropped else e for e in ledger]
        add_entry(expert, sources_of(relearning.holds), holds=relearning.holds, metrics=metrics)
        return ledger
    for promotion in promotions:
        add_entry(promotion.expert, sources_of(promotion.holds), holds=promotion.holds, metrics={})
    own_sources = (Source(id=m.id, source=m.source, sha256=m.sha256) for m in memories)
    add_entry(expert, own_sources, tokens=ctx.inputs.tokens, metrics=metrics)
    return ledger


def _prompt_rows(entry: LedgerEntry, samples: list[Sample]) -> list[dict[str, Any]]:
    """Return the prompts about the memories, each once, which later nights replay."""
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
    }
    return list(prompts.values())


def _question_rows(entry: LedgerEntry, memories: list[MemoryText]) -> list[dict[str, Any]]:
    """Return the questions about the memories, which later nights ask again."""
    questions = (question for memory in memories for question in memory.questions)
    return [{"entry": entry.id, "question": q.question, "answers": list(q.answers)} for q in questions]


def _earlier_rows(ctx: NightContext, file: str, failure: str | None) -> list[dict[str, Any]]:
    """Return the rows of earlier nights, except those of entries that this night unlearns."""
    if ctx.config.continue_from is None:
        return []
    adapter = RunFolder(ctx.config.continue_from).adapter
    forgotten = ctx.relearning.forgotten if ctx.relearning and not failure else ()
    return [row for row in read_jsonl(adapter.path / file) if row["entry"] not in forgotten]
