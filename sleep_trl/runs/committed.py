"""Which night of a life is the newest that is committed. Reads names and small files, no weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .files import read_json
from .ledger import active_entries, read_ledger

MARKS = ("results.json", "ledger.jsonl")
"""What a night writes last: a folder that has both is committed."""

NIGHT = re.compile(r"night-(\d+)")


@dataclass(frozen=True)
class Committed:
    """The folded model of a committed night.

    Args:
        run (`Path`): the night's folder.
        entry (`str`): its newest ledger entry that stands, or `base` if none does.
        version (`str`): changes whenever the model is written anew, by a night or by taking one back.
    """

    run: Path
    entry: str
    version: str

    @property
    def model(self) -> Path:
        return self.run / "model"

    @property
    def name(self) -> str:
        """What a client is told: night and entry."""
        return f"{self.run.name}:{self.entry}"

    def has_chat_template(self) -> bool:
        """Tell whether the model's tokenizer can write a chat."""
        if (self.model / "chat_template.jinja").is_file() or (self.model / "chat_templates").is_dir():
            return True
        config = self.model / "tokenizer_config.json"
        return config.is_file() and bool(read_json(config).get("chat_template"))


def newest_run(folder: Path) -> Path:
    """Return the newest committed night's folder: that of a run, or the last of a life (`night-001/`, ...).

    Raises:
        `ValueError`: if no night is committed.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder. Give the output_dir of a run, or of a life of nights.")
    run = newest_night(folder)
    if not _is_committed(run):
        raise ValueError(
            f"{folder} holds no committed night ({' and '.join(MARKS)} mark one). Let a night end first, or give "
            f"another folder."
        )
    return run


def newest_night(folder: Path) -> Path:
    """Return the newest committed night's folder of a life; a folder that is no life's as it is."""
    found = folder.iterdir() if folder.is_dir() else ()
    nights = {int(match[1]): path for path in found if (match := NIGHT.fullmatch(path.name))}
    return next((nights[number] for number in sorted(nights, reverse=True) if _is_committed(nights[number])), folder)


def newest(folder: Path) -> Committed:
    """Return the newest committed model of a run's folder, or of a life's.

    Raises:
        `ValueError`: if no night is committed, or the newest has no `model/`.
    """
    run = newest_run(folder)
    try:
        config = (run / "model" / "config.json").stat()
    except FileNotFoundError:
        raise ValueError(
            f"{run} has no model/: its experts are routed, and do not fold into a checkpoint that a server reads, or "
            f"the model is being written anew. Sleep with --memory.routing dense to serve what was learnt."
        ) from None
    entries = active_entries(read_ledger(run / "ledger.jsonl"))
    version = f"{run.name}-{config.st_ino}-{config.st_mtime_ns}"
    return Committed(run.resolve(), entries[-1].id if entries else "base", version)


def _is_committed(run: Path) -> bool:
    return all((run / name).is_file() for name in MARKS)
