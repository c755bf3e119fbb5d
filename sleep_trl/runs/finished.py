"""What a finished run holds, read without its weights: its entries, which of them speak, and how two runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from .files import read_json
from .ledger import LedgerEntry, active_entries, dependents, owners, read_ledger, sharing_expert

if TYPE_CHECKING:
    from ..config import RunConfig

EntryState = Literal["enabled", "disabled", "consolidated", "dropped"]
MEASURES = ("recall", "skill", "agreement")  # of an entry's metrics, before and after its night


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run that has ended.

    Args:
        folder (`Path`): the run's `output_dir`.
        entries (`tuple[LedgerEntry, ...]`): its ledger, dropped ones included.
        enabled (`dict[int, bool]`): experts in `adapter/memory.json`, and whether each speaks. Blocks of levels, which
            belong to no entry, are left out.
    """

    folder: Path
    entries: tuple[LedgerEntry, ...]
    enabled: dict[int, bool]

    @staticmethod
    def read(folder: Path) -> FinishedRun:
        """Read a run's folder.

        Raises:
            `ValueError`: if it holds no finished run, or a file is broken.
        """
        needed = ("config.json", "ledger.jsonl", "results.json", "adapter/memory.json")
        if missing := [name for name in needed if not (folder / name).is_file()]:
            found = f"lacks {', '.join(missing)}" if folder.is_dir() else "does not exist"
            raise ValueError(f"{folder} {found}. Give the folder of a run that has finished (its output_dir).")
        try:
            entries = tuple(read_ledger(folder / "ledger.jsonl"))
            experts = read_json(folder / "adapter" / "memory.json")["experts"]
            owned = [expert for expert in experts if not expert.get("is_block")]
            enabled = {int(expert["index"]): bool(expert["is_enabled"]) for expert in owned}
        except (ValidationError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{folder} is no run of this version ({reason}). Give another run.") from None
        return FinishedRun(folder, entries, enabled)

    @cached_property
    def config(self) -> RunConfig:
        """The run's configuration."""
        from ..config import RunConfig  # takes longer to import than all else here

        try:
            return RunConfig.model_validate(read_json(self.folder / "config.json"))
        except ValidationError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.folder / 'config.json'} is not of this version ({reason}).") from None

    def entry(self, name: str) -> LedgerEntry:
        """Return one entry.

        Raises:
            `ValueError`: if there is none of this name.
        """
        for entry in self.entries:
            if entry.id == name:
                return entry
        raise ValueError(f"{self.folder} has no entry {name!r}, but {', '.join(entry.id for entry in self.entries)}.")

    def holding(self, source: str) -> list[LedgerEntry]:
        """Return the nights' entries that stand and hold something from a source."""
        found = [entry for entry in active_entries(self.entries) if not entry.holds]
        return [entry for entry in found if any(s.source == source for s in entry.sources)]

    @cached_property
    def owners(self) -> dict[str, LedgerEntry]:
        """For each entry that stands, by id, the one whose expert has what it learnt."""
        return owners(self.entries)

    def sharing_expert_with(self, names: Sequence[str]) -> list[str]:
        """Return these entries and those that share an expert with one of them, in the ledger's order."""
        return self._in_order(sharing_expert(self.entries, names))

    def dependents_of(self, names: Sequence[str]) -> list[str]:
        """Return the entries that stand and were learnt beside one of these, which spoke at the time, with those that
        share an expert with them, and what leans on these again."""
        return self._in_order(dependents(self.entries, names))

    def _in_order(self, names: set[str]) -> list[str]:
        return [entry.id for entry in self.entries if entry.id in names]

    def state(self, entry: LedgerEntry) -> EntryState:
        """Return whether an entry speaks, is silenced, is part of another one's expert, or has been taken back."""
        if entry.dropped is not None:
            return "dropped"
        if self.owners[entry.id] is not entry:
            return "consolidated"
        return "enabled" if self.enabled.get(entry.expert) else "disabled"

    def earlier(self) -> list[FinishedRun]:
        """Return the runs that this one continues, newest first, as far as their folders are there."""
        runs: list[FinishedRun] = []
        folder = self.config.continue_from
        while folder is not None and (folder / "ledger.jsonl").is_file():
            runs.append(FinishedRun.read(folder))
            folder = runs[-1].config.continue_from
        return runs


def describe(run: FinishedRun, entry: LedgerEntry) -> dict[str, Any]:
    """Return what one says of an entry in a list: its state, what it holds, and how its night went. Level and expert
    are those in which what it learnt is now."""
    owner = run.owners.get(entry.id, entry)
    return {
        "entry": entry.id,
        "date": entry.date,
        "state": run.state(entry),
        "into": None if owner is entry else owner.id,
        "holds": list(entry.holds),
        "level": owner.level,
        "expert": owner.expert,
        "records": len(entry.sources),
        "sources": sorted({source.source for source in entry.sources}),
        "dropped": entry.dropped,
        "metrics": {name: _measured(entry, name) for name in MEASURES},
    }


def _measured(entry: LedgerEntry, name: str) -> list[float | None]:
    """Return a figure before and after the night."""
    return [(entry.metrics.get(when) or {}).get(name) for when in ("before", "after")]
