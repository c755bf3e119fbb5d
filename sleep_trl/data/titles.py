"""What names a document in prompts: its title, or how it begins (ours)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

import regex

from .documents import MemoryText
from .files import is_document
from .windows import split_sentences

LENGTH = 80  # characters, at most
HEAD = 4096  # characters of a text in which its first line is looked for
_MARKUP = "#*_=-> \t\u3000・●○■□◆◇※•"


def find_titles(memories: Sequence[MemoryText]) -> dict[str, str]:
    """Return the title of each memory by its id: its source, of a file its name, if no other memory has the same; else
    its first words.

    Args:
        memories (`Sequence[MemoryText]`):
            The memories of a night.
    """
    names = [_name(memory.source) for memory in memories]
    counts = Counter(names)
    titles = {}
    for name, memory in zip(names, memories, strict=True):
        is_own = counts[name] == 1 and not name.endswith(".jsonl")
        titles[memory.id] = _shorten(name if is_own else first_words(memory.text))
    return titles


def _name(source: str) -> str:
    return (PurePath(source).name if is_document(PurePath(source)) else source).strip()


def first_words(text: str) -> str:
    """Return the first line of a text without its markup, or its first sentence."""
    line = _first_line(text[:HEAD]) or _first_line(text)
    return split_sentences(line)[0].strip() if line else ""


def _first_line(text: str) -> str:
    return next((stripped for line in text.splitlines() if (stripped := line.strip(_MARKUP))), "")


def with_title(title: str, text: str) -> str:
    """Put a title above a text, unless it begins with it."""
    return text if not title or text.lstrip(_MARKUP).startswith(title.rstrip("….")) else f"{title}\n{text}"


def _shorten(text: str) -> str:
    """Cut a text at a word, or where there are no spaces at a character as a reader sees it."""
    if len(text) <= LENGTH:
        return text
    start = text[:LENGTH].rsplit(None, 1)[0]
    if 2 * len(start) < LENGTH or start == text[:LENGTH]:
        start = "".join(regex.findall(r"\X", text[: LENGTH + 1])[:-1])
    return f"{start}…"
