"""Permissions of files with weights: safetensors creates them readable by their owner only."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


def follow_umask(path: Path) -> None:
    """Give a file of weights the permissions that other new files have."""
    path.chmod(0o666 & ~_umask())


@cache
def _umask() -> int:
    umask = os.umask(0o077)  # it cannot be read without being set
    os.umask(umask)
    return umask
