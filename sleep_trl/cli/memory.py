"""`sleep-trl memory`: list, disable and drop what nights learned."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..config.counting import counted
from ..data.files import matching
from ..publish.drop_plan import check_switch, interrupted_drop, plan_drop
from ..runs.finished import FinishedRun, describe, newest_night
from ..wake import WakeBuffer
from . import paths
from .output import Json, Row, change, redirect_to_stderr, say, show, table

SHOWN = 10  # records that are named

app = typer.Typer(help="List, disable and drop what nights learned.", no_args_is_help=True)

Run = Annotated[
    Path, typer.Argument(parser=paths.path, help="Folder of a finished run, or of a chain (uses its newest night).")
]
Entry = Annotated[str, typer.Argument(help="An entry of its ledger, such as entry-001.")]
Model = Annotated[str | None, typer.Option(help="The base model, if it was moved since the run.")]


@app.command("list")
def list_(run: Run, json: Json = False) -> None:
    """List the entries of a run's ledger."""
    found = FinishedRun.read(newest_night(run))
    columns: dict[str, Callable[[Row], object]] = {
        "entry": lambda row: row["entry"],
        "date": lambda row: row["date"][:10],
        "state": lambda row: f"in {row['into']}" if row["into"] else row["state"],
        "level": lambda row: row["level"],
        "records": lambda row: row["records"],
        "recall": lambda row: _figures(row, "recall"),
        "sources": lambda row: _shorten(row["sources"]),
    }
    table([describe(found, entry) for entry in found.entries], json, columns)


@app.command("show")
def show_(run: Run, entry: Entry, json: Json = False) -> None:
    """Show an entry: its expert, metrics and records."""
    found = FinishedRun.read(newest_night(run))
    chosen = found.entry(entry)
    row = describe(found, chosen) | {
        "parents": list(chosen.parents),
        "fingerprint": chosen.fingerprint,
        "base": chosen.base,
        "records": [source.model_dump() for source in chosen.sources],
    }
    show([row], json, _entry_text)


@app.command()
def disable(run: Run, entry: Entry, model: Model = None, json: Json = False) -> None:
    """Disable an entry: fold the model without its expert, and keep the expert."""
    _enable(run, entry, False, model, json)


@app.command()
def enable(run: Run, entry: Entry, model: Model = None, json: Json = False) -> None:
    """Re-enable a disabled entry."""
    _enable(run, entry, True, model, json)


@app.command()
def drop(
    run: Run,
    entry: Annotated[str | None, typer.Argument(help="An entry of its ledger. Alternatively, give --source.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Drop every entry with records from this source, or one that ends with it.")
    ] = None,
    buffer: Annotated[
        Path | None,
        typer.Option(parser=paths.path, help="Wake buffer to queue the other records in again. Default: the run's."),
    ] = None,
    later: Annotated[
        Literal["drop", "keep"] | None,
        typer.Option(help="Drop or keep later entries, which depend on it."),
    ] = None,
    model: Model = None,
    yes: Annotated[bool, typer.Option("--yes", help="Drop without asking, although records would be lost.")] = False,
    json: Json = False,
) -> None:
    """Drop an entry for good: reset its expert and queue its records for the next night.

    Entries that were consolidated into one expert are dropped together. With --source, the texts of that source are
    forgotten, and only the other records are queued.
    """
    if (entry is None) == (source is None):
        raise ValueError("Give either an entry or --source.")
    found = FinishedRun.read(newest_night(run))
    source = source and _full_source(found, source)
    names = [entry] if entry else _holding(found, source or "")
    if not names:
        raise ValueError(f"No entry of {run} has records from {source!r}. See `sleep-trl memory show`.")
    for name in names:
        found.entry(name)
    plan_drop(found, names, source, later)  # refuses before torch is imported
    path = buffer or found.config.source.buffer

    with redirect_to_stderr(), WakeBuffer(path) if path else nullcontext() as opened:
        from ..publish.unlearn import drop as drop_entries
        from ..publish.unlearn import records_to_lose

        if lost := records_to_lose(found, names, opened, source, later):
            _confirm_loss(_loss_text([record.id for record in lost], opened is not None), yes)
        done = drop_entries(found, names, opened, source, later, model)
    row = {
        "dropped": list(done.entries),
        "queued": list(done.queued),
        "lost": list(done.lost),
        "buffer": str(path) if path else None,
        "also_in": [str(folder) for folder in done.also_in],
        "erased": [str(folder) for folder in done.erased],
    }
    show([row], json, _drop_text)


