"""Paths on the command line."""

from __future__ import annotations

from pathlib import Path


def path(value: str | Path) -> Path:
    """Return a path in which `~` is the home folder. A shell leaves it as it is in `--buffer=~/wake.db`, and systemd
    everywhere."""
    return Path(value).expanduser()
