"""`sleep-trl doctor`: what this machine and a configuration can do, and whether it is go."""

from __future__ import annotations

import json as jsons
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .output import chatter_to_stderr, table

if TYPE_CHECKING:
    from ..doctor import Case, Finding

NO_GO = 2
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}  # a run's options are read as sleep.py reads them


def doctor(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    prove: Annotated[bool, typer.Option(help="Also teach a tiny model, with the engine that the run chooses.")] = True,
    config_file: Annotated[
        Path | None,
        typer.Option("--config_file", metavar="FILE", help="What `accelerate launch` will be given. Default: nothing."),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port at which you will serve. Default: 8000, if free.")] = None,
) -> None:
    """Check this machine, and a run if its options are given: --config my.yaml, and those of launch/sleep.py.

    Starts nothing that stays and writes nothing. Exit code 0 is go, 2 is no go.
    """
    with chatter_to_stderr():
        from rich.console import Console

        from ..doctor import Launch, diagnose

        case = _case(context.args)
        case.launch = Launch.read(config_file) if config_file else case.launch
        case.port = port
        with Console(stderr=True).status("Looking"):
            findings = list(diagnose(case, prove))
    is_go = all(finding.state != "fault" for finding in findings)
    if json:
        typer.echo(jsons.dumps({"go": is_go, "findings": [asdict(f) for f in findings]}, ensure_ascii=False))
    else:
        _print(findings, is_go)
    raise typer.Exit(0 if is_go else NO_GO)


def _case(arguments: list[str]) -> Case:
    """Return what is to be looked at: of a life, the night that is to be slept next."""
    from ..config.command_line import explain, parse
    from ..doctor import Case
    from ..launch import sleep

    if not arguments:
        return Case()
    try:
        config = parse(arguments)
        if config.nights:
            from ..planning.chain import nights_of, unfinished

            nights = nights_of(config)
            config = (unfinished(nights) or nights)[0]
    except ValueError as error:
        return Case(config_error=explain(error))
    return Case(config=config, check_rewards=sleep.check_rewards)


def _print(findings: list[Finding], is_go: bool) -> None:
    rows = [asdict(finding) for finding in findings]
    table(
        rows,
        False,
        {
            "check": lambda row: row["name"],
            "state": lambda row: row["state"],
            "found, and what to do": lambda row: row["found"] + (f"\n→ {row['remedy']}" if row["remedy"] else ""),
        },
    )
    counts = {state: sum(finding.state == state for finding in findings) for state in ("fault", "warning")}
    told = ", ".join(f"{count} {state}{'s' if count > 1 else ''}" for state, count in counts.items() if count)
    typer.echo(f"{'Go' if is_go else 'No go'}{f': {told}' if told else ''}.")
