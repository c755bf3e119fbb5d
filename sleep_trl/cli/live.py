"""`sleep-trl live`: a life without a fixed number of nights."""

from __future__ import annotations

import json as jsons
import signal
import sys
from datetime import datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..config import RunConfig

STOPPED = 130
WORDS = {
    "held": "Waiting for another process that is at work in {life}: a `sleep-trl live`, or a night that one left.",
    "waiting": "{records:,} records wait",
    "nothing new": "The hour has come, but nothing new was heard: no night.",
    "night": "{night} begins, try {try}: {why}",
    "slept": "{night} is slept: {entry}, {records:,} records, {seconds:,.0f} s",
    "aside": "Nothing usable was written about {records:,} records ({night}); they wait for what is heard after them.",
    "failed": "{night} failed with exit code {exit_code}",
    "over": "All {nights} nights are slept.",
    "stopped": "Stopped. The same command goes on from here.",
}


def live(
    context: typer.Context,
    buffer: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The wake buffer to live on; made if it is missing."),
    ] = None,
    memories: Annotated[str | None, typer.Option(metavar="wake:PATH", help="The same, as for a single night.")] = None,
    after_tokens: Annotated[
        int | None,
        typer.Option("--after_tokens", "--after-tokens", min=1, help="Sleep as soon as so many tokens wait."),
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="HH:MM", help="Sleep at this hour each day, local time, if anything waits.")
    ] = None,
    nights: Annotated[
        int | None, typer.Option(min=1, help="End after this night of the life. Default: live until stopped.")
    ] = None,
    launch: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="What starts a night, such as 'accelerate launch'. Default: one process."),
    ] = None,
    check_every: Annotated[
        float, typer.Option("--check_every", "--check-every", min=0.1, help="Seconds between two looks at the buffer.")
    ] = 10.0,
    tries: Annotated[int, typer.Option(min=1, help="How often a night that fails is tried.")] = 5,
    pause: Annotated[
        float, typer.Option(min=0, help="Seconds before the second try, doubled for each further one, at most an hour.")
    ] = 60.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each event.")] = False,
) -> None:
    """Hear, and sleep when enough was heard or at an hour, night after night, until stopped.

    Takes the options of a life besides: --config life.yaml, and those of launch/sleep.py (`sleep-trl night --help`).
    Each night continues the newest one of output_dir, and runs in a process of its own: between nights GPUs are free.
    After a stop or a kill, at any moment, the same command goes on where it was.

    Exit codes: 0 all --nights are slept, 2 a mistake in what was given, 130 stopped; else that of the night that failed
    --tries times.
    """
    from ..config import MemorySource
    from ..daemon import Launcher, PendingRecords, SleepPolicy, Supervisor, load_tokenizer

    def tell(event: str, told: dict[str, Any]) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        row = {"time": now, "event": event} | told
        typer.echo(jsons.dumps(row, ensure_ascii=False) if json else f"{now}  {_in_words(event, told)}")

    policy = SleepPolicy(after_tokens, _hour(at), nights, check_every, tries, pause)
    launcher = Launcher.read(launch, sys.stderr if json else None)
    config = _parse(context.args, str(MemorySource(buffer=buffer)) if buffer else memories)
    chain, path = config.output_dir, config.source.buffer
    assert path is not None
    pending = PendingRecords(path, load_tokenizer(config.model) if after_tokens else None, chain)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # service managers stop by it what Ctrl-C stops elsewhere
    try:
        code = Supervisor(chain, config.memories, context.args, launcher, pending, policy, tell).run()
    except KeyboardInterrupt:
        tell("stopped", {})
        code = STOPPED
    raise typer.Exit(code)


def _parse(arguments: list[str], memories: str | None) -> RunConfig:
    """Return the configuration that all nights share.

    Raises:
        `ValueError`: for a mistake in the options of a run, or if it is not about a wake buffer.
    """
    from ..config.command_line import explain, parse

    try:
        config = parse([*arguments, *([f"--memories={memories}"] if memories else [])])
    except ValueError as error:
        raise ValueError(explain(error)) from None
    if config.nights or config.source.buffer is None:
        found = f"nights ({', '.join(config.nights)})" if config.nights else config.memories
        raise ValueError(f"memories: a life that goes on is about a wake buffer, not {found}. Give --buffer PATH.")
    if config.dry_run:
        raise ValueError("dry_run: nothing has been heard yet. Check with `sleep-trl doctor` and the same options.")
    return config


def _hour(given: str | None) -> time | None:
    try:
        return datetime.strptime(given, "%H:%M").time() if given else None
    except ValueError:
        raise ValueError(f"--at: {given!r} is no hour of a day. Give such as 03:30.") from None


def _in_words(event: str, told: dict[str, Any]) -> str:
    words = WORDS[event].format(**told)
    if event == "waiting" and told["tokens"] is not None:
        words += f", {told['tokens']:,} tokens"
    if event == "failed":
        words += f"; tried again in {told['again_in']:g} s" if told["again_in"] is not None else "; given up"
    if event == "slept" and told["rolled_back"]:
        words += f"; rolled back: {told['rolled_back']}"
    return words
