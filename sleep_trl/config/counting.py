"""Numbers of things in messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 memory`, `2,000 memories`.

    Args:
        number (`int`):
            How many there are.
        noun (`str`):
            What they are, in the singular. The plural ends with s, that of a final y with ies.
    """
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
