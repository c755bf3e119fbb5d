"""Atomic files: everything that must survive a crash is written through here, completely or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import checksums
from .folder import holds_texts


def write_text(path: Path, text: str, is_checked: bool = False) -> None:
    """Write a file by atomic rename: a reader sees the old content or the new. It is on disk when this returns. Files
    that hold texts of memories are readable by their owner only.

    Args:
        path (`Path`):
            The file.
        text (`str`):
            Its content.
        is_checked (`bool`, *optional*, defaults to `False`):
            Whether to record its hash, which is checked when it is read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        if holds_texts(path):
            os.fchmod(file.fileno(), 0o600)
        file.write(text)
    checksums.replace(partial, path, is_checked)


def write_json(path: Path, value: Any, is_checked: bool = False) -> None:
    """Write one JSON value, indented, as [`write_text`] does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", is_checked)


def read_json(path: Path) -> Any:
    """Read one JSON value.

    Raises:
        `ValueError`: if the file is missing, is not JSON, or is not what was written.
    """
    try:
        content = path.read_bytes()
        checksums.check(path, content)
        return json.loads(content.decode())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]], is_checked: bool = False) -> None:
    """Write JSON lines, as [`write_text`] does."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), is_checked)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON lines file, skipping blank lines.

    Raises:
        `ValueError`: if the file is missing or not what was written, or a line is not a JSON object.
    """
    try:
        content = path.read_bytes()
        checksums.check(path, content)
        lines = content.decode().split("\n")  # splitlines would cut at U+2028 inside a text
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}. Convert it first.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not valid JSON: {error.msg} (column {error.colno}).") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}.")
        yield row


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that it holds, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
