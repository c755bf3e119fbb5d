"""Calls of the command `sleep-trl`, and what it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "sleep_trl.cli"]


def rows(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]
