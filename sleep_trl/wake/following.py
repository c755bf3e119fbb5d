"""Follows a growing file, also when it is rotated: renamed, copied and truncated, or removed and made anew."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from ..data.files import source_of
from .buffer import WakeBuffer
from .reading import BLOCK, READERS, Form, Lines, Read
from .records import Position, Tally

HEAD, TAIL = 256, 1024  # bytes at the beginning of a file, and before the place read so far, by which it is recognized

logger = logging.getLogger(__name__)


def follow(
    buffer: WakeBuffer,
    path: Path,
    form: Form | None = None,
    source: str | None = None,
    poll: float = 0.5,
    idle: float | None = None,
) -> Iterator[Tally]:
    """Store the lines of a growing file as they arrive, and yield the counts of each batch.

    The position in the file is stored with each batch. A later call, even after a kill, continues after the last stored
    line, so that no line is lost or read twice. A file that was rotated is read to its end first, if it or a copy of it
    is still in the same folder, and then the new one from its start. A line is read once its line break is written, or
    once its file was rotated.

    Args:
        buffer (`WakeBuffer`):
            Buffer to store records in.
        path (`Path`):
            File to follow. It may be missing for a while, but not when this is called.
        form (`str`, *optional*):
            `jsonl` or `lines`. Default: `jsonl` for a .jsonl file, else `lines`.
        source (`str`, *optional*):
            Source of records that name none. Default: the file's path, see [`source_of`].
        poll (`float`, *optional*, defaults to `0.5`):
            Seconds between two checks of a file that does not grow.
        idle (`float`, *optional*):
            Seconds without growth after which to stop. Default: never.

    Raises:
        `ValueError`: if the file cannot be read.
    """
    read = READERS[form or ("jsonl" if path.suffix.lower() == ".jsonl" else "lines")]
    stream, quiet = _Stream(buffer, path, source or source_of(path), read), 0.0
    with _opening(path):
        stream.open()
    try:
        while True:
            with _opening(path):
                for tally in stream.new_lines():
                    quiet = 0.0
                    yield tally
            if idle is not None and quiet >= idle:
                return
            time.sleep(poll)
            quiet += poll
    finally:
        stream.close()


class _opening:
    """Context manager that turns an `OSError` into a message about the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        if isinstance(error, OSError):
            message = f"{self.path} cannot be read: {error.strerror}. Check the path and its permissions."
            raise ValueError(message) from None


