"""The quickstart's town for the studies: its memories, its sentences as tasks, and nights of its model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _report import ROOT

if TYPE_CHECKING:
    from sleep_trl.data.windows import CountAll
    from sleep_trl.runs.ledger import LedgerEntry

QUICKSTART = ROOT / "examples" / "quickstart"
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "pretrain_tiny")]

WINDOW = 20  # tokens of a memory in one task: a sentence
TOWN_SEED = 1  # of the quickstart's memories; its first three nights are files next to the model


def memories_of(night: int) -> list[dict[str, Any]]:
    """Return the memories of a night, counted from 1, with their questions."""
    from world import nights, record

    passages = nights(TOWN_SEED, night)[night - 1]
    return [record(passage, f"night{night}-{page}", "The Town Crier") for page, passage in enumerate(passages, 1)]


def write_memories(path: Path, night: int, pages: int | None = None) -> Path:
    """Write the memories of a night, or the first pages of them, to a file."""
    from world import write_records

    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(path, memories_of(night)[:pages])
    return path


def sentence_tasks(
    memories: Sequence[dict[str, Any]], count_all: CountAll, most: int | None = None
) -> list[dict[str, Any]]:
    """Return a task for [`DreamingTrainer`] per sentence, with the questions whose answers and names it contains."""
    from sleep_trl.data.windows import split_all

    rows = []
    for memory in memories:
        asked = memory["questions"] + memory["other_words"]
        for k, text in enumerate(split_all([memory["text"]], count_all, WINDOW, 0)[0]):
            about = [q for q in asked if q["answers"][0] in text and _names(q["question"]) <= set(_words(text))]
            questions = [{"question": q["question"], "answers": q["answers"]} for q in about]
            rows.append({"prompt": text, "task_id": f"{memory['id']}-{k}", "context": text, "questions": questions})
    return rows[:most]


def _words(text: str) -> list[str]:
    """Return the words of a text without their punctuation."""
    return [word.strip("?.,") for word in text.split()]


def _names(question: str) -> set[str]:
    """Return the names in a question: its capitalized words except the first."""
    return {word for word in _words(question)[1:] if word[0].isupper()}


def words_of(options: dict[str, Any]) -> list[str]:
    """Return arguments for launch/sleep.py: the quickstart's configuration, changed by options with dotted names."""
    return ["--config", str(QUICKSTART / "config.yaml"), *(f"--{name}={value}" for name, value in options.items())]


def sleep(folder: Path, memories: Path, options: dict[str, Any]) -> Path:
    """Run a night of the quickstart's model in a fresh process, unless the folder already has its results.

    Args:
        folder (`Path`):
            The run's `output_dir`; an interrupted night in it is continued.
        memories (`Path`):
            The night's memories.
        options (`dict`):
            Differences from the quickstart's configuration, by dotted name.

    Returns:
        `Path`: the folder.

    Raises:
        `ValueError`: if the folder holds a night with other options.
        `RuntimeError`: if the night fails, with the end of its output.
    """
    from sleep_trl.config.command_line import parse
    from sleep_trl.planning.output_dir import changed_options

    words = words_of({"memories": memories.absolute(), "output_dir": folder.absolute(), **options})
    is_begun, is_done = (folder / "config.json").exists(), (folder / "results.json").exists()
    if is_begun and (changed := changed_options(parse(words), folder / "config.json")):
        raise ValueError(
            f"{folder} holds a night with other options: {'; '.join(changed)}. Remove it, or give another."
        )
    if not is_done:
        command = [sys.executable, "launch/sleep.py", "--no-report", *words, *(["--resume"] if is_begun else [])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"A night failed: {' '.join(command)}\n{done.stderr[-2000:]}")
    return folder


def run_chain(folder: Path, nights: Sequence[Path], options: dict[str, Any]) -> list[LedgerEntry]:
    """Run night after night in a fresh process. Finished nights in the folder are kept, and an interrupted one is
    continued.

    Args:
        folder (`Path`):
            The chain's `output_dir`.
        nights (`Sequence[Path]`):
            Each night's memories.
        options (`dict`):
            Differences from the quickstart's configuration, by dotted name.

    Returns:
        `list[LedgerEntry]`: the last night's ledger.

    Raises:
        `RuntimeError`: if a night fails; its output is on standard error.
    """
    from sleep_trl.runs.ledger import read_ledger

    about = json.dumps([str(path.absolute()) for path in nights])
    words = words_of({"nights": about, "output_dir": folder.absolute(), **options})
    command = [sys.executable, "launch/sleep.py", "--no-report", "--resume", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"A night in {folder} failed with exit code {done.returncode}; see above.")
    return read_ledger(folder / f"night-{len(nights):03}" / "ledger.jsonl")


def routed_memory(folder: Path, nights: Sequence[int], steps: int) -> Path:
    """Run several nights of the quickstart's model with routed experts, one expert per token.

    Args:
        folder (`Path`):
            Folder for the nights; finished ones are not repeated.
        nights (`Sequence[int]`):
            Nights of the town, one expert each.
        steps (`int`):
            Optimizer steps per night.

    Returns:
        `Path`: the last night's `adapter`.
    """
    options: dict[str, Any] = {"seeding.steps": steps, "memory.routing": "topk", "memory.top_k": 1}
    for night in nights:
        here = folder / f"steps{steps}" / "-".join(map(str, nights)) / f"night{night}"
        options["continue_from"] = sleep(here, write_memories(here.with_suffix(".jsonl"), night), options)
    return Path(options["continue_from"], "adapter")
