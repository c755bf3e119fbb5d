"""What finished runs hold, read without loading weights: entries and their states, and the newest night of a chain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from .checksums import mention_unchecked
from .files import read_json
from .folder import NIGHT, RunFolder
from .ledger import (
    LedgerEntry,
    active_entries,
    dependents,
    expert_owners,
    owners,
    read_ledger,
    sharing_expert,
    standing_nights,
)

if TYPE_CHECKING:
    from ..config import RunConfig

EntryState = Literal["enabled", "disabled", "consolidated", "dropped"]
MEASURES = ("recall", "skill", "agreement")  # of an entry's metrics, before and after its night


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a finished run.

    Args:
        folder (`Path`): the run's `output_dir`.
        entries (`tuple[LedgerEntry, ...]`): its ledger, including dropped entries.
        enabled (`dict[int, bool]`): for each expert in `adapter/memory.json`, whether it is enabled. Blocks of levels,
            which belong to no entry, are left out.
    """

    folder: Path
    entries: tuple[LedgerEntry, ...]
    enabled: dict[int, bool]

    @staticmethod
    def read(folder: Path) -> FinishedRun:
        """Read a run's folder.

        Raises:
            `ValueError`: if it does not hold a finished run, or a file is broken.
        """
        files = RunFolder(folder)
        if missing := files.missing(files.config, files.ledger, files.results, files.adapter.description):
            found = f"lacks {', '.join(missing)}" if folder.is_dir() else "does not exist"
            raise ValueError(f"{folder} {found}. Give the folder of a finished run (its output_dir).")
        mention_unchecked(folder)
        try:
            entries = tuple(read_ledger(files.ledger))
            enabled = _enabled_experts(files)
        except (KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{folder} was not written by this version ({reason}). Give another run.") from None
        return FinishedRun(folder, entries, enabled)

    @cached_property
    def config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            `ValueError`: if this version cannot read it.
        """
        from ..config import RunConfig  # slower to import than the rest of this module

        path = RunFolder(self.folder).config
        try:
            return RunConfig.model_validate(read_json(path))
        except ValidationError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} was not written by this version ({reason}).") from None

    def entry(self, name: str) -> LedgerEntry:
        """Return one entry.

        Raises:
            `ValueError`: if there is no entry of this name.
        """
        for entry in self.entries:
            if entry.id == name:
                return entry
        raise ValueError(f"{self.folder} has no entry {name!r}, but {', '.join(entry.id for entry in self.entries)}.")

    def holding(self, source: str) -> list[LedgerEntry]:
        """Return the active entries of nights with a record from this source."""
        found = standing_nights(self.entries)
        return [entry for entry in found if any(s.source == source for s in entry.sources)]

    @cached_property
    def owners(self) -> dict[str, LedgerEntry]:
        """For each active entry, by id, the entry whose expert holds what it learned."""
        return owners(self.entries)

    def sharing_expert_with(self, names: Sequence[str]) -> list[str]:
        """Return these entries and those that share an expert with one of them, in the ledger's order."""
        return self._in_order(sharing_expert(self.entries, names))

    def dependents_of(self, names: Sequence[str]) -> list[str]:
        """Return the entries that depend on one of these (see [`~sleep_trl.runs.ledger.dependents`]), in the ledger's
        order."""
        return self._in_order(dependents(self.entries, names))

    def _in_order(self, names: set[str]) -> list[str]:
        return [entry.id for entry in self.entries if entry.id in names]

    def state(self, entry: LedgerEntry) -> EntryState:
        """Return whether an entry is enabled, disabled, consolidated into another entry's expert, or dropped."""
        if entry.dropped is not None:
            return "dropped"
        if self.owners[entry.id] is not entry:
            return "consolidated"
        return "enabled" if self.enabled.get(entry.expert) else "disabled"

    def earlier(self) -> list[FinishedRun]:
        """Return the runs that this one continues, newest first, up to the first whose folder is missing."""
        runs: list[FinishedRun] = []
        folder = self.config.continue_from
        while folder is not None and RunFolder(folder).ledger.is_file():
            runs.append(FinishedRun.read(folder))
            folder = runs[-1].config.continue_from
        return runs


def describe(run: FinishedRun, entry: LedgerEntry) -> dict[str, Any]:
    """Return an entry's row of a list: its state, what it holds, and its metrics. `level` and `expert` are those that
    hold now what it learned."""
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
        "metrics": {
            name: [(entry.metrics.get(when) or {}).get(name) for when in ("before", "after")] for name in MEASURES
        },
    }


