"""`sleep-trl live`: a chain of nights that run when there is something to learn."""

from __future__ import annotations

import signal
import sys
from datetime import datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config.counting import counted
from ..config.exit_codes import STOPPED, TERMINATED
from ..config.visible import visible
from . import paths
from .output import as_line

if TYPE_CHECKING:
    from ..config import RunConfig

MESSAGES = {
    "waiting_for_lock": "Waiting for another process that works on {chain}: a `sleep-trl live`, or a night it started.",
    "pending": "Pending: {records}",
    "buffer_unavailable": "The wake buffer cannot be read at the moment ({reason}); trying again.",
    "nothing_new": "Scheduled time reached; no new records, skipping.",
    "started": "Starting {night}, attempt {attempt} ({why})",
    "finished": "Finished {night}: {entry}, {records}, {seconds:,.0f} s",
    "quarantined": "Quarantined {night}: the teacher wrote nothing usable about its {records}. They "
    "will be learned together with records that arrive later.",
    "nothing_left": "Nothing is left to learn in {night}: its records were forgotten.",
    "failed": "{night} failed with exit code {exit_code}",
    "done": "Finished {nights}.",
    "stopped": "Stopped. The same command continues from here.",
}


def live(
    context: typer.Context,
    buffer: Annotated[
        Path | None,
        typer.Option(parser=paths.path, metavar="PATH", help="Wake buffer to learn from, created if it is missing."),
    ] = None,
    memories: Annotated[str | None, typer.Option(metavar="wake:PATH", help="The same, as for a single night.")] = None,
    after_tokens: Annotated[
        int | None,
        typer.Option(
            "--after_tokens",
            min=1,
            help="Sleep as soon as this many tokens are pending. Default without --at: the chunk of level 0.",
        ),
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="HH:MM", help="Sleep at this local time each day, if any record is pending.")
    ] = None,
    nights: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many nights of the chain. Default: run until stopped.")
    ] = None,
    launch: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="Launcher of a night, such as 'accelerate launch'. Default: one process."),
    ] = None,
    check_every: Annotated[
        float, typer.Option("--check_every", min=0.1, help="Seconds between two checks of the buffer.")
    ] = 10.0,
    tries: Annotated[int, typer.Option(min=1, help="Attempts at a night that fails.")] = 5,
    pause: Annotated[
        float,
        typer.Option(min=0, help="Seconds before the second attempt, doubled for each one after it, up to an hour."),
    ] = 60.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each event.")] = False,
) -> None:
    """Run nights when enough records are pending or at a scheduled time, until stopped.

    Also takes the options of a chain of nights: --config chain.yaml, and those of a night (see `sleep-trl night
    --help`). Each night continues the newest one in output_dir and runs in its own process, so that GPUs are free
    between nights. After a stop or a kill, the same command continues where it stopped.

    Exit codes: 0 if all --nights are finished, 2 for invalid input, 130 if stopped by Ctrl-C, 143 by SIGTERM, else
    that of the night that failed --tries times.
    """
    from ..config import MemorySource
    from ..daemon import Launcher, PendingRecords, SleepPolicy, Supervisor, load_tokenizer

    def report(event: str, fields: dict[str, Any]) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        row = {"time": now, "event": event} | fields
        typer.echo(as_line(row) if json else visible(f"{now}  {_message(event, fields)}"))

    hour, launcher = _time_of_day(at), Launcher.parse(launch, sys.stderr if json else None)
    config = _parse(context.args, str(MemorySource(buffer=buffer)) if buffer else memories)
    if after_tokens is None and hour is None and config.levels.chunks:
        after_tokens = config.levels.chunks[0]
    policy = SleepPolicy(after_tokens, hour, nights, check_every, tries, pause)
    chain, path = config.output_dir, config.source.buffer
    assert path is not None
    pending = PendingRecords(path, load_tokenizer(config.model, config.model_revision) if after_tokens else None, chain)
    terminated = list[int]()

    def terminate(number: int, _: object) -> None:  # service managers stop a process by SIGTERM
        terminated.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        code = Supervisor(chain, config.memories, context.args, launcher, pending, policy, report).run()
    except KeyboardInterrupt:
        report("stopped", {})
        code = TERMINATED if terminated else STOPPED
    raise typer.Exit(code)


def _parse(arguments: list[str], memories: str | None) -> RunConfig:
    """Return the configuration that all nights share.

    Raises:
        `ValueError`: if an option is invalid, or the memories are not a wake buffer.
    """
    from ..config.command_line import explain, parse

    try:
        config = parse([*arguments, *([f"--memories={memories}"] if memories else [])])
    except ValueError as error:
        raise ValueError(explain(error)) from None
    if config.nights or config.source.buffer is None:
        found = f"nights ({', '.join(config.nights)})" if config.nights else config.memories
        raise ValueError(f"memories: `sleep-trl live` learns from a wake buffer, not {found}. Give --buffer PATH.")
    if config.dry_run:
        raise ValueError("dry_run: there are no records yet. Use `sleep-trl doctor` with the same options instead.")
    return config


def _time_of_day(given: str | None) -> time | None:
    try:
        return datetime.strptime(given, "%H:%M").time() if given else None
    except ValueError:
        raise ValueError(f"--at: {given!r} is not a time of day. Give, for example, 03:30.") from None


def _message(event: str, fields: dict[str, Any]) -> str:
    counts = {f"{noun}s": counted(fields[f"{noun}s"], noun) for noun in ("record", "night") if f"{noun}s" in fields}
    message = MESSAGES[event].format(**fields | counts)
    if event == "pending" and fields["tokens"] is not None:
        message += f", {fields['tokens']:,} tokens"
    if event == "failed":
        message += f"; retrying in {fields['retry_in']:g} s" if fields["retry_in"] is not None else "; giving up"
    if event == "finished" and fields["rolled_back"]:
        message += f"; rolled back: {fields['rolled_back']}"
    return message
