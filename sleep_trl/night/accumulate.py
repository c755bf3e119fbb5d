"""Compute and update (method 3.3): what the levels accumulate of a night's memories, and what becomes of it at their
boundaries. Nothing of it happens unless `levels.learning_rate` is above 0."""

from __future__ import annotations

from accelerate import PartialState

from ..distributed.progress import say
from ..memory.accumulated_gradients import Accumulated, write_updated
from ..planning.consolidation import due_updates
from ..runs.phases import Phases
from .context import Bedroom


def accumulate(room: Bedroom, phases: Phases) -> None:
    """Add the gradients of the night's memories to what the levels have accumulated. Every process takes all of them,
    which is cheaper than to share them out: each text is read once."""
    if not room.config.levels.learning_rate:
        return
    folder = phases.folder / "accumulated"

    def add() -> dict[str, int]:
        ids = [room.tokenizer(memory.text)["input_ids"] for memory in room.memories]
        heard = room.accumulated.add(room.memory, [part for text in ids for part in _parts(text, room.context)])
        if PartialState().is_main_process:
            room.accumulated.save(folder)
        return {"tokens": heard}

    phases.once("accumulate", add)
    room.accumulated = Accumulated.load(folder)


def levels_to_update(room: Bedroom) -> list[int]:
    """Return the levels whose boundary the night passes, slow to fast."""
    return due_updates(room.config.levels, room.earlier, room.tokens)


def prospective(room: Bedroom, level: int) -> tuple[int, int]:
    """Put the block of a level as it will be after its update into a free slot, and return the old one and the new
    one."""
    old = room.memory.blocks[level]
    new = room.memory.add_block(level)
    _write(room, level, old, new)
    return old, new


def update(room: Bedroom, level: int) -> None:
    """Apply a level's update where nothing is consolidated with it, such as at the slowest level, which has no
    receiver."""
    _write(room, level, room.memory.blocks[level], room.memory.blocks[level])


def _write(room: Bedroom, level: int, block: int, into: int) -> None:
    say(f"Updating the block of level {level} by {room.accumulated.tokens[level]:,} tokens")
    rate, max_norm = room.config.levels.learning_rate, room.config.seeding.max_grad_norm
    write_updated(room.memory, block, room.accumulated.update(level, rate, max_norm), into)
    room.accumulated.clear(level)


def _parts(ids: list[int], size: int) -> list[list[int]]:
    """Cut a text into parts that fit the context; a last token by itself predicts nothing."""
    parts = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [part for part in parts if len(part) > 1]
