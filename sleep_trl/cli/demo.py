"""`sleep-trl demo`: the quickstart's nights, which need neither a clone nor a download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data.quickstart import NIGHTS, QUICKSTART
from . import paths


def demo(
    context: typer.Context,
    nights: Annotated[int, typer.Option(min=1, max=len(NIGHTS), help="Nights to run.")] = 1,
    output_dir: Annotated[Path, typer.Option("--output_dir", parser=paths.path, help="Folder of the chain.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Run one to three nights of the bundled tiny model: table, report and grown model, in about two minutes a night.

    Called again, it skips finished nights and continues an interrupted one. Also takes the options of a night (see
    `sleep-trl night --help`).
    """
    from ..launch import sleep

    words = [f"--config={QUICKSTART / 'config.yaml'}", *(f"--nights={memories}" for memories in NIGHTS[:nights])]
    words += [f"--output_dir={output_dir}", "--resume"]
    raise typer.Exit(sleep.main([*words, *context.args]))