def newest_night(folder: Path) -> Path:
    """Return the folder of a chain's newest committed night (`night-001/`, ...). Any other folder is returned as it
    is."""
    found = folder.iterdir() if folder.is_dir() else ()
    nights = {int(match[1]): path for path in found if (match := NIGHT.fullmatch(path.name))}
    newest_first = (nights[number] for number in sorted(nights, reverse=True))
    return next((night for night in newest_first if RunFolder(night).is_committed), folder)


def newest_committed_night(folder: Path) -> Path:
    """Return the folder of the newest committed night: a run's own folder, or a chain's newest night.

    Raises:
        `ValueError`: if no night is committed.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give the output_dir of a run or of a chain of nights.")
    files = RunFolder(newest_night(folder))
    if not files.is_committed:
        raise ValueError(
            f"{folder} holds no committed night, which has {files.results.name} and {files.ledger.name}. Let a night "
            f"finish first, or give another folder."
        )
    return files.path


@dataclass(frozen=True)
class CommittedModel:
    """The folded model of a committed night.

    Args:
        run (`Path`): the night's folder.
        entry (`str`): its newest active ledger entry, or `base` if there is none.
        version (`str`): changes whenever the model is written again, by a night or by dropping or disabling an entry.
        enabled (`str`): short hash of the enabled experts.
    """

    run: Path
    entry: str
    version: str
    enabled: str

    @property
    def path(self) -> Path:
        return RunFolder(self.run).model

    @property
    def name(self) -> str:
        """Night and entry, as clients see them."""
        return f"{self.run.name}:{self.entry}"

    @property
    def fingerprint(self) -> str:
        """Night, newest entry and enabled experts, as clients see them with each answer."""
        return f"{self.name}:{self.enabled}"

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """Variables for the chat template with which the night's prompts were made."""
        return chat_variables(self.run)

    def chat_template(self) -> str:
        """Return the chat templates of the model's tokenizer, or an empty string if it has none."""
        return read_chat_template(self.path)


def read_chat_template(model: Path) -> str:
    """Return the chat templates of the tokenizer in a model's folder, or an empty string if it has none."""
    folder = model / "chat_templates"
    files = [model / "chat_template.jinja", *(sorted(folder.glob("*.jinja")) if folder.is_dir() else ())]
    if found := [path.read_text(encoding="utf-8") for path in files if path.is_file()]:
        return "\n".join(found)
    config = model / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.is_file() else None
    return template if isinstance(template, str) else json.dumps(template) if template else ""


def chat_variables(run: Path) -> dict[str, Any]:
    """Return the variables for the chat template with which a night's prompts were made; none if its folded model has
    no chat template."""
    files = RunFolder(run)
    return dict(read_json(files.config).get("chat_template_kwargs") or {}) if read_chat_template(files.model) else {}


def newest_model(folder: Path) -> CommittedModel:
    """Return the newest committed model of a run or of a chain.

    Raises:
        `ValueError`: if no night is committed, or the newest has no `model/`.
    """
    files = RunFolder(newest_committed_night(folder))
    try:
        config = (files.model / "config.json").stat()
    except FileNotFoundError:
        raise ValueError(
            f"{files.path} has no model/. Either its experts are routed and do not fold into a checkpoint, or the "
            f"model is being written again. To serve a model, sleep with --memory.routing dense."
        ) from None
    entries, enabled = active_entries(read_ledger(files.ledger)), _enabled_experts(files)
    version = f"{files.path.name}-{config.st_ino}-{config.st_mtime_ns}"
    experts = sorted(f"{e.expert}:{e.fingerprint}" for e in expert_owners(entries) if enabled.get(e.expert))
    digest = hashlib.sha256(" ".join(experts).encode()).hexdigest()[:8]
    return CommittedModel(files.path.resolve(), entries[-1].id if entries else "base", version, digest)


def _enabled_experts(files: RunFolder) -> dict[int, bool]:
    """Return for each expert, apart from blocks of levels, whether it is enabled."""
    experts = read_json(files.adapter.description)["experts"]
    return {int(expert["index"]): bool(expert["is_enabled"]) for expert in experts if not expert.get("is_block")}


def give_base(run: RunFolder) -> str:
    """Return what to do if a run is continued with another model than its base, with the name that it has there."""
    base = base_of(run)
    return f"Give the base model again{f': --model {base}' if base else ''}."


def base_of(run: RunFolder) -> str | None:
    """Return the name of a run's base model, or `None` if its configuration is missing."""
    return str(read_json(run.config)["model"]) if run.config.is_file() else None
