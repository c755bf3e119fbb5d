"""The quickstart's town for the studies of dreaming: its nights, its sentences as tasks, a memory of several nights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _report import ROOT

QUICKSTART = ROOT / "examples" / "quickstart"
sys.path[:0] = [str(ROOT), str(QUICKSTART)]

WINDOW = 20  # tokens of a memory in one task: a sentence
TOWN_SEED = 1  # of the quickstart's memories; its first three nights are files beside the model


def memories_of(night: int) -> list[dict[str, Any]]:
    """Return the memories of a night, counted from 1, with their questions."""
    from world import nights, record

    passages = nights(TOWN_SEED, night)[night - 1]
    return [record(passage, f"night{night}-{page}", "The Town Crier") for page, passage in enumerate(passages, 1)]


def sentence_tasks(
    memories: Sequence[dict[str, Any]], count_tokens: Callable[[str], int], most: int | None = None
) -> list[dict[str, Any]]:
    """Return a task of [`DreamingTrainer`] for each sentence, with the questions whose answers and names it holds."""
    from sleep_trl.dataset import split_windows

    rows = []
    for memory in memories:
        asked = memory["questions"] + memory["other_words"]
        for k, text in enumerate(split_windows(memory["text"], count_tokens, WINDOW, 0)):
            about = [q for q in asked if q["answers"][0] in text and _names(q["question"]) <= set(_words(text))]
            questions = [{"question": q["question"], "answers": q["answers"]} for q in about]
            rows.append({"prompt": text, "task_id": f"{memory['id']}-{k}", "context": text, "questions": questions})
    return rows[:most]


def _words(text: str) -> list[str]:
    """Return the words of a text without their punctuation."""
    return [word.strip("?.,") for word in text.split()]


def _names(question: str) -> set[str]:
    """Return the names in a question: its capitalized words but the first."""
    return {word for word in _words(question)[1:] if word[0].isupper()}


def routed_memory(folder: Path, nights: Sequence[int], steps: int) -> Path:
    """Let the quickstart's model sleep over several nights with routed experts, each token taking one of them.

    Args:
        folder (`Path`):
            Where the nights go; those that are there already are not slept again.
        nights (`Sequence[int]`):
            Nights of the town, an expert for each.
        steps (`int`):
            Optimizer steps a night.

    Returns:
        `Path`: the last night's `adapter`.
    """
    from world import write_records

    from sleep_trl.night import run_night
    from sleep_trl.settings import parse
    from sleep_trl.trainers.knowledge_seeding.from_config import seed_expert

    last: Path | None = None
    for night in nights:
        here = folder / f"steps{steps}" / "-".join(map(str, nights)) / f"night{night}"
        if not (here / "results.json").exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            memories = here.with_suffix(".jsonl")
            write_records(memories, memories_of(night))
            options = {
                "model": QUICKSTART / "model",
                "memories": memories,
                "dataset.general_texts": QUICKSTART / "general.jsonl",
                "evaluation.skill": QUICKSTART / "skill.jsonl",
                "output_dir": here,
                "seeding.steps": steps,
                "memory.routing": "topk",
                "memory.top_k": 1,
                **({"continue_from": last} if last else {}),
                **({"resume": "true"} if (here / "config.json").exists() else {}),
            }
            words = [f"--{name}={value}" for name, value in options.items()]
            run_night(parse(["--config", str(QUICKSTART / "config.yaml"), "--no-report", *words]), seed_expert)
        last = here
    assert last is not None
    return last / "adapter"
