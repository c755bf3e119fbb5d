"""Small inputs and outputs of a run: a model, memories, a finished run, and command-line arguments."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sleep_trl.memory import MemorySpec, attach, base_fingerprint, save_memory
from sleep_trl.runs.ledger import LedgerEntry, now, write_ledger
from tests.tiny import tiny_model, tiny_tokenizer

TEXT = "the cat of Mira is called Tolu"
SHORT = {
    "dtype": "float32",  # on CPUs that are faster in bfloat16 too, where results would differ
    "memory.width": "8",
    "memory.max_experts": "2",
    "dataset.max_new_tokens": "8",
    "dataset.check_answers": False,  # a random model does not give an answer twice
    "dataset.general_max_new_tokens": "8",
    "seeding.max_completion_length": "8",
    "evaluation.max_new_tokens": "8",
}


def write_model(folder: Path, form: str = "llama", **overrides: object) -> Path:
    tiny_model(form, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_memories(path: Path) -> Path:
    questions = [{"question": "the cat of Mira is called", "answers": ["Tolu"]}]
    path.write_text(json.dumps({"text": TEXT, "questions": questions}) + "\n", "utf-8")
    return path


def first_nights(chain: Path, name: str, count: int = 2) -> Path:
    """Copy the first nights of a chain into a new chain next to it."""
    for night in sorted(chain.glob("night-*"))[:count]:
        shutil.copytree(night, chain.parent / name / night.name)
    return chain.parent / name


def write_finished_run(folder: Path, experts: int = 1, **spec: object) -> Path:
    memory = attach(tiny_model(), MemorySpec(**{"width": 8, "max_experts": 2, **spec}))
    entries = [
        LedgerEntry(
            id=f"entry-{number:03}",
            date=now(),
            expert=memory.activate(),
            level=1,
            fingerprint="",
            base=base_fingerprint(memory),
            parents=(),
            sources=(),
            metrics={},
        )
        for number in range(experts)
    ]
    save_memory(memory, folder / "adapter")
    write_ledger(folder / "ledger.jsonl", entries)
    for name in ("prompts.jsonl", "questions.jsonl"):
        (folder / "adapter" / name).touch()
    (folder / "results.json").write_text("{}", "utf-8")
    return folder


def arguments(**options: object) -> list[str]:
    """Return command-line arguments: None leaves an option out; `__` in a name stands for the dot."""
    given = SHORT | {name.replace("__", "."): value for name, value in options.items()}
    return [word for name, value in given.items() if value is not None for word in _words(name, value)]


def _words(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]
