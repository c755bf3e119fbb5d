"""SHA-256 of the files of a run, in `checksums.sha256` of each folder, as `sha256sum --check` reads them.

Everything that a later step reads is recorded when it is written and checked when it is read. While a file is replaced,
its old and its new hash are both recorded, so that a kill at any moment leaves no file that seems damaged. Folders of
version 0.1 have no such file and are read without a check.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from .permissions import follow_umask

NAME = "checksums.sha256"
WEIGHTS = ".safetensors"

logger = logging.getLogger(__name__)

Checksums = Mapping[str, tuple[str, ...]]
"""For each file, relative to the folder, the hashes of what it may hold."""


class Damaged(ValueError):
    """A file is not what was written."""


def replace(partial: Path, path: Path, is_checked: bool = False) -> None:
    """Put a file that was written next to another in its place. Both are on disk when this returns.

    Args:
        partial (`Path`):
            What was written.
        path (`Path`):
            The file to replace, in the same folder.
        is_checked (`bool`, *optional*, defaults to `False`):
            Whether to record its hash. If one was recorded before, it always is.
    """
    if path.suffix == WEIGHTS:
        follow_umask(partial)
    _sync(partial)
    recorded = _read(path.parent)
    if is_checked or path.name in recorded:
        before, new = recorded.get(path.name, ()), _hash(partial)
        _write(path.parent, {**recorded, path.name: tuple(dict.fromkeys((*before, new)))})
        partial.replace(path)
        if before:
            _write(path.parent, {**recorded, path.name: (new,)})
    else:
        partial.replace(path)
    _sync(path.parent)


def record_folder(folder: Path) -> None:
    """Bring all files of a folder to disk, and record their hashes."""
    paths = sorted(path for path in folder.rglob("*") if path.name != NAME)
    for path in paths:
        if path.suffix == WEIGHTS:
            follow_umask(path)
        _sync(path)
    _write(folder, {path.relative_to(folder).as_posix(): (_hash(path),) for path in paths if path.is_file()})
    _sync(folder)
    _sync(folder.parent)


def remove(path: Path) -> None:
    """Remove a file, if it exists, and its hash."""
    forget([path])
    path.unlink(missing_ok=True)


def forget(paths: Iterable[Path]) -> None:
    """Remove the hashes of files, and of all that folders hold, before they are removed. After a kill in between, no
    file seems to be missing."""
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, removed in names.items():
        recorded = _read(folder)
        left = {name: hashes for name, hashes in recorded.items() if name.partition("/")[0] not in removed}
        if left != recorded:
            _write(folder, left)


def check(path: Path, content: bytes | None = None) -> None:
    """Raise [`Damaged`] if a file is not what was written, as far as its hash was recorded.

    Args:
        path (`Path`):
            The file.
        content (`bytes`, *optional*):
            What was read from it.
    """
    expected = _read(path.parent).get(path.name)
    if expected and path.is_file() and (_hash(path) if content is None else _hash_of(content)) not in expected:
        raise Damaged(_message(path, path.parent))


def check_folder(folder: Path) -> None:
    """Raise [`Damaged`] if a file of a folder is missing or not what was written, as far as its hash was recorded."""
    for name, expected in _read(folder).items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{path} is missing. Restore it from a copy.")
        if _hash(path) not in expected:
            raise Damaged(_message(path, folder))


@cache
def mention_unchecked(run: Path) -> None:
    """Say once if a run has no hashes."""
    if not (run / NAME).is_file():
        logger.warning("%s has no %s, so damage to its files would not be noticed.", run, NAME)


def _message(path: Path, folder: Path) -> str:
    return (
        f"{path} is damaged or was changed: its SHA-256 is not that in {folder / NAME}. Restore it from a copy, or "
        f"start over in another folder. If you changed it yourself, remove its line there."
    )


def _read(folder: Path) -> Checksums:
    try:
        lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise Damaged(f"{folder / NAME} is damaged. Restore it from a copy, or remove it.") from None
    found: dict[str, tuple[str, ...]] = {}
    for line in lines:
        hash, _, name = line.partition("  ")
        found[name] = (*found.get(name, ()), hash)
    return found


def _write(folder: Path, checksums: Checksums) -> None:
    lines = [f"{hash}  {name}\n" for name, hashes in sorted(checksums.items()) for hash in hashes]
    partial = folder / f"{NAME}.partial"
    partial.write_text("".join(lines), encoding="utf-8")
    _sync(partial)
    partial.replace(folder / NAME)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
