"""Where records come from: files, folders, and streams of lines. Read a piece at a time, so that memory stays flat."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from ..data.documents import TEXT_SUFFIXES, text_files
from .buffer import WakeBuffer
from .records import (
    MOST_BYTES,
    Position,
    Rejection,
    Tally,
    WakeRecord,
    record_of_line,
    record_of_text,
    rejection,
    too_long,
)

Form = Literal["jsonl", "lines", "document"]
"""jsonl: a line is a JSON object. lines: a line is a text. document: all of it is one text."""

Read = Callable[[str, bytes, str], WakeRecord | Rejection]  # (place, content, source)

READERS: dict[Form, Read] = {"jsonl": record_of_line, "lines": record_of_text, "document": record_of_text}
PIECE = 2**20  # bytes read at once; what they hold is one durable batch


class Lines:
    """Cuts what is read piece by piece into whole lines, and holds no more than one record of it.

    Args:
        name (`str`): of the stream, for messages.
        source (`str`): of records that name none.
        read (`Read`): makes a record of a line.
        offset (`int`): byte at which the first piece begins.
    """

    def __init__(self, name: str, source: str, read: Read, offset: int = 0) -> None:
        self.name, self.source, self.read, self.offset = name, source, read, offset
        self._begun = bytearray()  # of a line whose end has not been read
        self._length = 0  # of that line, of which no more than a record is kept

    def feed(self, piece: bytes) -> Iterator[WakeRecord | Rejection]:
        """Yield what the lines that end in this piece hold. Blank ones are passed over."""
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            self._keep(piece[start:end])
            yield from self.finish(1)
            start = end + 1
        self._keep(piece[start:])

    def finish(self, newline: int = 0) -> Iterator[WakeRecord | Rejection]:
        """Yield what the line read so far holds, as its end has come; `newline` is the bytes of that end."""
        line, place = bytes(self._begun).removesuffix(b"\r"), f"{self.name}, byte {self.offset}"
        if self._length > MOST_BYTES:
            yield too_long(place)
        elif line.strip():
            yield self.read(place, line, self.source)
        self.offset += self._length + newline
        self._begun.clear()
        self._length = 0

    def _keep(self, part: bytes) -> None:
        self._length += len(part)
        if self._length <= MOST_BYTES:
            self._begun += part


def add_path(buffer: WakeBuffer, path: Path, form: Form | None = None, source: str | None = None) -> Tally:
    """Store a file, or the .txt and .md files of a folder.

    Args:
        buffer (`WakeBuffer`):
            Where records go.
        path (`Path`):
            A .jsonl, .txt or .md file, a file of any name with a `form`, or a folder.
        form (`str`, *optional*):
            `jsonl`, `lines` or `document`; told by the file's name if left out.
        source (`str`, *optional*):
            Where records come from that do not say so themselves; the file's name if left out.

    Returns:
        `Tally`: what became of it. What cannot be taken is counted and explained, and the rest goes on.

    Raises:
        `ValueError`: if there is no such file or folder, or its form cannot be told.
    """
    if path.is_dir():
        return _add_documents(buffer, path, source)
    form = form or form_of(path)
    if form == "document":
        return buffer.add([_document(path, source or path.name)])
    try:
        with path.open("rb", buffering=0) as file:
            return add_stream(buffer, file.fileno(), str(path), form, source or path.name)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Check the path and its permissions.") from None


def form_of(path: Path) -> Form:
    """Tell a file's form by its name.

    Raises:
        `ValueError`: if the name does not tell, or there is no such file.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist. Give a .jsonl, .txt or .md file, a folder, or - for standard input.")
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", *TEXT_SUFFIXES):
        raise ValueError(f"{path} is no .jsonl, .txt or .md file. Say what it holds by --form {', '.join(READERS)}.")
    return "jsonl" if suffix == ".jsonl" else "document"


