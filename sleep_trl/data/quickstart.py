"""Where the quickstart is: a tiny model and invented documents that it can read, described in its README."""

from __future__ import annotations

from pathlib import Path

_INSTALLED = Path(__file__).parent / "shipped" / "quickstart"
_IN_CLONE = Path(__file__).resolve().parents[2] / "examples" / "quickstart"

QUICKSTART = _INSTALLED if _INSTALLED.is_dir() else _IN_CLONE
MODEL = QUICKSTART / "model"
NIGHTS = tuple(QUICKSTART / f"memories{night}.jsonl" for night in ("", "_night2", "_night3"))
"""What there is to learn, night by night."""