class _Stream:
    """A followed file: the one that is open, and how far it was read."""

    def __init__(self, buffer: WakeBuffer, path: Path, source: str, read: Read) -> None:
        self.buffer, self.path, self.source, self.read = buffer, path, source, read
        self.name = str(path.resolve())
        self.descriptor: int | None = None
        self._begin(0)

    def open(self) -> None:
        """Open the file, and find out where to go on."""
        self.descriptor = os.open(self.path, os.O_RDONLY)
        self._begin(0)
        if (known := self.buffer.position(self.name)) is None:
            return
        if _is_same(self.descriptor, known):
            self._begin(known.offset)
        elif (
            rotated := self._find(lambda file: _is_same(file, known), lambda file: _is_copy(file, known))
        ) is not None:
            os.close(self.descriptor)
            self.descriptor = rotated  # it is read to its end, and then the file at the path
            self._begin(known.offset)
        elif known.offset:
            logger.warning(
                "%s was replaced while it was not followed: lines at the end of the file before are not read, unless "
                "all were.",
                self.path,
            )

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def new_lines(self) -> Iterator[Tally]:
        """Store the lines that were written since, also those of files that took the place of the open one."""
        while True:
            if self.descriptor is None:
                try:
                    self.descriptor = os.open(self.path, os.O_RDONLY)
                except FileNotFoundError:
                    return  # not made anew yet
                self._begin(0)
            if self._was_truncated():
                yield from self._read_copy()
                self._begin(0)
            yield from self._read(self.descriptor)
            if not self._is_replaced():
                return
            yield from self._read(self.descriptor, is_whole=True)  # what was written before it was moved
            between = self._between(self.descriptor)
            self.close()
            for path in between:
                self.descriptor = os.open(path, os.O_RDONLY)
                self._begin(0)
                yield from self._read(self.descriptor, is_whole=True)
                self.close()

    def _begin(self, offset: int) -> None:
        """Go on at an offset of the open file."""
        self.lines, self.consumed = Lines(str(self.path), self.source, self.read, offset), offset
        self.tail = b""
        if self.descriptor is not None and offset:
            self.tail = os.pread(self.descriptor, min(TAIL, offset), max(0, offset - TAIL))

    def _read(self, descriptor: int, is_whole: bool = False) -> Iterator[Tally]:
        """Store the lines after what was read so far; if the file is whole, also a last line without a line break."""
        while block := os.pread(descriptor, BLOCK, self.consumed):
            before = self.lines.offset
            batch = list(self.lines.feed(block))
            self.consumed += len(block)
            self.tail = (self.tail + block)[-TAIL:]
            if self.lines.offset > before:
                yield self.buffer.add(
                    batch, Position(self.name, _identity(descriptor, self.lines.offset), self.lines.offset)
                )
        if is_whole and (batch := list(self.lines.finish())):
            yield self.buffer.add(batch, Position(self.name, _identity(descriptor, self.consumed), self.consumed))

    def _is_replaced(self) -> bool:
        """Whether another file is at the path, and is written to. Until then, a program that has not opened it yet
        still writes to the one that was moved."""
        assert self.descriptor is not None
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return there.st_size > 0 and not os.path.samestat(there, os.fstat(self.descriptor))

    def _was_truncated(self) -> bool:
        """Whether the open file no longer has what was read, because it was written anew from its start."""
        assert self.descriptor is not None
        return os.fstat(self.descriptor).st_size < self.consumed or not self._has_tail(self.descriptor)

    def _has_tail(self, descriptor: int) -> bool:
        return os.pread(descriptor, len(self.tail), self.consumed - len(self.tail)) == self.tail

    def _read_copy(self) -> Iterator[Tally]:
        """Store the lines that were written to a truncated file before that, from its copy."""
        copy = self._find(lambda descriptor: bool(self.tail) and self._has_tail(descriptor))
        if copy is None:
            logger.warning(
                "%s was truncated, and there is no copy of it beside it: lines that were written just before are not "
                "read.",
                self.path,
            )
            return
        try:
            yield from self._read(copy, is_whole=True)
        finally:
            os.close(copy)

    def _find(self, *conditions: Callable[[int], bool]) -> int | None:
        """Open the newest file beside the followed one, of a similar name, that meets the first of these conditions, or
        else the next one."""
        newest_first = sorted(self._beside(), key=lambda path: -path.stat().st_mtime)
        for is_wanted, path in product(conditions, newest_first):
            descriptor = os.open(path, os.O_RDONLY)
            if is_wanted(descriptor):
                return descriptor
            os.close(descriptor)
        return None

    def _between(self, descriptor: int) -> list[Path]:
        """Return the files that were written after an open one, and moved like it before they were seen at the path, in
        this order. Their names differ from its name in numbers only."""
        moved, others = os.fstat(descriptor), self._beside()
        name = next((_without_numbers(path) for path in others if os.path.samestat(path.stat(), moved)), None)
        newer = [
            (path.stat().st_mtime_ns, path)
            for path in others
            if _without_numbers(path) == name and path.stat().st_mtime_ns > moved.st_mtime_ns
        ]
        return [path for _, path in sorted(newer)]

    def _beside(self) -> list[Path]:
        """Return the files beside the followed one whose names begin alike."""
        return [
            path
            for path in self.path.parent.iterdir()
            if path.name.startswith(self.path.stem) and path != self.path and path.is_file()
        ]


def _without_numbers(path: Path) -> str:
    return re.sub(r"\d+", "#", path.name)


def _identity(descriptor: int, offset: int) -> str:
    """Return what a file is recognized by: device, inode, and a hash of its beginning, since inodes are used again."""
    status = os.fstat(descriptor)
    head = os.pread(descriptor, min(HEAD, offset), 0)
    return f"{status.st_dev}:{status.st_ino}:{hashlib.sha256(head).hexdigest()[:16]}"


def _is_same(descriptor: int, known: Position) -> bool:
    """Whether a file is the one that was read up to a position. Positions of 0.1 have no hash."""
    if known.offset > os.fstat(descriptor).st_size:
        return False
    found = _identity(descriptor, known.offset)
    return known.file in (found, found.rpartition(":")[0])


def _is_copy(descriptor: int, known: Position) -> bool:
    """Whether a file begins like the one that was read up to a position, as a copy does."""
    if known.offset > os.fstat(descriptor).st_size or known.file.count(":") < 2:
        return False
    return known.file.rpartition(":")[2] == _identity(descriptor, known.offset).rpartition(":")[2]