def add_stream(buffer: WakeBuffer, descriptor: int, name: str, form: Form, source: str) -> Tally:
    """Store what a file descriptor gives until its end: what has been read at once is stored at once.

    Args:
        buffer (`WakeBuffer`):
            Where records go.
        descriptor (`int`):
            Of a file, a pipe or a terminal.
        name (`str`):
            For messages.
        form (`str`):
            `jsonl`, `lines` or `document`.
        source (`str`):
            Of records that name none.
    """
    if form == "document":
        return buffer.add([_whole(descriptor, name, source)])
    lines, tally = Lines(name, source, READERS[form]), Tally()
    while piece := os.read(descriptor, PIECE):
        tally += buffer.add(list(lines.feed(piece)))
    tally += buffer.add(list(lines.finish()))
    return tally


def follow(
    buffer: WakeBuffer,
    path: Path,
    form: Form | None = None,
    source: str | None = None,
    poll: float = 0.5,
    idle: float | None = None,
) -> Iterator[Tally]:
    """Store the lines of a growing file as they come, and yield what became of each batch.

    The place in the file is stored with each batch. Called again, also after a kill, it goes on behind the last line
    that was stored: none is lost, none comes twice. A file that was replaced or cut short is read from its beginning.
    A line counts when its end has been written.

    Args:
        buffer (`WakeBuffer`):
            Where records go.
        path (`Path`):
            The file.
        form (`str`, *optional*):
            `jsonl` or `lines`; if left out, `jsonl` for a .jsonl file, else `lines`.
        source (`str`, *optional*):
            Of records that name none; the file's name if left out.
        poll (`float`, *optional*, defaults to `0.5`):
            Seconds between two looks at a file that does not grow.
        idle (`float`, *optional*):
            Seconds without growth after which to end; if left out, never.

    Raises:
        `ValueError`: if the file cannot be read.
    """
    read = READERS[form or ("jsonl" if path.suffix.lower() == ".jsonl" else "lines")]
    quiet = 0.0
    while idle is None or quiet <= idle:
        try:
            with path.open("rb", buffering=0) as file:
                for tally in _grown(buffer, file.fileno(), path, source or path.name, read):
                    quiet = 0.0
                    yield tally
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}. Check the path and its permissions.") from None
        time.sleep(poll)
        quiet += poll


def _grown(buffer: WakeBuffer, descriptor: int, path: Path, source: str, read: Read) -> Iterator[Tally]:
    """Store the whole lines behind the last one that was stored."""
    status, name = os.fstat(descriptor), str(path.resolve())
    file = f"{status.st_dev}:{status.st_ino}"
    known = buffer.position(name)
    is_same = known is not None and known.file == file and known.offset <= status.st_size
    lines = Lines(str(path), source, read, known.offset if known and is_same else 0)
    os.lseek(descriptor, lines.offset, os.SEEK_SET)
    while piece := os.read(descriptor, PIECE):
        before = lines.offset
        heard = list(lines.feed(piece))
        if lines.offset > before:
            yield buffer.add(heard, Position(name, file, lines.offset))


def _add_documents(buffer: WakeBuffer, folder: Path, source: str | None) -> Tally:
    tally, batch, size = Tally(), [], 0
    for path in text_files(folder):
        batch.append(_document(path, source or path.relative_to(folder).as_posix()))
        size += path.stat().st_size
        if size >= PIECE:
            tally += buffer.add(batch)
            batch, size = [], 0
    tally += buffer.add(batch)
    return tally


def _document(path: Path, source: str) -> WakeRecord | Rejection:
    try:
        with path.open("rb") as file:
            return _whole(file.fileno(), str(path), source)
    except OSError as error:
        return rejection(str(path), "unreadable", f"cannot be read: {error.strerror}. Check its permissions.")


def _whole(descriptor: int, name: str, source: str) -> WakeRecord | Rejection:
    """Read all of a text, or give up where it is longer than a record may be."""
    text = bytearray()
    while piece := os.read(descriptor, PIECE):
        text += piece
        if len(text) > MOST_BYTES:
            return too_long(name)
    return record_of_text(name, bytes(text), source)
