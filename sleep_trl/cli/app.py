"""The command `sleep-trl`, with the subcommands `schedule`, `night` and `report`.

Exit codes: 0 success, 1 failure, 2 invalid input, 130 stopped by Ctrl-C, 143 a night
or `live` stopped by SIGTERM.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from ..config.exit_codes import DONE, FAILURE, USER_ERROR
from ..config.schedule import LADDER, Schedule
from ..config.visible import show_warnings_visibly
from ..runs.files import read_json
from ..runs.finished import newest_night
from ..runs.folder import RunFolder
from . import memory, paths, share, wake
from .demo import demo
from .doctor import SETTINGS, doctor
from .live import live
from .new import new
from .output import Json, Row, redirect_to_stderr, say, show, warn_renamed
from .plan import plan

LONG_FIELDS = ("history", "config")  # of results.json, left out of `night --json`
JSON_HELP = (
    "At the end, print results.json without history and configuration, on one line. Everything else goes to standard "
    "error."
)

app = typer.Typer(
    help="Continual learning for language models: store records by day, consolidate them at night, unlearn any.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("-", "_")},  # both spellings of options
)
app.add_typer(wake.app, name="wake")
app.add_typer(memory.app, name="memory")
app.command()(share.serve)
app.command()(share.export)
app.command()(new)
app.command(context_settings=SETTINGS)(demo)
app.command(context_settings=SETTINGS)(doctor)
app.command(context_settings=SETTINGS)(live)
app.command(context_settings=SETTINGS)(plan)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        from ..config.command_line import version

        typer.echo(version())
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Global options."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `sleep-trl`.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments without the program's name. Default: those of `sys.argv`.

    Raises:
        `SystemExit`: always, with the exit code.
    """
    show_warnings_visibly()
    try:
        app(args=None if argv is None else list(argv), prog_name="sleep-trl")
    except ValueError as error:
        say(f"Error: {error}")
        sys.exit(USER_ERROR)
    except (RuntimeError, OSError) as error:
        say(f"Error: {error}")
        sys.exit(FAILURE)


@app.command()
def schedule(
    tokens: Annotated[int, typer.Option(min=1, help="Number of ingested tokens to look ahead.")],
    chunks: Annotated[
        str, typer.Option(metavar="N,N,...", help="Chunk sizes in tokens, starting with level 0 (the context).")
    ] = ",".join(map(str, LADDER)),
    ingested: Annotated[int, typer.Option("--ingested", min=0, help="Tokens that were already ingested.")] = 0,
    heard: Annotated[int | None, typer.Option("--heard", min=0, hidden=True)] = None,
    json: Json = False,
) -> None:
    """Print when each memory level would be consolidated."""
    if heard is not None:
        warn_renamed("--heard", "--ingested")
        ingested = heard
    try:
        ladder = Schedule(tuple(int(size) for size in chunks.split(",")))
    except ValueError as error:
        if "invalid literal" not in str(error):
            raise
        raise ValueError(
            f"--chunks: {chunks!r} is not a list of numbers. Give, for example, 1000,5000,10000."
        ) from None
    rows = (
        {"tokens": at, "edges": [{"sender": edge.sender, "receiver": edge.receiver} for edge in due]}
        for at, due in ladder.between(ingested, ingested + tokens)
    )
    show(
        rows,
        json,
        lambda row: f"{row['tokens']:>12,}  " + ", then ".join(_edge_text(**edge) for edge in row["edges"]),
    )


def _edge_text(sender: int, receiver: int | None) -> str:
    name = "context" if sender == 0 else f"level {sender}"
    return f"{name} updates" if receiver is None else f"{name} → level {receiver}"


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def night(context: typer.Context) -> None:
    """Run a night or a chain of nights in one process. Takes the options of a run, and --json."""
    from ..launch import sleep

    words = [word for word in context.args if word != "--json"]
    is_json = len(words) < len(context.args)
    with redirect_to_stderr() if is_json else nullcontext():
        code = sleep.main(words, "sleep-trl night", {"--json": JSON_HELP})
    if is_json and code == DONE:
        show([_results(words)], True, str)
    raise typer.Exit(code)


def _results(words: Sequence[str]) -> Row:
    """Return the results of a run's newest night, or that it was a dry run."""
    from ..config.command_line import parse

    config = parse(words)
    if config.dry_run:
        return {"run": str(config.output_dir), "dry_run": True}
    run = newest_night(config.output_dir)
    results = read_json(RunFolder(run).results)
    return {"run": str(run), **{name: value for name, value in results.items() if name not in LONG_FIELDS}}


@app.command()
def report(
    run: Annotated[
        Path, typer.Argument(parser=paths.path, help="Folder of a finished run, or of a chain (uses its newest night).")
    ],
    json: Json = False,
) -> None:
    """Rewrite a run's report.html."""
    with redirect_to_stderr():
        from ..report import write_report

        page = write_report(newest_night(run))
    show([{"report": str(page)}], json, lambda row: f"Written to {row['report']}")
