"""Compute and update (method 3.3): what the levels accumulate of a night's memories, and what becomes of it at their
boundaries. Nothing of it happens unless `levels.learning_rate` is above 0."""

from __future__ import annotations

from accelerate import PartialState

from ..distributed.progress import echo
from ..memory.accumulated_gradients import Accumulated, write_updated
from ..runs.phases import Phases
from .context import NightContext


def accumulate(ctx: NightContext, phases: Phases) -> None:
    """Add the gradients of the night's memories to what the levels have accumulated. Every process takes all of them,
    which is cheaper than to share them out: each text is read once."""
    if not ctx.config.levels.learning_rate:
        return
    folder = phases.folder / "accumulated"

    def add() -> dict[str, int]:
        ids = [ctx.tokenizer(memory.text)["input_ids"] for memory in ctx.memories]
        heard = ctx.accumulated.add(ctx.memory, [part for text in ids for part in _parts(text, ctx.inputs.context)])
        if PartialState().is_main_process:
            ctx.accumulated.save(folder)
        return {"tokens": heard}

    phases.once("accumulate", add)
    ctx.accumulated = Accumulated.load(folder)


def levels_to_update(ctx: NightContext) -> list[int]:
    """Return the levels whose boundary the night passes, slow to fast."""
    return ctx.inputs.updates


def prospective(ctx: NightContext, level: int) -> tuple[int, int]:
    """Put the block of a level as it will be after its update into a free slot, and return the old one and the new
    one."""
    old = ctx.memory.blocks[level]
    new = ctx.memory.add_block(level)
    _write(ctx, level, old, new)
    return old, new


def update(ctx: NightContext, level: int) -> None:
    """Apply a level's update where nothing is consolidated with it, such as at the slowest level, which has no
    receiver."""
    _write(ctx, level, ctx.memory.blocks[level], ctx.memory.blocks[level])


def _write(ctx: NightContext, level: int, block: int, into: int) -> None:
    echo(f"Updating the block of level {level} by {ctx.accumulated.tokens[level]:,} tokens")
    rate, max_norm = ctx.config.levels.learning_rate, ctx.config.seeding.max_grad_norm
    write_updated(ctx.memory, block, ctx.accumulated.update(level, rate, max_norm), into)
    ctx.accumulated.clear(level)


def _parts(ids: list[int], size: int) -> list[list[int]]:
    """Cut a text into parts that fit the context; a last token by itself predicts nothing."""
    parts = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [part for part in parts if len(part) > 1]
