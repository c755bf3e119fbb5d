"""`sleep-trl` and the commands that stand for themselves.

Exit codes: 0 done, 1 it could not be done, 2 a mistake in what was given, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..config.schedule import LADDER, Schedule
from ..runs.files import read_json
from ..runs.finished import newest_night
from . import grown, memory, wake
from .doctor import SETTINGS, doctor
from .live import live
from .output import Json, Row, chatter_to_stderr, show

COULD_NOT, MISTAKE = 1, 2
LONG = ("history", "config")  # of results.json

app = typer.Typer(
    help="Language models that go on learning: hear by day, consolidate at night, take back what was wrong.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(wake.app, name="wake")
app.add_typer(memory.app, name="memory")
app.command()(grown.serve)
app.command()(grown.export)
app.command(context_settings=SETTINGS)(doctor)
app.command(context_settings=SETTINGS)(live)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        from ..config.command_line import version

        typer.echo(version())
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """Options before the command."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `sleep-trl`.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments without the program's name; `sys.argv`'s if left out.

    Raises:
        `SystemExit`: always, with the exit code.
    """
    try:
        app(args=None if argv is None else list(argv), prog_name="sleep-trl")
    except ValueError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(MISTAKE)
    except (RuntimeError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(COULD_NOT)


@app.command()
def schedule(
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of wake input to look ahead.")],
    chunks: Annotated[
        str, typer.Option(metavar="N,N,...", help="Chunk sizes in tokens, level 0 (the context) first.")
    ] = ",".join(map(str, LADDER)),
    heard: Annotated[int, typer.Option(min=0, help="Tokens that have been heard already.")] = 0,
    json: Json = False,
) -> None:
    """Print which memory would sleep when."""
    try:
        ladder = Schedule(tuple(int(size) for size in chunks.split(",")))
    except ValueError as error:
        if "invalid literal" not in str(error):
            raise
        raise ValueError(f"--chunks: {chunks!r} is no list of numbers. Give such as 1000,5000,10000.") from None
    rows = (
        {"tokens": at, "edges": [{"sender": edge.sender, "receiver": edge.receiver} for edge in due]}
        for at, due in ladder.between(heard, heard + tokens)
    )
    show(
        rows,
        json,
        lambda row: f"{row['tokens']:>12,}  " + ", then ".join(_in_words(**edge) for edge in row["edges"]),
    )


def _in_words(sender: int, receiver: int | None) -> str:
    name = "context" if sender == 0 else f"level {sender}"
    return f"{name} updates" if receiver is None else f"{name} → level {receiver}"


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def night(context: typer.Context) -> None:
    """Run a night, or a life of nights, in one process. Takes the options of launch/sleep.py, see `sleep-trl night
    --help`, and --json: what `results.json` says, without history and configuration, as one JSON object."""
    from ..launch import sleep

    words = [word for word in context.args if word != "--json"]
    if len(words) == len(context.args):
        raise typer.Exit(sleep.main(words))
    with chatter_to_stderr():
        code = sleep.main(words)
    if code == 0:
        show([_outcome(words)], True, str)
    raise typer.Exit(code)


def _outcome(words: Sequence[str]) -> Row:
    """Return what the newest night of a run has come to, or that none was slept."""
    from ..config.command_line import parse

    config = parse(words)
    if config.dry_run:
        return {"run": str(config.output_dir), "dry_run": True}
    run = newest_night(config.output_dir)
    results = read_json(run / "results.json")
    return {"run": str(run), **{name: value for name, value in results.items() if name not in LONG}}


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a life: its newest night.")],
    json: Json = False,
) -> None:
    """Write a run's report.html anew."""
    with chatter_to_stderr():
        from ..report import write_report

        page = write_report(newest_night(run))
    show([{"report": str(page)}], json, lambda row: f"Written to {row['report']}")
