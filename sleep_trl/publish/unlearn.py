"""Unlearning: disable an entry, enable it again, or drop it for good.

The grown model is folded again into a temporary folder and checked before anything changes. Then the files are
exchanged: `model/` is removed first and put back last. An interruption in between never leaves a model that knows more
than the ledger says, and the same command finishes the work: `dropping.json` says what is being dropped until all of it
is done, and until then no night continues the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..config import RunConfig
from ..config.model_name import MAIN
from ..data.documents import MemoryText
from ..data.sources import read_all
from ..memory import Memory, fold, load_memory, save_memory
from ..models.inspection import read_config
from ..models.loading import load_model, load_tokenizer
from ..planning.night_source import dataset_options
from ..report import write_report
from ..runs import checksums
from ..runs.files import read_json, read_jsonl, remove, write_json, write_jsonl
from ..runs.finished import FinishedRun
from ..runs.folder import RunFolder
from ..runs.ledger import LedgerEntry, Source, active_entries, expert_owners, now, write_ledger
from ..runs.lock import run_lock
from ..wake import WakeBuffer, WakeRecord
from .beside import erase_beside, may_hold, related_runs
from .drop_plan import DropPlan, check_switch, has_report, plan_drop
from .export import card_of


def _intermediate(files: RunFolder) -> list[Path]:
    """Return what a finished run has besides that contains texts or experts, or that fits only the old model."""
    return [*files.all_checkpoints, *filter(Path.exists, (files.phases, files.dream_adapter, files.report))]


@dataclass(frozen=True)
class Dropped:
    """The result of [`drop`].

    Args:
        entries (`tuple[str, ...]`): dropped entries.
        queued (`tuple[str, ...]`): ids of records that are pending again.
        lost (`tuple[str, ...]`): ids of records that could not be queued, because their texts were not found.
        also_in (`tuple[Path, ...]`): other runs that also hold one of the entries: those that this one continues, and
            those next to it that continue it. They are not changed.
        erased (`tuple[Path, ...]`): nights next to it that were begun or quarantined, of which all but their options
            and their other records was removed. Those that are resumed start over.
    """

    entries: tuple[str, ...]
    queued: tuple[str, ...]
    lost: tuple[str, ...]
    also_in: tuple[Path, ...]
    erased: tuple[Path, ...]


def set_enabled(run: FinishedRun, entry: LedgerEntry, is_enabled: bool, model: str | None = None) -> None:
    """Enable or disable an entry's expert, keeping its weights. Entries that share the expert change with it.

    Args:
        run (`FinishedRun`):
            The run, whose `adapter/`, `model/` and report are rewritten.
        entry (`LedgerEntry`):
            One of its entries.
        is_enabled (`bool`):
            Whether to enable or disable it.
        model (`str`, *optional*):
            The base model, if it is no longer where the run's configuration says.

    Raises:
        `RunInUse`: if another process works on the run, or continues it.
        `ValueError`: if the entry was dropped or is already in that state, the base model is missing, or dreams were
            learned into an adapter, which fits only the present model.
    """
    with run_lock(run.folder):
        run = FinishedRun.read(run.folder)
        _set_enabled(run, run.entry(entry.id), is_enabled, model)


def _set_enabled(run: FinishedRun, entry: LedgerEntry, is_enabled: bool, model: str | None) -> None:
    check_switch(run, entry, is_enabled)
    owner = run.owners[entry.id]
    report = RunFolder(run.folder).report
    is_rewritten = has_report(run)
    _rewrite(run, lambda memory: memory.enable(owner.expert, is_enabled), lambda: remove(report), model)
    if is_rewritten:
        write_report(run.folder)


def drop(
    run: FinishedRun,
    names: Sequence[str],
    buffer: WakeBuffer | None = None,
    without: str | None = None,
    later: Literal["drop", "keep"] | None = None,
    model: str | None = None,
) -> Dropped:
    """Drop entries: reset their experts, fold the model without them, and queue their records again.

    Entries that share an expert are dropped together, because their contributions cannot be separated. With dense
    experts the folded model is then exactly the model without these experts. The blocks of all levels and their
    accumulated gradients (Eq. 2) are reset, because one gradient holds everything ingested. Intermediate files of the
    run (checkpoints, the teacher's samples) contain the same texts and are removed, and the report is written again.

    Args:
        run (`FinishedRun`):
            The run, whose `ledger.jsonl`, `adapter/` and `model/` are rewritten. Runs it continues are not changed.
        names (`Sequence[str]`):
            Ids of entries.
        buffer (`WakeBuffer`, *optional*):
            Where records are queued again. Texts it does not have are read from the files the runs read.
        without (`str`, *optional*):
            A source whose records are not queued again, but forgotten by the buffer.
        later (`str`, *optional*):
            What to do with dependent entries, which were learned while the dropped ones were enabled. `"drop"`: drop
            them too and queue their records. `"keep"`: keep them, although they may answer worse. Required if there
            are any (ours).
        model (`str`, *optional*):
            The base model, if it is no longer where the run's configuration says.

    Raises:
        `RunInUse`: if another process works on the run, or continues it.
        `ValueError`: if an entry is unknown or already dropped, the base model is missing, or `later` is needed.
    """
    with run_lock(run.folder):
        run = FinishedRun.read(run.folder)
        return _drop(run, plan_drop(run, names, without, later), buffer, model)


def records_to_lose(
    run: FinishedRun,
    names: Sequence[str],
    buffer: WakeBuffer | None = None,
    without: str | None = None,
    later: Literal["drop", "keep"] | None = None,
) -> list[Source]:
    """Return the records that [`drop`] would not queue again, for want of their texts or of a buffer. Arguments are
    those of [`drop`]; nothing changes."""
    texts = _texts(run, plan_drop(run, names, without, later))
    return _find(run, texts, buffer)[1] if buffer else texts


def _drop(run: FinishedRun, plan: DropPlan, buffer: WakeBuffer | None, model: str | None) -> Dropped:
    """Drop what a plan names. Each step can be repeated, and the plan is removed after the last one."""
    files, chosen = RunFolder(run.folder), set(plan.entries)
    texts = _texts(run, plan)
    ledger = [e.model_copy(update={"dropped": e.dropped or plan.when}) if e.id in chosen else e for e in run.entries]
    kept = {entry.id for entry in active_entries(ledger)}
    kept_experts = {entry.expert for entry in expert_owners(ledger)}

    def edit(memory: Memory) -> None:
        for index in [index for index in memory.records if index not in kept_experts]:
            memory.reset(index)

    def write() -> None:
        write_ledger(files.ledger, ledger)
        for path in (files.adapter.prompts, files.adapter.questions):
            write_jsonl(path, [row for row in read_jsonl(path) if row["entry"] in kept])
        checksums.remove(files.adapter.accumulated)
        for path in _intermediate(files):
            remove(path)

    missing = _fetch(run, texts, buffer) if buffer else []
    _rewrite(run, edit, write, model, begin=lambda: write_json(files.dropping, asdict(plan)))
    if buffer:
        _queue(run, buffer, plan.without)
    erased = erase_beside(run, plan.without)
    if plan.has_report:
        write_report(run.folder)
    queued: tuple[str, ...] = ()
    if buffer:
        buffer.settle()
        waiting = {record.sha256 for record in buffer.records("new")}
        queued = tuple(source.id for source in texts if source.sha256 in waiting)
    also_in = tuple(one for one in related_runs(run) if may_hold(one, chosen))
    remove(files.dropping)
    return Dropped(plan.entries, queued, tuple(s.id for s in missing), also_in, tuple(erased))


def _queue(run: FinishedRun, buffer: WakeBuffer, without: str | None) -> None:
    """Let the buffer queue what was dropped: it follows the run, unless it follows a later one. Forget a source."""
    if (followed := buffer.run()) is None or followed.resolve() in {one.folder.resolve() for one in run.earlier()}:
        buffer.register(run.folder)
    if without is not None and next(buffer.records(source=without), None):
        buffer.forget(without)


def _texts(run: FinishedRun, plan: DropPlan) -> list[Source]:
    """Return the records that are to be queued again."""
    nights = [entry for entry in map(run.entry, plan.entries) if not entry.holds]
    return [source for entry in nights for source in entry.sources if source.source != plan.without]


def _fetch(run: FinishedRun, wanted: Sequence[Source], buffer: WakeBuffer) -> list[Source]:
    """Add missing texts to the buffer, and return the records whose texts were not found."""
    found, missing = _find(run, wanted, buffer)
    buffer.add([WakeRecord(memory, now()) for memory in found])
    return missing


def _find(run: FinishedRun, wanted: Sequence[Source], buffer: WakeBuffer) -> tuple[list[MemoryText], list[Source]]:
    """Look for texts that the buffer lacks in the files that the run and the runs it continues read.

    Returns:
        `tuple[list[MemoryText], list[Source]]`: those found, and the records of the others.
    """
    every = list[MemoryText]()
    known = {record.sha256 for record in buffer.records() if record.state != "forgotten"}
    missing = [source for source in wanted if source.sha256 not in known]
    for one in [run, *run.earlier()] if missing else ():
        if one.config.source.documents is None or not Path(one.config.memories).exists():
            continue
        reading = read_all(one.config.memories, dataset_options(one.config))
        texts = {memory.sha256: memory for memory in reading.memories}
        every += [texts[source.sha256] for source in missing if source.sha256 in texts]
        missing = [source for source in missing if source.sha256 not in texts]
    return every, missing


def _rewrite(
    run: FinishedRun,
    edit: Callable[[Memory], None],
    write: Callable[[], None],
    model: str | None = None,
    begin: Callable[[], None] = lambda: None,
) -> None:
    """Edit a run's memory, call `write` for its other files, and fold its model again. `begin` is called when nothing
    more can fail and before anything changes."""
    files = RunFolder(run.folder)
    adapter, target, folded, replaced = files.adapter, files.model, files.partial_model, files.replaced_model
    config = _config(run, model)
    memory = load_memory(load_model(config), adapter.path)
    edit(memory)
    remove(folded)
    if not memory.spec.is_routed:
        fold(memory, folded)
        load_tokenizer(config).save_pretrained(folded)
    begin()
    if target.is_dir():
        remove(replaced)
        target.rename(replaced)
    write()
    # An expert listed without weights would not load, while unlisted weights are ignored: the list is written first.
    description = read_json(adapter.description)
    write_json(adapter.description, description | {"experts": memory.describe()["experts"]})
    save_memory(memory, adapter.path)
    if folded.is_dir():
        (folded / "README.md").write_text(card_of(FinishedRun.read(run.folder), "checkpoint"), "utf-8")
        checksums.record_folder(folded)
        folded.rename(target)
    remove(replaced)


def _config(run: FinishedRun, model: str | None) -> RunConfig:
    """Return the run's configuration, with the dtype its model was folded in.

    Raises:
        `ValueError`: if the base model is missing.
    """
    given = {"model": model, "model_revision": MAIN} if model else {}
    config = run.config.model_copy(update=given)
    try:
        read_config(config.model, config.model_revision)
    except ValueError as error:
        raise ValueError(f"{run.folder} needs its base model to fold again. {error} Or give --model.") from None
    for folder in (RunFolder(run.folder).model, RunFolder(run.folder).replaced_model):
        if (path := folder / "config.json").is_file():
            dtype = read_json(path).get("dtype", config.dtype)
            return config.model_copy(update={"dtype": dtype})
    return config
