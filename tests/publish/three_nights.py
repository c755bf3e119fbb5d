"""Three finished nights of a tiny model, with experts of drawn weights."""

from __future__ import annotations

from pathlib import Path

import torch

from sleep_trl.config import RunConfig
from sleep_trl.data.documents import MemoryText
from sleep_trl.memory import MemorySpec, attach, base_fingerprint, fold, save_memory
from sleep_trl.models.loading import load_tokenizer
from sleep_trl.runs.files import write_json, write_jsonl
from sleep_trl.runs.ledger import LedgerEntry, Source, write_ledger
from tests.tiny import tiny_model

NIGHTS = [
    [MemoryText("a", "letters", "the cat of Mira"), MemoryText("b", "contract-17.pdf", "the boat of Ben")],
    [MemoryText("c", "contract-17.pdf", "it eats hats"), MemoryText("d", "letters", "the boat sleeps")],
    [MemoryText("e", "letters", "Tolu sleeps")],
]


def filled(experts: tuple[int, ...], **spec: object):
    """Return the tiny model with these of three experts, each with weights drawn for its night."""
    memory = attach(tiny_model(), MemorySpec(**{"width": 8, "max_experts": 3, "top_k": 1, **spec}))
    for index in range(3):
        assert memory.activate() == index
        draw = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for _, parameter in memory.expert_parameters(index):
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
    for index in range(3):
        if index not in experts:
            memory.reset(index)
    memory.commit()
    return memory


def write_run(folder: Path, base: Path, **spec: object) -> Path:
    """Write the files of three finished nights."""
    memory = filled((0, 1, 2), **spec)
    run = folder / "night3"
    config = RunConfig(model=str(base), memories=str(folder / "memories.jsonl"), output_dir=run)
    entries = [
        LedgerEntry(
            id=f"entry-{number + 1:03}",
            date="2026-07-10T08:00:00+00:00",
            expert=number,
            level=1,
            fingerprint=memory.fingerprint(number),
            base=base_fingerprint(memory),
            parents=tuple(f"entry-{n + 1:03}" for n in range(number)),
            sources=tuple(Source(id=m.id, source=m.source, sha256=m.sha256) for m in memories),
            metrics={"before": {"recall": 0.0}, "after": {"recall": 0.5}},
        )
        for number, memories in enumerate(NIGHTS)
    ]
    rows = [{"id": m.id, "source": m.source, "text": m.text} for memories in NIGHTS for m in memories]
    write_jsonl(folder / "memories.jsonl", rows)
    write_json(run / "config.json", config.model_dump(mode="json"))
    write_json(run / "results.json", {"seed": 1})
    save_memory(memory, run / "adapter")
    for name in ("prompts.jsonl", "questions.jsonl"):
        write_jsonl(run / "adapter" / name, ({"entry": entry.id, "question": "?"} for entry in entries for _ in "ab"))
    if not memory.spec.is_routed:
        fold(memory, run / "model")
        load_tokenizer(config).save_pretrained(run / "model")
    write_ledger(run / "ledger.jsonl", entries)
    for work in ("checkpoints/checkpoint-2/experts.safetensors", "phases/write_dataset.json", "dream_adapter/x"):
        (run / work).parent.mkdir(parents=True, exist_ok=True)
        (run / work).write_text("the boat of Ben")
    return run
