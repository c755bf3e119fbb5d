"""Which experts a night consolidates into one of a slower level, before it learns anything itself (method 3.1, 3.3).

A level's experts become one when its chunk is full (`levels.chunks`), or when the memory has but one free expert left,
two where levels have blocks (`levels.when_full`). All of it follows from the ledger, the records of the experts and the
night's tokens, so it can be said before weights are loaded, and a night that is resumed finds the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import LevelsConfig
from ..config.schedule import Schedule
from ..runs.ledger import LedgerEntry, expert_owners, tokens_ingested

if TYPE_CHECKING:
    from ..memory import ExpertRecord

Levels = dict[int, list[int]]  # experts that speak, by level, oldest first
FULL = "the memory is full"
HOW_TO_FREE_EXPERTS = (
    "Or let experts become one before the memory is full: --levels.when_full promote, which itself needs a free one."
)
HOW_TO_FREE_MORE = (
    "To make experts one takes a free one too, so levels.when_full comes too late for a memory without any."
)
MIN_CAPACITY = 3  # experts with which a memory can make room again and again: two that become one, and that one


@dataclass(frozen=True)
class Consolidation:
    """Experts that become one.

    Args:
        senders (`tuple[int, ...]`): the experts, two or more.
        receiver (`int`): level of the one that they become. No two consolidations of a night have the same.
        reason (`str`): why, in words.
    """

    senders: tuple[int, ...]
    receiver: int
    reason: str

    def __str__(self) -> str:
        experts = ", ".join(map(str, self.senders))
        return f"experts {experts} become one of level {self.receiver}: {self.reason}"


def due_consolidations(
    config: LevelsConfig,
    entries: Sequence[LedgerEntry],
    experts: Mapping[int, ExpertRecord],
    max_experts: int,
    tokens: int,
) -> list[Consolidation]:
    """
    Return what a night consolidates before it learns its own memories, slow to fast.

    Each needs one free expert for as long as it takes, a second one if a block is exchanged with it, and frees two or
    more besides such a block. So a night that begins with as many free experts ends with at least as many.

    Args:
        config (`LevelsConfig`):
            Chunk sizes, and what makes room.
        entries (`Sequence[LedgerEntry]`):
            The ledger as the night begins.
        experts (`Mapping[int, ExpertRecord]`):
            The active experts. Silenced ones stay as they are: the teacher does not hear them.
        max_experts (`int`):
            Experts that the memory has room for.
        tokens (`int`):
            Tokens of the night's memories.
    """
    levels: Levels = {}
    for entry in expert_owners(entries):
        if (record := experts[entry.expert]).is_enabled:
            levels.setdefault(record.level, []).append(record.index)
    heard = tokens_ingested(entries)
    if due := _fallen_due(config.chunks, levels, heard, heard + tokens):
        return due
    if config.when_full == "stop" or max_experts - len(experts) > needed_free(config):
        return []
    made = _promoted(levels, config.chunks) if config.when_full == "promote" else _merge(levels, _load(entries))
    return [made] if made else []


def needed_free(config: LevelsConfig) -> int:
    """Return how many free experts a consolidation needs at most: the one that is made, and an exchanged block."""
    return 2 if config.learning_rate else 1


def block_levels(config: LevelsConfig) -> range:
    """Return the levels that have a block of their own (Eq. 2): all but the context, if there is a learning rate."""
    return range(1, len(config.chunks) if config.learning_rate else 1)


def missing_blocks(config: LevelsConfig, experts: Iterable[Mapping[str, Any]] = ()) -> list[int]:
    """Return the levels that are to have a block and have none among the experts, given as `memory.json` has them."""
    there = {expert["level"] for expert in experts if expert.get("is_block")}
    return [level for level in block_levels(config) if level not in there]


def check_blocks(config: LevelsConfig, needed: int, max_experts: int, is_routed: bool, is_sharded: bool) -> None:
    """Raise if levels are to have blocks where they cannot: beside routed experts, in sharded weights, or without room.

    Args:
        config (`LevelsConfig`):
            Whether they are.
        needed (`int`):
            Experts that the night needs room for, blocks and an updated one included.
        max_experts (`int`):
            Experts that the memory has room for.
        is_routed (`bool`):
            Whether a router chooses the experts for each token.
        is_sharded (`bool`):
            Whether ZeRO-3 has spread the weights over processes.

    Raises:
        `ValueError`: with what to do.
    """
    if not config.learning_rate:
        return
    if is_routed or is_sharded:
        why = "the experts are routed, and a block is always in view" if is_routed else "ZeRO-3 shards the weights"
        raise ValueError(
            f"levels.learning_rate: {config.learning_rate:g} was given, but {why}. Leave it out, or sleep with "
            f"--memory.routing dense and without ZeRO-3."
        )
    if needed > max_experts:
        raise ValueError(
            f"levels.learning_rate: with a block for each level, and a second one while it is exchanged, this night "
            f"needs room for {needed} experts; the memory has room for {max_experts}. Give --memory.max_experts "
            f"{needed} or more."
        )


def due_updates(config: LevelsConfig, entries: Sequence[LedgerEntry], tokens: int) -> list[int]:
    """Return the levels whose block takes its step in a night of so many tokens (Eq. 2), slow to fast. A boundary that
    is passed within a night is that night's (ours): what is heard becomes known to the levels when it is slept over."""
    heard = tokens_ingested(entries)
    until, chunks = heard + tokens, config.chunks
    return [level for level in reversed(block_levels(config)) if heard // chunks[level] < until // chunks[level]]


def _fallen_due(chunks: Sequence[int], levels: Levels, heard: int, until: int) -> list[Consolidation]:
    """Return the edges that a night passes, each once. A level with a single expert waits for its next boundary (ours):
    learning it anew would free nothing, and lose a little."""
    if not chunks:
        return []
    passed = {edge for _, edges in Schedule(tuple(chunks)).between(heard, until) for edge in edges}
    return [
        Consolidation(tuple(levels[edge.sender]), edge.receiver, f"a chunk of {edge.chunk:,} tokens is full")
        for edge in sorted(passed, key=lambda edge: -edge.sender)
        if edge.receiver is not None and len(levels.get(edge.sender, ())) > 1
    ]


def _promoted(levels: Levels, chunks: Sequence[int]) -> Consolidation | None:
    """Send the fastest level with two experts or more into the next one, the slowest into itself."""
    fastest = min((level for level in levels if len(levels[level]) > 1), default=None)
    if fastest is None:
        return _two_fastest(levels)
    is_slowest = bool(chunks) and fastest >= len(chunks) - 1
    return Consolidation(tuple(levels[fastest]), fastest if is_slowest else fastest + 1, FULL)


def _merge(levels: Levels, load: Mapping[int, int]) -> Consolidation | None:
    """Make one of the two least used experts of the fullest level. Routed experts are used as often as routers choose
    them, by the newest counts in the ledger. Dense ones all take part in every token: of them the oldest are taken,
    which most nights have replayed (ours); so they are too where nothing was counted."""
    fullest = max(levels, key=lambda level: (len(levels[level]), -level), default=None)
    if fullest is None or len(levels[fullest]) < 2:
        return _two_fastest(levels)
    least = sorted(levels[fullest], key=lambda expert: load.get(expert, 0))[:2]
    return Consolidation(tuple(least), fullest, FULL)


def _two_fastest(levels: Levels) -> Consolidation | None:
    """Make one of the experts of the two fastest levels where none has two, or a full memory would stay full (ours)."""
    pair = sorted(levels)[:2]
    if len(pair) < 2:
        return None
    return Consolidation((*levels[pair[0]], *levels[pair[1]]), pair[1], FULL)


def _load(entries: Sequence[LedgerEntry]) -> dict[int, int]:
    """Return how many tokens went to each expert when the last night counted, over all layers; empty if it did not: an
    earlier one may have counted experts whose slots others have taken since."""
    night = next((entry for entry in reversed(entries) if entry.rolled_back is None), None)
    load = (night.metrics.get("after") or {}).get("load") if night else None
    return {expert: sum(layer[expert] for layer in load) for expert in range(len(load[0]))} if load else {}
