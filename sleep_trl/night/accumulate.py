"""Compute and update (method 3.3): levels accumulate gradients of a night's memories, and apply them at their
boundaries. Only if `levels.learning_rate` is above 0."""

from __future__ import annotations

from accelerate import PartialState

from ..distributed.progress import echo
from ..memory.accumulated_gradients import Accumulated, write_updated
from ..runs.phases import Phases
from .context import NightContext


def accumulate(ctx: NightContext, phases: Phases) -> None:
    """Add the gradients of the night's memories to those that the levels have accumulated. Every process computes all
    of them: each text is read only once, so splitting the work would cost more than it saves."""
    if not ctx.config.levels.learning_rate:
        return
    folder = phases.folder / "accumulated"

    def add() -> dict[str, int]:
        ids = [ctx.tokenizer(memory.text)["input_ids"] for memory in ctx.memories]
        tokens = ctx.accumulated.add(ctx.memory, [part for text in ids for part in _split(text, ctx.inputs.context)])
        if PartialState().is_main_process:
            ctx.accumulated.save(folder)
        return {"tokens": tokens}

    phases.once("accumulate", add)
    ctx.accumulated = Accumulated.load(folder)


def prospective(ctx: NightContext, level: int) -> tuple[int, int]:
    """Write a level's updated block into a free slot, and return the slots of the old and the new block."""
    old = ctx.memory.blocks[level]
    new = ctx.memory.add_block(level)
    _write(ctx, level, old, new)
    return old, new


def update(ctx: NightContext, level: int) -> None:
    """Update a level's block in place. For levels from which nothing is consolidated, such as the slowest one."""
    _write(ctx, level, ctx.memory.blocks[level], ctx.memory.blocks[level])


def _write(ctx: NightContext, level: int, block: int, into: int) -> None:
    echo(f"Updating the block of level {level} with gradients from {ctx.accumulated.tokens[level]:,} tokens")
    rate, max_norm = ctx.config.levels.learning_rate, ctx.config.seeding.max_grad_norm
    write_updated(ctx.memory, block, ctx.accumulated.update(level, rate, max_norm), into)
    ctx.accumulated.clear(level)


def _split(ids: list[int], size: int) -> list[list[int]]:
    """Split a text into parts that fit the context. A part of one token is dropped: it predicts nothing."""
    parts = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [part for part in parts if len(part) > 1]
