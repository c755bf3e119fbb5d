"""Which experts a night consolidates into one of a slower level, before it learns anything itself (method 3.1, 3.3).

A level's experts are consolidated when its chunk is full (`levels.chunks`), or when the memory has only one free expert
left, two if levels have blocks (`levels.when_full`). This follows from the ledger, the records of the experts and the
night's tokens, so it is known before weights are loaded, and a resumed night finds the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import LevelsConfig, RunConfig
from ..config.schedule import Schedule
from ..runs.ledger import LedgerEntry, expert_owners, tokens_ingested

if TYPE_CHECKING:
    from ..memory import ExpertRecord

Levels = dict[int, list[int]]  # enabled experts by level, oldest first
FULL = "the memory is full"
HOW_TO_FREE_EXPERTS = (
    "Or consolidate experts before the memory is full: --levels.when_full promote, which itself needs a free one."
)
HOW_TO_FREE_MORE = "Consolidation needs a free expert too, so levels.when_full comes too late for a memory without any."
MIN_CAPACITY = 3  # smallest memory that can free experts repeatedly: two to consolidate, and their successor


@dataclass(frozen=True)
class Consolidation:
    """Experts that are consolidated into one.

    Args:
        senders (`tuple[int, ...]`): the experts, two or more.
        receiver (`int`): level of the new expert. No two consolidations of a night have the same.
        reason (`str`): why, in words.
    """

    senders: tuple[int, ...]
    receiver: int
    reason: str

    def steps(self, config: RunConfig) -> int | None:
        """Return its optimizer steps, or `None` if they follow from `seeding.passes`."""
        own = config.seeding.steps
        return config.levels.steps or (None if own is None else len(self.senders) * own)

    def __str__(self) -> str:
        experts = ", ".join(map(str, self.senders))
        return f"experts {experts} are consolidated into one of level {self.receiver}: {self.reason}"


def due_consolidations(
    config: LevelsConfig,
    entries: Sequence[LedgerEntry],
    experts: Mapping[int, ExpertRecord],
    max_experts: int,
    tokens: int,
) -> list[Consolidation]:
    """
    Return what a night consolidates before it learns its own memories, slow to fast.

    Each needs one free expert while it runs, a second one if a block is exchanged with it, and frees two or more in
    addition to such a block. So a night that begins with that many free experts ends with at least as many.

    Args:
        config (`LevelsConfig`):
            Chunk sizes, and what a full memory does.
        entries (`Sequence[LedgerEntry]`):
            The ledger as the night begins.
        experts (`Mapping[int, ExpertRecord]`):
            The active experts. Disabled ones stay as they are: the teacher does not have them.
        max_experts (`int`):
            Experts that the memory has room for.
        tokens (`int`):
            Tokens of the night's memories.
    """
    levels: Levels = {}
    for entry in expert_owners(entries):
        if (record := experts[entry.expert]).is_enabled:
            levels.setdefault(record.level, []).append(record.index)
    ingested = tokens_ingested(entries)
    if due := _fallen_due(config.chunks, levels, ingested, ingested + tokens):
        return due
    if config.when_full == "stop" or max_experts - len(experts) > needed_free(config):
        return []
    made = _promoted(levels, config.chunks) if config.when_full == "promote" else _merge(levels, _load(entries))
    return [made] if made else []


def needed_free(config: LevelsConfig) -> int:
    """Return how many free experts a consolidation needs at most: the new one, and an exchanged block."""
    return 2 if config.learning_rate else 1


def block_levels(config: LevelsConfig) -> range:
    """Return the levels that have a block of their own (Eq. 2): all but the context, if there is a learning rate."""
    return range(1, len(config.chunks) if config.learning_rate else 1)


def missing_blocks(config: LevelsConfig, experts: Iterable[Mapping[str, Any]] = ()) -> list[int]:
    """Return the levels that should have a block and have none among the experts, given as in `memory.json`."""
    there = {expert["level"] for expert in experts if expert.get("is_block")}
    return [level for level in block_levels(config) if level not in there]


def check_blocks(config: LevelsConfig, needed: int, max_experts: int, is_routed: bool, is_sharded: bool) -> None:
    """Raise if levels should have blocks but cannot: with routed experts, in sharded weights, or for lack of room.

    Args:
        config (`LevelsConfig`):
            Whether they should.
        needed (`int`):
            Experts that the night needs room for, including blocks and an updated one.
        max_experts (`int`):
            Experts that the memory has room for.
        is_routed (`bool`):
            Whether a router chooses the experts for each token.
        is_sharded (`bool`):
            Whether ZeRO-3 shards the weights.

    Raises:
        `ValueError`: with what to do.
    """
    if not config.learning_rate:
        return
    if is_routed or is_sharded:
        why = "the experts are routed, and a block is never routed" if is_routed else "ZeRO-3 shards the weights"
        raise ValueError(
            f"levels.learning_rate: {config.learning_rate:g} was given, but {why}. Leave it out, or use "
            f"--memory.routing dense without ZeRO-3."
        )
    if needed > max_experts:
        raise ValueError(
            f"levels.learning_rate: with a block for each level, and a second one while it is exchanged, this night "
            f"needs room for {needed} experts; the memory has room for {max_experts}. Give --memory.max_experts "
            f"{needed} or more."
        )


def due_updates(config: LevelsConfig, entries: Sequence[LedgerEntry], tokens: int) -> list[int]:
    """Return the levels whose block takes its step in a night of so many tokens (Eq. 2), slow to fast. A night takes
    the boundaries that its own tokens pass (ours): levels learn of records when a night does."""
    ingested = tokens_ingested(entries)
    until, chunks = ingested + tokens, config.chunks
    return [level for level in reversed(block_levels(config)) if ingested // chunks[level] < until // chunks[level]]


def _fallen_due(chunks: Sequence[int], levels: Levels, ingested: int, until: int) -> list[Consolidation]:
    """Return the edges that a night passes, each once. A level with a single expert waits for its next boundary (ours):
    relearning it would free nothing and lose a little."""
    if not chunks:
        return []
    passed = {edge for _, edges in Schedule(tuple(chunks)).between(ingested, until) for edge in edges}
    return [
        Consolidation(tuple(levels[edge.sender]), edge.receiver, f"a chunk of {edge.chunk:,} tokens is full")
        for edge in sorted(passed, key=lambda edge: -edge.sender)
        if edge.receiver is not None and len(levels.get(edge.sender, ())) > 1
    ]


def _promoted(levels: Levels, chunks: Sequence[int]) -> Consolidation | None:
    """Consolidate the fastest level with two or more experts into the next one, the slowest into itself."""
    fastest = min((level for level in levels if len(levels[level]) > 1), default=None)
    if fastest is None:
        return _two_fastest(levels)
    is_slowest = bool(chunks) and fastest >= len(chunks) - 1
    return Consolidation(tuple(levels[fastest]), fastest if is_slowest else fastest + 1, FULL)


def _merge(levels: Levels, load: Mapping[int, int]) -> Consolidation | None:
    """Consolidate the two least used experts of the fullest level. Routed experts are used as often as routers choose
    them, by the newest counts in the ledger. Dense experts all take part in every token: of those, and where nothing
    was counted, the oldest are taken, which most nights have replayed (ours)."""
    fullest = max(levels, key=lambda level: (len(levels[level]), -level), default=None)
    if fullest is None or len(levels[fullest]) < 2:
        return _two_fastest(levels)
    least = sorted(levels[fullest], key=lambda expert: load.get(expert, 0))[:2]
    return Consolidation(tuple(least), fullest, FULL)


def _two_fastest(levels: Levels) -> Consolidation | None:
    """Consolidate the two fastest levels if no level has two experts: a full memory would stay full (ours)."""
    pair = sorted(levels)[:2]
    if len(pair) < 2:
        return None
    return Consolidation((*levels[pair[0]], *levels[pair[1]]), pair[1], FULL)


def _load(entries: Sequence[LedgerEntry]) -> dict[int, int]:
    """Return how many tokens each expert got in the last night's count, over all layers; empty if it did not count.
    Counts of earlier nights may be of experts whose slots others have taken since."""
    night = next((entry for entry in reversed(entries) if entry.rolled_back is None), None)
    load = (night.metrics.get("after") or {}).get("load") if night else None
    return {expert: sum(layer[expert] for layer in load) for expert in range(len(load[0]))} if load else {}
