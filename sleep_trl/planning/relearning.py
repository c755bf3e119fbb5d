"""A night that takes entries back: `--memories forget:entry-001`, in place of memories.

What a later night learnt leans on the experts that were there, and is lost without them. So such a night learns it
anew: one expert comes in the place of all that are concerned, and is taught what the entries that stay know, by the
model as it was. Of the entries that go nothing is asked, and their experts are reset (ours).
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
    """What a night that takes entries back does.

    Args:
        forgotten (`tuple[str, ...]`): entries that go.
        holds (`tuple[str, ...]`): entries of nights that stay and are learnt anew.
        dropped (`tuple[str, ...]`): lines of the ledger that end with it: what is forgotten, and consolidations whose
            expert is replaced.
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
        return f"experts {experts} become one of level {self.level}, without {', '.join(self.forgotten)}"


def plan_relearning(
    names: Sequence[str], entries: Sequence[LedgerEntry], experts: Mapping[int, ExpertRecord]
) -> Relearning:
    """Find out what taking entries back concerns.

    Args:
        names (`Sequence[str]`):
            Entries to be taken back; a consolidation stands for all that it holds.
        entries (`Sequence[LedgerEntry]`):
            The ledger.
        experts (`Mapping[int, ExpertRecord]`):
            The active experts.

    Raises:
        `ValueError`: if an entry is unknown or was dropped before, nothing leans on them, or an entry that would have
            to be learnt anew is silent.
    """
    owned = owners(entries)
    for name in names:
        if name not in owned:
            raise ValueError(
                f"memories: {FORGET}{name} was given, but the run to continue has no entry {name!r} that could be "
                f"taken back. It has {', '.join(owned) or 'none'}. Name several as {FORGET}entry-001{BETWEEN}entry-002."
            )
    gone = with_held(entries, names).intersection(owned)
    affected = sharing_expert(entries, names)
    affected |= dependents(entries, affected)
    there = [entry for entry in active_entries(entries) if entry.id in affected]
    holds = tuple(entry.id for entry in there if not entry.holds and entry.id not in gone)
    if not holds:
        raise ValueError(
            f"memories: nothing was learnt beside or after {', '.join(names)}, so nothing has to be learnt anew. Take "
            f"it back at once: sleep-trl memory drop RUN {' '.join(names)}."
        )
    senders = tuple(sorted({owned[entry.id].expert for entry in there}))
    if silent := [name for name in holds if not experts[owned[name].expert].is_enabled]:
        raise ValueError(
            f"memories: {', '.join(silent)} would have to be learnt anew, but is disabled and says nothing. Enable it, "
            f"or drop it, before."
        )
    dropped = tuple(entry.id for entry in there if entry.id in gone or entry.holds)
    return Relearning(tuple(sorted(gone)), holds, dropped, senders, max(experts[index].level for index in senders))


def prompts_without(rows: Iterable[dict[str, Any]], gone: Collection[str]) -> list[dict[str, Any]]:
    """Return the prompts of earlier nights that a night may ask which takes entries back: none of theirs, nor one that
    is worded as theirs is, such as the request for a summary of a source which both have read from. The teacher still
    knows what goes, and would tell it there.

    Args:
        rows (`Iterable[dict]`): of `prompts.jsonl`.
        gone (`Collection[str]`): entries that are taken back.
    """
    rows = list(rows)
    theirs = {row["prompt"] for row in rows if row["entry"] in gone}
    return [row for row in rows if row["prompt"] not in theirs]
