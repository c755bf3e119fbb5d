"""A night that removes entries: `--memories forget:entry-001`, instead of memories.

What later nights learned depends on the experts that were there, and is lost without them. So such a night relearns it:
one new expert replaces all affected ones, and learns what the remaining entries hold, with the model as it was as the
teacher. It is never asked about the removed entries, and their experts are reset (ours).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.memory_source import BETWEEN, FORGET
from ..runs.ledger import LedgerEntry, active_entries, dependents, owners, sharing_expert, with_held

if TYPE_CHECKING:
    from ..memory import ExpertRecord


@dataclass(frozen=True)
class Relearning:
    """What a night that removes entries does.

    Args:
        forgotten (`tuple[str, ...]`): entries that are removed.
        holds (`tuple[str, ...]`): entries of nights that stay and are relearned.
        dropped (`tuple[str, ...]`): entries that are marked as dropped in the ledger: the removed ones, and
            consolidations whose expert is replaced.
        senders (`tuple[int, ...]`): experts that are replaced.
        level (`int`): level of the expert that replaces them.
    """

    forgotten: tuple[str, ...]
    holds: tuple[str, ...]
    dropped: tuple[str, ...]
    senders: tuple[int, ...]
    level: int

    def __str__(self) -> str:
        experts = ", ".join(map(str, self.senders))
        return f"experts {experts} are relearned as one of level {self.level}, without {', '.join(self.forgotten)}"


def plan_relearning(
    names: Sequence[str], entries: Sequence[LedgerEntry], experts: Mapping[int, ExpertRecord]
) -> Relearning:
    """Find out which entries and experts the removal of entries affects.

    Args:
        names (`Sequence[str]`):
            Entries to remove; a consolidation stands for all entries that it holds.
        entries (`Sequence[LedgerEntry]`):
            The ledger.
        experts (`Mapping[int, ExpertRecord]`):
            The active experts.

    Raises:
        `ValueError`: if an entry is unknown or was dropped before, nothing depends on them, or an entry that has to be
            relearned is disabled.
    """
    owned = owners(entries)
    for name in names:
        if name not in owned:
            raise ValueError(
                f"memories: {FORGET}{name} was given, but the run to continue has no entry {name!r} to remove. It has "
                f"{', '.join(owned) or 'none'}. Name several as {FORGET}entry-001{BETWEEN}entry-002."
            )
    gone = with_held(entries, names).intersection(owned)
    affected = sharing_expert(entries, names)
    affected |= dependents(entries, affected)
    there = [entry for entry in active_entries(entries) if entry.id in affected]
    holds = tuple(entry.id for entry in there if not entry.holds and entry.id not in gone)
    if not holds:
        raise ValueError(
            f"memories: nothing was learned together with or after {', '.join(names)}, so nothing has to be relearned. "
            f"Remove it without a night: sleep-trl memory drop RUN {' '.join(names)}."
        )
    senders = tuple(sorted({owned[entry.id].expert for entry in there}))
    if disabled := [name for name in holds if not experts[owned[name].expert].is_enabled]:
        raise ValueError(
            f"memories: {', '.join(disabled)} would have to be relearned, but is disabled, so it cannot teach. Enable "
            f"it, or drop it, first."
        )
    dropped = tuple(entry.id for entry in there if entry.id in gone or entry.holds)
    return Relearning(tuple(sorted(gone)), holds, dropped, senders, max(experts[index].level for index in senders))


def prompts_without(rows: Iterable[dict[str, Any]], gone: Collection[str]) -> list[dict[str, Any]]:
    """Return the prompts of earlier nights that a night which removes entries may use: neither those of the removed
    entries, nor equal ones of other entries, such as the request to summarize a source that both have read. The teacher
    still knows what is removed, and would reveal it there.

    Args:
        rows (`Iterable[dict]`): of `prompts.jsonl`.
        gone (`Collection[str]`): entries that are removed.
    """
    rows = list(rows)
    theirs = {row["prompt"] for row in rows if row["entry"] in gone}
    return [row for row in rows if row["prompt"] not in theirs]