def _full_source(run: FinishedRun, name: str) -> str:
    """Return the one source of a run's records that has this name or ends with it."""
    if (plan := interrupted_drop(run)) is not None and plan.without is not None and matching(name, [plan.without]):
        return plan.without
    found = matching(name, (source.source for entry in run.entries for source in entry.sources))
    if len(found) > 1:
        raise ValueError(f"{name!r} is the end of {len(found)} sources: {', '.join(found)}. Drop one after the other.")
    return found[0] if found else name


def _holding(run: FinishedRun, source: str) -> list[str]:
    """Return the entries with records from a source, also if dropping them was interrupted."""
    if (plan := interrupted_drop(run)) is not None and plan.without == source:
        return list(plan.entries)
    return [entry.id for entry in run.holding(source)]


def _enable(run: Path, name: str, is_enabled: bool, model: str | None, as_json: bool) -> None:
    found = FinishedRun.read(newest_night(run))
    entry = found.entry(name)
    check_switch(found, entry, is_enabled)  # refuses before torch is imported
    if together := [other for other in found.sharing_expert_with([name]) if other != name]:
        done = "enabled" if is_enabled else "disabled"
        say(f"Also {done}, because they share an expert with {name}: {', '.join(together)}.")
    with redirect_to_stderr():
        from ..publish.unlearn import set_enabled

        set_enabled(found, entry, is_enabled, model)
    if not is_enabled and (dependents := found.dependents_of([name, *together])):
        say(f"Entries that depend on {name} and may answer worse: {', '.join(dependents)}.")
    after = FinishedRun.read(found.folder)
    owner = after.owners[name]
    row = {"entry": owner.id, "state": after.state(owner)}
    show([row], as_json, lambda row: f"{row['entry']} is {row['state']}.")


def _figures(row: Row, name: str) -> str:
    """Return a measure before and after, or nothing for an entry that holds others and was not measured itself."""
    figures = row["metrics"][name]
    return "" if row["holds"] and figures == [None, None] else change(figures)


def _shorten(sources: list[str]) -> str:
    return ", ".join(sources[:1]) + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")


def _entry_text(row: Row) -> str:
    lines = [
        f"{row['entry']}: {row['state']}"
        + (f" on {row['dropped']}" if row["dropped"] else f" in {row['into']}" if row["into"] else ""),
        *([f"holds        {', '.join(row['holds'])}"] if row["holds"] else []),
        f"date         {row['date']}",
        f"expert       {row['expert']} of level {row['level']}, {row['fingerprint'][:12]}",
        f"base         {row['base'][:12]}",
        f"parents      {', '.join(row['parents']) or 'none'}",
        *(f"{name:<12} {figures}" for name in row["metrics"] if (figures := _figures(row, name))),
        *(f"record       {record['sha256'][:12]}  {record['id']}  {record['source']}" for record in row["records"]),
    ]
    return "\n".join(lines)


def _confirm_loss(loss: str, is_confirmed: bool) -> None:
    """Say what will be lost before anything is dropped, and ask, unless `--yes` was given.

    Raises:
        `ValueError`: if there is no terminal to ask on.
    """
    is_terminal = sys.stdin.isatty()
    if not (is_confirmed or is_terminal):
        raise ValueError(
            f"{loss} Nothing was dropped, because there is no terminal to ask on. Give --yes to drop it all the same, "
            f"or --buffer with a wake buffer that queues them or has their texts."
        )
    say(loss)
    if not is_confirmed:
        typer.confirm("Drop it all the same?", abort=True, err=True)


def _loss_text(names: list[str], has_buffer: bool) -> str:
    """Name the records that will not be queued again."""
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    why = "their texts were not found" if has_buffer else "the run has no wake buffer (give --buffer for that)"
    return f"Records that will not be queued again, because {why}: {shown}."


def _drop_text(row: Row) -> str:
    lines = [f"Dropped {', '.join(row['dropped'])}."]
    if row["buffer"]:
        lines.append(f"Queued {counted(len(row['queued']), 'record')} in {row['buffer']}.")
    else:
        lines.append("Records were not queued again: the run has no wake buffer, and none was given.")
    if row["lost"]:
        lines.append(f"Not queued, because their texts were not found: {', '.join(row['lost'])}.")
    if row["erased"]:
        lines.append(f"Unfinished nights that knew it, and start over when resumed: {', '.join(row['erased'])}.")
    if row["also_in"]:
        lines.append(f"Also in other runs: {', '.join(row['also_in'])}. Delete these, or drop it there too.")
    lines.append("Not looked for: exported models, copies of folders, and backups.")
    return "\n".join(lines)
