"""`sleep-trl wake`: records that wait for a night."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..config.counting import counted
from ..config.exit_codes import DONE, STOPPED, TRY_AGAIN, USER_ERROR
from ..data.files import matching
from ..runs.finished import FinishedRun
from ..wake import Form, State, Tally, WakeBuffer, add_path, add_stream, follow
from ..wake.reading import form_of
from . import paths
from .output import Json, Row, redirect_to_stderr, say, show

app = typer.Typer(help="Store records for the next night in a wake buffer.", no_args_is_help=True)


Buffer = Annotated[
    Path, typer.Option("--buffer", parser=paths.path, help="The wake buffer's file, created if it is missing.")
]
ExistingBuffer = Annotated[Path, typer.Option("--buffer", parser=paths.path, help="The wake buffer's file.")]
Source = Annotated[str | None, typer.Option(help="Source of records that name none. Default: the file's path.")]
FormOption = Annotated[
    Form | None,
    typer.Option(
        "--form",
        help="jsonl: each line is an object with text or messages. lines: each line is a text. document: the whole "
        "file is one text. Default: by the file's name.",
    ),
]
BUFFER = Path("runs/wake.db")
EXCERPT = 60  # characters of a text that `list` shows


@app.command()
def add(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, folders of documents, or - for stdin.")],
    buffer: Buffer = BUFFER,
    source: Source = None,
    form: FormOption = None,
    json: Json = False,
) -> None:
    """Store documents, chats or standard input. Exits with 2 if anything was rejected; the rest is stored."""
    for path in [] if form else paths:
        if path != "-" and not Path(path).expanduser().is_dir():
            form_of(Path(path).expanduser())  # before anything is stored
    tally, given = Tally(), {Path(path).expanduser().resolve() for path in paths}
    with WakeBuffer(buffer) as opened:
        for path in paths:
            if path == "-":
                tally += add_stream(opened, sys.stdin.fileno(), "stdin", form or "jsonl", source or "stdin")
            else:
                tally += add_path(opened, Path(path).expanduser(), form, source, given)
    _print_tally(tally, json)
    raise typer.Exit(USER_ERROR if tally.rejected else DONE)


@app.command()
def tail(
    path: Annotated[Path, typer.Argument(parser=paths.path, help="A growing file.")],
    buffer: Buffer = BUFFER,
    source: Source = None,
    form: FormOption = None,
    idle: Annotated[float | None, typer.Option(min=0, help="Stop after this many seconds without a new line.")] = None,
    json: Json = False,
) -> None:
    """Store the lines of a growing file as they arrive; continues where it stopped, even after a kill."""
    total = Tally()
    with WakeBuffer(buffer) as opened:
        try:
            for tally in follow(opened, path, form, source, idle=idle):
                total += tally
                for reason in tally.reasons:
                    say(reason)
        except KeyboardInterrupt:
            _print_tally(total, json, with_reasons=False)
            raise typer.Exit(STOPPED) from None
    _print_tally(total, json, with_reasons=False)


@app.command("list")
def list_(
    buffer: ExistingBuffer = BUFFER,
    state: Annotated[State | None, typer.Option(help="Only records in this state.")] = None,
    source: Annotated[str | None, typer.Option(help="Only records from this source.")] = None,
    rejected: Annotated[bool, typer.Option("--rejected", help="List rejected input, with reasons.")] = False,
    counts: Annotated[bool, typer.Option("--counts", help="Only the number of records in each state.")] = False,
    json: Json = False,
) -> None:
    """List records, each with the beginning of its text."""
    with _existing(buffer) as opened:
        if counts:
            found = opened.counts()
            show([found], json, lambda row: "\n".join(f"{count:>9,}  {name}" for name, count in row.items()))
        elif rejected:
            show(opened.rejections(), json, lambda row: f"{row['time'][:19]}  {row['kind']}: {row['reason']}")
        else:
            show((asdict(found) for found in opened.records(state, source, EXCERPT)), json, _record_text)


@app.command()
def forget(
    source: Annotated[
        str, typer.Argument(help="Source of the records, as `wake list` shows it, or how it ends: file.md, a/file.md.")
    ],
    buffer: ExistingBuffer = BUFFER,
    every: Annotated[bool, typer.Option("--all", help="All sources that end with this name, if several do.")] = False,
    json: Json = False,
) -> None:
    """Erase the texts of a source, also from unfinished nights. To unlearn them, use `sleep-trl memory drop --source`.

    Exits with 75 if a night in progress has some of them, which then starts over without them, or if another process
    reads the buffer, so that its log cannot be emptied. Then run the same command again.
    """
    with _existing(buffer) as opened:
        run, runs = opened.run(), opened.runs()
        sources = matching(source, opened.sources()) or [source]
        if len(sources) > 1 and not every:
            raise ValueError(
                f"{source!r} is the end of {len(sources)} sources: {', '.join(sources)}. Give one of them, or --all."
            )
        forgotten = sum(map(opened.forget, sources))
        is_erased = opened.empty_log()
        hashes = {record.sha256 for each in sources for record in opened.records(source=each)}
    with redirect_to_stderr():
        from ..planning.begun import erase

        copies = erase(runs, lambda memory: memory.sha256 in hashes)
    row = {
        "forgotten": forgotten,
        "run": str(run) if run else None,
        "sources": sources,
        "entries": _holding(run, sources) if run else [],
        "erased": [str(night) for night in copies.erased],
        "log": None if is_erased else f"{buffer}-wal",
        "in_use": [str(night) for night in copies.in_use],
        "also_in": [str(night) for night in copies.kept],
    }
    show([row], json, lambda row: _forgotten_text(row, buffer))
    for reason in copies.in_use.values():
        say(reason)
    if not is_erased:
        say(
            f"Another process is reading {buffer}, so the texts are still in {buffer}-wal. They are gone when the last "
            f"process has closed the buffer, or when you run this command again after it has finished reading."
        )
    raise typer.Exit(TRY_AGAIN if copies.in_use or not is_erased else DONE)


def _holding(run: Path, sources: list[str]) -> list[str]:
    try:
        finished = FinishedRun.read(run)
        return list(dict.fromkeys(entry.id for source in sources for entry in finished.holding(source)))
    except ValueError as error:
        say(f"Whether a night has learned it is unknown: {error}")
        return []


def _record_text(row: Row) -> str:
    line = "{state:<12}  {time:.19}  {copies:>3}×  {id}  {source}  {detail}".format(**row).rstrip()
    excerpt = " ".join(row["excerpt"].split())
    return f"{line}  “{excerpt}…”" if len(row["excerpt"]) == EXCERPT else f"{line}  “{excerpt}”" if excerpt else line


def _forgotten_text(row: Row, buffer: Path) -> str:
    lines = [f"{counted(row['forgotten'], 'record')} forgotten"]
    if len(row["sources"]) > 1:
        lines.append(f"Of the sources {', '.join(row['sources'])}.")
    if row["erased"]:
        lines.append(f"Erased from unfinished nights: {', '.join(row['erased'])}.")
    if row["also_in"]:
        lines.append(f"Also in files of finished nights, until they are dropped there: {', '.join(row['also_in'])}.")
    return "\n".join(lines) + _advice(row["run"], row["entries"], row["sources"], buffer)


def _advice(run: str | None, entries: list[str], sources: list[str], buffer: Path) -> str:
    if not entries:
        return ""
    commands = [f"sleep-trl memory drop {run} --source {source!r} --buffer {buffer}" for source in sources]
    return f"\nEntries of {run} that learned some of it: {', '.join(entries)}. To drop them: {'; '.join(commands)}"


def _existing(path: Path) -> WakeBuffer:
    if not path.is_file():
        raise ValueError(f"There is no wake buffer {path}. Give --buffer, or create one with `sleep-trl wake add`.")
    return WakeBuffer(path)


def _print_tally(tally: Tally, as_json: bool, with_reasons: bool = True) -> None:
    """Print the counts, and on standard error the reasons of rejections."""
    row = asdict(tally) | {"rejected": dict(tally.rejected)}
    for reason in tally.left_out if with_reasons else ():
        say(f"Not read: {reason}")
    for reason in tally.reasons if with_reasons else ():
        say(reason)
    if (more := tally.rejected.total() - len(tally.reasons)) > 0:
        say(f"and {more:,} more; see `sleep-trl wake list --rejected`.")
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in tally.rejected.most_common())
    words = f"{tally.added:,} added, {counted(tally.duplicates, 'duplicate')}, {tally.forgotten:,} already forgotten"
    show([row], as_json, lambda _: words + (f", rejected: {kinds}" if kinds else ""))
