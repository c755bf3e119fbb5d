"""`sleep-trl new`: a commented configuration for a model and its documents."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..config.memory_source import WAKE
from . import paths
from .output import Json, Row, show

FILE = "night.yaml"


def new(
    folder: Annotated[
        Path, typer.Argument(parser=paths.path, help="Folder for night.yaml. The run will be in FOLDER/run.")
    ],
    model: Annotated[str, typer.Option(help="Base model: a name on the Hub, a folder, or a GGUF file.")],
    memories: Annotated[str, typer.Option(help="What to learn: a file, a folder, a data set, or wake:PATH.")],
    json: Json = False,
) -> None:
    """Write FOLDER/night.yaml: the settings that are changed most often, each with a line of help.

    Loads nothing and overwrites nothing. Prints the commands that check the configuration and run it.
    """
    from ..config.model_name import check_exists as check_model_exists
    from ..config.new_file import new_file
    from ..data.sources import check_exists

    model, memories = map(os.path.expanduser, (model, memories))
    check_model_exists(model)
    if not memories.startswith(WAKE):
        check_exists(memories)
    path = folder / FILE
    run = str(_absolute(folder) / "run")
    text = new_file({"model": _lasting(model), "memories": _lasting(memories), "output_dir": run})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        there = path if path.exists() else folder
        raise ValueError(f"{there} exists and is not overwritten. Give another folder, or delete it.") from None
    is_dataset = not (memories.startswith(WAKE) or Path(memories).exists())
    show([{"config": str(path)} | ({"dataset": memories} if is_dataset else {})], json, _next_steps)


def _lasting(value: str) -> str:
    """Return what is on this machine by its absolute path, so that the file means the same from every folder."""
    prefix = WAKE if value.startswith(WAKE) else ""
    path = Path(value.removeprefix(prefix)).expanduser()
    return f"{prefix}{_absolute(path)}" if prefix or path.exists() else value


def _absolute(path: Path) -> Path:
    """Return an absolute path without `..`. Links stay, except in a path with `..`, whose meaning they change."""
    return path.resolve() if ".." in path.parts else path.absolute()


def _next_steps(row: Row) -> str:
    config = shlex.quote(row["config"])
    dataset = row.get("dataset")
    taken = f"{dataset} is no file or folder here, so it is taken as the name of a data set.\n" if dataset else ""
    return (
        f"Written to {row['config']}\n{taken}"
        f"check it: sleep-trl night --config {config} --dry_run\n"
        f"run it:   sleep-trl night --config {config}\n"
        f"          accelerate launch -m sleep_trl.launch.sleep --config {config}    # on several GPUs"
    )
