"""Taking back what a night has done: silence an entry, let it speak again, or drop it for good.

The grown model is folded anew beside the old one and checked, before anything is changed. Then the files are
exchanged, `model/` first out and last in: what is cut short in between leaves no model that knows more than the ledger
says, and is finished by the same command.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ..config import RunConfig
from ..config.memory_source import MemorySource
from ..data.documents import read_memories
from ..memory import Memory, fold, load_memory, save_memory
from ..memory.accumulated_gradients import FILE as ACCUMULATED
from ..models.inspection import read_config
from ..models.loading import load_model, load_tokenizer
from ..report import write_report
from ..runs.files import read_json, read_jsonl, write_json, write_jsonl
from ..runs.finished import FinishedRun
from ..runs.ledger import LedgerEntry, Source, active_entries, expert_owners, now, write_ledger
from ..wake import WakeBuffer, WakeRecord
from .export import card_of

WORK = ("checkpoints*", "phases", "dream_adapter", "report.html")
"""What a finished run has left of its work that holds texts or experts, or fits the old model alone."""


@dataclass(frozen=True)
class Dropped:
    """What became of a drop.

    Args:
        entries (`tuple[str, ...]`): entries that were dropped.
        queued (`tuple[str, ...]`): ids of records that wait for a night again.
        lost (`tuple[str, ...]`): ids of records that were to be queued again, but whose text was found nowhere.
        also_in (`tuple[Path, ...]`): earlier runs that hold one of the entries too. They were left as they are.
    """

    entries: tuple[str, ...]
    queued: tuple[str, ...]
    lost: tuple[str, ...]
    also_in: tuple[Path, ...]


def set_enabled(run: FinishedRun, entry: LedgerEntry, is_enabled: bool, model: str | None = None) -> None:
    """Let an entry's expert speak, or silence it and keep its weights. If it shares the expert with others, they fall
    silent or speak with it.

    Args:
        run (`FinishedRun`):
            The run; its `adapter/` and `model/` are rewritten.
        entry (`LedgerEntry`):
            One of its entries.
        is_enabled (`bool`):
            Whether it is to speak.
        model (`str`, *optional*):
            The base model, where it is no longer where the run's configuration says.

    Raises:
        `ValueError`: if the entry was dropped or is so already, the base model is not there, or dreams were learnt into
            an adapter, which fits the model as it is.
    """
    if (run.folder / "dream_adapter").is_dir():
        raise ValueError(
            f"{run.folder / 'dream_adapter'} fits the model with the experts that it has now. Move it away, and call "
            f"this again."
        )
    if entry.dropped is not None:
        raise ValueError(f"{entry.id} was dropped on {entry.dropped}: its expert is gone. Learn its records again.")
    owner = run.owners[entry.id]
    if (run.state(owner) == "enabled") == is_enabled and _is_settled(run):
        raise ValueError(f"{owner.id} is {run.state(owner)} already.")
    _rewrite(run, lambda memory: memory.enable(owner.expert, is_enabled), lambda: None, model)


def drop(
    run: FinishedRun,
    names: Sequence[str],
    buffer: WakeBuffer | None = None,
    without: str | None = None,
    later: Literal["drop", "keep"] | None = None,
    model: str | None = None,
) -> Dropped:
    """Take entries back: reset their experts, fold the model without them, queue their records again.

    Entries that share an expert go together: what one of them taught cannot be taken out of it. With dense experts the
    folded model is then exactly the model without these experts. The blocks of all levels, and what they have
    accumulated (Eq. 2), begin anew: one gradient holds all that was heard. Work that the run has left (checkpoints, the
    teacher's samples) is removed, since it holds the same texts, and the report is written anew without them.

    Args:
        run (`FinishedRun`):
            The run; its `ledger.jsonl`, `adapter/` and `model/` are rewritten. Runs that it continues are not.
        names (`Sequence[str]`):
            Ids of entries.
        buffer (`WakeBuffer`, *optional*):
            Where records are queued again. Texts that it does not have are looked for where the runs read them.
        without (`str`, *optional*):
            A source whose records are not queued again, and are forgotten if the buffer has them.
        later (`str`, *optional*):
            What becomes of later entries, which were learnt beside the dropped ones and lean on their experts.
            `"drop"`: they are dropped too, and their records queued. `"keep"`: they stay, and may answer worse. It has
            to be said if there are any (ours).
        model (`str`, *optional*):
            The base model, where it is no longer where the run's configuration says.

    Raises:
        `ValueError`: if an entry is unknown or was dropped before, the base model is not there, or `later` is needed.
    """
    if (gone := [entry for entry in map(run.entry, names) if entry.dropped]) and _is_settled(run):
        raise ValueError(f"{gone[0].id} was dropped already, on {gone[0].dropped}.")
    asked, names = names, run.sharing_expert_with(names)
    if (dependents := run.dependents_of(names)) and later is None:
        source = MemorySource(forget=tuple(asked))
        raise ValueError(
            f"{', '.join(dependents)} in {run.folder} was learnt beside {', '.join(names)} and leans on it. A night "
            f"learns it anew: launch/sleep.py --continue_from {run.folder} --memories {source}. "
            f"Or choose: --later drop takes it back too and queues its records for the next night; --later keep leaves "
            f"it, and it may lose what it knows."
        )
    names = [*names, *(dependents if later == "drop" else [])]
    entries = [run.entry(name) for name in names]
    nights = [entry for entry in entries if not entry.holds]
    texts = [source for entry in nights for source in entry.sources if source.source != without]
    when, chosen = now(), {entry.id for entry in entries}
    ledger = [e.model_copy(update={"dropped": e.dropped or when}) if e.id in chosen else e for e in run.entries]
    kept = {entry.id for entry in active_entries(ledger)}
    kept_experts = {entry.expert for entry in expert_owners(ledger)}

    def edit(memory: Memory) -> None:
        for index in [index for index in memory.records if index not in kept_experts]:
            memory.reset(index)

    def write() -> None:
        write_ledger(run.folder / "ledger.jsonl", ledger)
        for name in ("prompts.jsonl", "questions.jsonl"):
            path = run.folder / "adapter" / name
            write_jsonl(path, [row for row in read_jsonl(path) if row["entry"] in kept])
        _remove(run.folder / "adapter" / ACCUMULATED)
        for path in [path for pattern in WORK for path in run.folder.glob(pattern)]:
            _remove(path)

    has_report = (run.folder / "report.html").is_file() and find_spec("plotly") is not None
    missing = _prepare(run, texts, buffer, without) if buffer else []
    _rewrite(run, edit, write, model)
    if has_report:
        write_report(run.folder)
    queued: tuple[str, ...] = ()
    if buffer:
        buffer.settle()
        waiting = {record.sha256 for record in buffer.records("new")}
        queued = tuple(source.id for source in texts if source.sha256 in waiting)
    also_in = tuple(e.folder for e in run.earlier() if any(x.id in chosen for x in active_entries(e.entries)))
    return Dropped(tuple(names), queued, tuple(s.id for s in missing), also_in)


def _prepare(run: FinishedRun, wanted: Sequence[Source], buffer: WakeBuffer, without: str | None) -> list[Source]:
    """Let the buffer follow the run, unless it follows a later one, and put into it what will wait for a night again.

    Returns:
        `list[Source]`: those whose texts were found nowhere.
    """
    if (followed := buffer.run()) is None or followed.resolve() in {one.folder.resolve() for one in run.earlier()}:
        buffer.register(run.folder)
    missing = _fetch(run, wanted, buffer)
    if without is not None and next(buffer.records(source=without), None):
        buffer.forget(without)
    return missing


def _fetch(run: FinishedRun, wanted: Sequence[Source], buffer: WakeBuffer) -> list[Source]:
    """Put the texts of sources into the buffer, if it has them not: from where the run and those before it read them.

    Returns:
        `list[Source]`: those that were found nowhere.
    """
    known = {record.sha256 for record in buffer.records() if record.state != "forgotten"}
    missing = [source for source in wanted if source.sha256 not in known]
    for one in [run, *run.earlier()] if missing else ():
        if one.config.source.documents is None or not Path(one.config.memories).exists():
            continue
        texts = {memory.sha256: memory for memory in read_memories(one.config.memories)}
        found = [texts[source.sha256] for source in missing if source.sha256 in texts]
        buffer.add([WakeRecord(memory, now()) for memory in found])
        missing = [source for source in missing if source.sha256 not in texts]
    return missing


def _is_settled(run: FinishedRun) -> bool:
    """Tell whether nothing was cut short: experts and ledger agree, and no model but `model/` is there."""
    is_routed = read_json(run.folder / "adapter" / "memory.json")["spec"]["routing"] == "topk"
    has_model = is_routed or (run.folder / "model").is_dir()
    is_clean = not any((run.folder / name).exists() for name in ("model.partial", "model.replaced"))
    return has_model and is_clean and {entry.expert for entry in expert_owners(run.entries)} == set(run.enabled)


def _rewrite(
    run: FinishedRun, edit: Callable[[Memory], None], write: Callable[[], None], model: str | None = None
) -> None:
    """Change a run's memory, and whatever `write` writes, and fold its model anew."""
    adapter, target = run.folder / "adapter", run.folder / "model"
    folded, replaced = target.with_name("model.partial"), target.with_name("model.replaced")
    config = _config(run, model)
    memory = load_memory(load_model(config), adapter)
    edit(memory)
    _remove(folded)
    if not memory.spec.is_routed:
        fold(memory, folded)
        load_tokenizer(config).save_pretrained(folded)
    if target.is_dir():
        _remove(replaced)
        target.rename(replaced)
    write()
    # A record without its weights would not load, weights without a record are not looked at: records go first.
    description = read_json(adapter / "memory.json")
    write_json(adapter / "memory.json", description | {"experts": memory.describe()["experts"]})
    save_memory(memory, adapter)
    if folded.is_dir():
        (folded / "README.md").write_text(card_of(FinishedRun.read(run.folder), "checkpoint"), "utf-8")
        folded.rename(target)
    _remove(replaced)


def _config(run: FinishedRun, model: str | None) -> RunConfig:
    """Return the run's configuration, with the dtype in which its model was folded.

    Raises:
        `ValueError`: if the base model is not there.
    """
    config = run.config.model_copy(update={"model": model or run.config.model})
    try:
        read_config(config.model)
    except ValueError as error:
        raise ValueError(f"{run.folder} needs its base model to be folded anew. {error} Or give --model.") from None
    for name in ("model", "model.replaced"):
        if (path := run.folder / name / "config.json").is_file():
            dtype = read_json(path).get("dtype", config.dtype)
            return config.model_copy(update={"dtype": dtype})
    return config


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
