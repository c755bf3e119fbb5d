"""Reads records from files, folders and streams, one block at a time, so that memory use stays constant."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Literal

from ..data.files import CONVERTERS, InvalidDocument, check_size, find_documents, is_document, shown_suffixes, source_of
from .buffer import WakeBuffer
from .records import (
    MAX_BYTES,
    Rejection,
    Tally,
    WakeRecord,
    record_of_document,
    record_of_line,
    record_of_text,
    rejection,
    too_long,
)

Form = Literal["jsonl", "lines", "document"]
"""jsonl: each line is a JSON object. lines: each line is a text. document: the whole input is one text."""

Read = Callable[[str, bytes, str], WakeRecord | Rejection]  # (place, content, source)

READERS: dict[Form, Read] = {"jsonl": record_of_line, "lines": record_of_text, "document": record_of_text}
BLOCK = 2**20  # bytes read at once and stored as one batch


class Lines:
    """Splits blocks into lines and makes records of them, holding at most one record in memory.

    Args:
        name (`str`): the stream's name, for messages.
        source (`str`): source of records that name none.
        read (`Read`): makes a record of a line.
        offset (`int`): offset of the first block in the stream, in bytes. Messages count lines if it is 0.
    """

    def __init__(self, name: str, source: str, read: Read, offset: int = 0) -> None:
        self.name, self.source, self.read, self.offset = name, source, read, offset
        self._number = 1 if offset == 0 else None
        self._line = bytearray()  # the start of a line that is not complete yet
        self._length = 0  # of that line, of which at most a record is kept

    def feed(self, block: bytes) -> Iterator[WakeRecord | Rejection]:
        """Yield the records of the lines that end in this block, skipping blank lines."""
        start = 0
        while (end := block.find(b"\n", start)) >= 0:
            self._keep(block[start:end])
            yield from self.finish(1)
            start = end + 1
        self._keep(block[start:])

    def finish(self, newline: int = 0) -> Iterator[WakeRecord | Rejection]:
        """Yield the record of the line read so far; `newline` is the length of its line break in bytes."""
        line = bytes(self._line).removesuffix(b"\r")
        place = f"{self.name}, byte {self.offset}" if self._number is None else f"{self.name}, line {self._number}"
        if self._length > MAX_BYTES:
            yield too_long(place)
        elif line.strip():
            yield self.read(place, line, self.source)
        self.offset += self._length + newline
        if self._number is not None:
            self._number += 1
        self._line.clear()
        self._length = 0

    def _keep(self, part: bytes) -> None:
        self._length += len(part)
        if self._length <= MAX_BYTES:
            self._line += part


def add_path(
    buffer: WakeBuffer,
    path: Path,
    form: Form | None = None,
    source: str | None = None,
    given: Collection[Path] = (),
) -> Tally:
    """Store a file, or the documents of a folder and its subfolders, without following links that lead out of it or to
    folders.

    Args:
        buffer (`WakeBuffer`):
            Buffer to store records in.
        path (`Path`):
            A .jsonl file, a document, a file of any name with a `form`, or a folder.
        form (`str`, *optional*):
            `jsonl`, `lines` or `document`. Default: by the file's name.
        source (`str`, *optional*):
            Source of records that name none. Default: the file's path, see [`source_of`].
        given (`Collection[Path]`, *optional*):
            Whole paths of what else is stored, which is not reported as left out of a folder.

    Returns:
        `Tally`: counts of stored and rejected items. A rejected item does not stop the rest.

    Raises:
        `ValueError`: if the path does not exist, its form is unknown, or a folder has no documents.
    """
    if path.is_dir():
        return _add_documents(buffer, path, source, given)
    form = form or form_of(path)
    if form == "document":
        return buffer.add([_document(path, source or source_of(path))])
    try:
        with path.open("rb", buffering=0) as file:
            return add_stream(buffer, file.fileno(), str(path), form, source or source_of(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Check the path and its permissions.") from None


def form_of(path: Path) -> Form:
    """Return a file's form, by its name.

    Raises:
        `ValueError`: if the file does not exist, or its name has another extension.
    """
    if not path.exists():
        raise ValueError(
            f"{path} does not exist. Give a .jsonl file, a document ({shown_suffixes()}), a folder, or - for standard "
            f"input."
        )
    if path.suffix.lower() == ".jsonl":
        return "jsonl"
    if not is_document(path):
        raise ValueError(
            f"{path} is neither a .jsonl file nor a document ({shown_suffixes()}). Give its form: --form "
            f"{', '.join(READERS)}."
        )
    return "document"


def add_stream(buffer: WakeBuffer, descriptor: int, name: str, form: Form, source: str) -> Tally:
    """Store records from a file descriptor until its end, each block as soon as it is read.

    Args:
        buffer (`WakeBuffer`):
            Buffer to store records in.
        descriptor (`int`):
            File descriptor of a file, a pipe or a terminal.
        name (`str`):
            Name of the stream, for messages.
        form (`str`):
            `jsonl`, `lines` or `document`.
        source (`str`):
            Source of records that name none.
    """
    if form == "document":
        return buffer.add([_whole_text(descriptor, name, source)])
    lines, tally = Lines(name, source, READERS[form]), Tally()
    while block := os.read(descriptor, BLOCK):
        tally += buffer.add(list(lines.feed(block)))
    tally += buffer.add(list(lines.finish()))
    return tally


def _add_documents(buffer: WakeBuffer, folder: Path, source: str | None, given: Collection[Path]) -> Tally:
    found, left_out = find_documents(folder, "a .jsonl file is stored if its own path is given too", given)
    tally, batch, size = Tally(left_out=[one.reason for one in left_out]), list[WakeRecord | Rejection](), 0
    if not found:
        ignored = "".join(f"\n  {reason}" for reason in tally.left_out)
        raise ValueError(f"The folder {folder} has no documents ({shown_suffixes()}). Give another one.{ignored}")
    for path in found:
        batch.append(_document(path, source or source_of(path)))
        size += path.stat().st_size
        if size >= BLOCK:
            tally += buffer.add(batch)
            batch, size = [], 0
    tally += buffer.add(batch)
    return tally


def _document(path: Path, source: str) -> WakeRecord | Rejection:
    try:
        if path.suffix.lower() in CONVERTERS:
            check_size(path, path.stat().st_size)
            return record_of_document(path, path.read_bytes(), source)
        with path.open("rb") as file:
            return _whole_text(file.fileno(), str(path), source)
    except InvalidDocument as error:
        return rejection(str(path), error.kind, str(error))
    except OSError as error:
        return rejection(str(path), "unreadable", f"cannot be read: {error.strerror}. Check its permissions.")


def _whole_text(descriptor: int, name: str, source: str) -> WakeRecord | Rejection:
    """Read a whole text, but no more of it than a record may hold."""
    text = bytearray()
    while block := os.read(descriptor, BLOCK):
        text += block
        if len(text) > MAX_BYTES:
            return too_long(name)
    return record_of_text(name, bytes(text), source)
