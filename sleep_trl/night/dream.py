"""The second half of a night: tasks and a quiz, dreams tried out, and those that helped learnt for good."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState

from ..data import Sample, split_windows
from ..distributed.progress import say
from ..memory import load_experts, save_memory
from ..runs.phases import Phases
from .context import Bedroom
from .dream_adapter import learn_into_adapter
from .dream_tasks import Dreamer, as_samples, find_tasks, summarize, write_tasks
from .seed import SeedExpert, seed


def dream(
    room: Bedroom, phases: Phases, samples: list[Sample], seed_expert: SeedExpert, dreamer: Dreamer
) -> tuple[dict[str, Any], list[Sample]]:
    """Dream about the memories just consolidated, and let the new expert learn the dreams that helped in the end.

    Returns:
        `tuple[dict, list[Sample]]`: what became of the dreams, and those that helped.
    """
    config, folder = room.config, room.config.output_dir / "phases"
    rows = phases.once("write_quiz", lambda: write_quiz(room))
    if len(rows) < PartialState().num_processes:
        say("[yellow]There is nothing to ask about these memories, so there are no dreams[/]")
        return summarize([], 0), []

    def try_out() -> list[dict[str, Any]]:
        records = dreamer(config, room.model, room.tokenizer, rows, samples, config.output_dir / "checkpoints-dreamt")
        if PartialState().is_main_process:
            save_memory(room.memory, folder / "dreamt")
        return records

    records = phases.once("dream", try_out)
    dreams = as_samples(config, rows, records, room.prompter)
    if not dreams:
        say("No dream of the last round made its task better: the expert stays as it was seeded")
    if not dreams or config.dream.into == "lora":
        load_experts(room.memory, folder / "seeded")
        return summarize(records, len(dreams)), dreams
    say(f"Learning {len(dreams)} dreams that made their tasks better")
    load_experts(room.memory, folder / "dreamt")
    history = phases.once(
        "learn_dreams", lambda: seed(room, samples + dreams, seed_expert, config.dream.steps, "learnt")
    )
    load_experts(room.memory, folder / "learnt")
    return {**summarize(records, len(dreams)), "history": history}, dreams


def adapt_to_dreams(room: Bedroom, dreams: list[Sample]) -> str | None:
    """Let an adapter over the grown model learn the dreams, and return its folder."""
    if not PartialState().is_main_process:
        return None
    say(f"Learning {len(dreams)} dreams that made their tasks better, into an adapter")
    return str(learn_into_adapter(room.config, room.tokenizer, dreams, room.model.device))


def write_quiz(room: Bedroom) -> list[dict[str, Any]]:
    """Make the tasks of dreaming: a row for each window of the memories, with questions about it."""
    config, prompter = room.config, room.prompter
    windows = room.windows
    if size := config.dream.window:
        windows = [split_windows(m.text, prompter.count_tokens, size, 0) for m in room.memories]
    with room.memory.as_teacher():
        return write_tasks(config, find_tasks(room.memories, windows), room.engine, prompter, config.seed + 1001)
