"""`sleep-trl doctor`: checks this machine and a run's configuration."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config.exit_codes import DONE, USER_ERROR
from . import paths
from .output import as_line, redirect_to_stderr, table, warn_renamed

if TYPE_CHECKING:
    from ..doctor import Case, Finding

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}  # the options of a run are parsed by it


def doctor(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    smoke_test: Annotated[
        bool,
        typer.Option(
            "--smoke_test/--no_smoke_test",
            help="Also train a tiny model, with the engine of the run.",
        ),
    ] = True,
    prove: Annotated[bool | None, typer.Option("--prove/--no-prove", hidden=True)] = None,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config_file",
            parser=paths.path,
            metavar="FILE",
            help="Configuration of `accelerate launch`. Default: none.",
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to serve on later. Default: 8000, if free.")] = None,
) -> None:
    """Check this machine and, given the options of a run (--config my.yaml and those of `sleep-trl night`), that run.

    Leaves no process running and writes nothing. Exit code 0: no fault was found; 2: a fault was found.
    """
    if prove is not None:
        warn_renamed("--prove" if prove else "--no-prove", "--smoke_test" if prove else "--no_smoke_test")
        smoke_test = prove
    with redirect_to_stderr():
        from ..config.console import PlainConsole
        from ..doctor import Launch, diagnose

        case = _case(context.args)
        case.launch = Launch.read(config_file) if config_file else case.launch
        case.port = port
        with PlainConsole(stderr=True).status("Checking"):
            findings = list(diagnose(case, smoke_test))
    is_go = all(finding.state != "fault" for finding in findings)
    if json:
        typer.echo(as_line({"go": is_go, "findings": [asdict(f) for f in findings]}))
    else:
        _print(findings, is_go)
    raise typer.Exit(DONE if is_go else USER_ERROR)


def _case(arguments: list[str]) -> Case:
    """Return what to check. For a chain it is the next night."""
    from ..config.command_line import explain, parse
    from ..doctor import Case
    from ..launch.checks import check_trainer

    if not arguments:
        return Case()
    try:
        from ..planning.chain import nights_of, unfinished

        config = parse(arguments)
        nights = nights_of(config)
        config = (unfinished(nights) or nights)[0] if config.nights else nights[0]
    except ValueError as error:
        return Case(config_error=explain(error))
    return Case(config=config, check_rewards=check_trainer)


def _print(findings: list[Finding], is_go: bool) -> None:
    rows = [asdict(finding) for finding in findings]
    table(
        rows,
        False,
        {
            "check": lambda row: row["name"],
            "state": lambda row: row["state"],
            "finding and remedy": lambda row: row["found"] + (f"\n→ {row['remedy']}" if row["remedy"] else ""),
        },
    )
    counts = {state: sum(finding.state == state for finding in findings) for state in ("fault", "warning")}
    summary = ", ".join(f"{count} {state}{'s' if count > 1 else ''}" for state, count in counts.items() if count)
    typer.echo(f"{'Go' if is_go else 'No go'}{f': {summary}' if summary else ''}.")
