"""Untrusted text, such as names of files and records, as it may be shown in a terminal or a page."""

from __future__ import annotations

import json
import logging
import unicodedata

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories of invisible characters and of those that move others
JOINERS = "\u200c\u200d"  # hidden characters that are ordinary spelling in Persian, Hindi and emoji


def visible(text: str) -> str:
    """Replace control, formatting and unpaired surrogate characters by their code points, such as ⟨U+202E⟩.

    Line breaks and tabs stay. The result can neither reorder the text around it, nor command a terminal, nor break a
    page's encoding.
    """
    text = text.replace("\r\n", "\n")
    return "".join(
        f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in HIDDEN and c not in "\n\t" + JOINERS else c for c in text
    )


def visible_json(text: str) -> str:
    """Return JSON in which hidden characters are escaped, which leaves its value as it is."""
    return "".join(_escaped(c) if unicodedata.category(c) in HIDDEN and c not in "\n" + JOINERS else c for c in text)


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else json.dumps(character)[1:-1]


class VisibleFormatter(logging.Formatter):
    """Formats log records with [`visible`]."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def show_warnings_visibly() -> None:
    """Show the warnings of programs that do not configure logging with [`visible`]."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(VisibleFormatter())
