"""The SQLite file of a wake buffer: its tables, opening it, and transactions.

In WAL mode several processes can read while one writes, and an acknowledged batch survives a crash of the process or of
the machine.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

APPLICATION = 0x534C5031  # in the file's header: distinguishes a wake buffer from other SQLite files
VERSION = 1
OLDEST = (3, 37, 0)  # of SQLite: the first with STRICT tables
WAIT = 30.0  # seconds a writer waits for another

PRAGMAS = """
PRAGMA synchronous = FULL;        -- a commit returns once it is on disk
PRAGMA secure_delete = ON;        -- forgotten text is overwritten with zeros
PRAGMA recursive_triggers = ON;
"""

# `hearings` lists the sources a text arrived from; the first is also in the record.
# The triggers keep the buffer append-only: only the state and the number of copies of a record change, and its text is
# erased when it is forgotten.
TABLES = """
CREATE TABLE records (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    id        TEXT NOT NULL UNIQUE,
    time      TEXT NOT NULL,
    source    TEXT NOT NULL,
    sha256    TEXT NOT NULL UNIQUE,
    text      TEXT,
    questions TEXT,
    copies    INTEGER NOT NULL DEFAULT 1,
    state     TEXT NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'consolidated', 'failed', 'forgotten')),
    detail    TEXT NOT NULL DEFAULT '',
    CHECK ((text IS NULL) = (state = 'forgotten'))
) STRICT;
CREATE INDEX records_by_state ON records (state, number);

CREATE TABLE hearings (
    source TEXT NOT NULL,
    number INTEGER NOT NULL REFERENCES records (number),
    PRIMARY KEY (source, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE rejections (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time   TEXT NOT NULL,
    kind   TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;

CREATE TABLE streams (
    path   TEXT PRIMARY KEY,
    file   TEXT NOT NULL,
    offset INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    folder TEXT NOT NULL UNIQUE
) STRICT;

CREATE TRIGGER records_stay BEFORE DELETE ON records
BEGIN SELECT RAISE(ABORT, 'a wake buffer is append-only'); END;
"""
STAY_THE_SAME = """
CREATE TRIGGER records_stay_the_same BEFORE UPDATE OF id, time, source, sha256, text, questions ON records
WHEN new.state != 'forgotten' OR new.text IS NOT NULL
    OR (new.id, new.time, new.source, new.sha256) != (old.id, old.time, old.source, old.sha256)
BEGIN SELECT RAISE(ABORT, 'a wake buffer is append-only'); END;
"""


def open_database(path: Path) -> sqlite3.Connection:
    """Open a buffer's file, creating it if it is missing.

    Raises:
        `ValueError`: if the file is not a wake buffer, has another version, or cannot be created.
    """
    if sqlite3.sqlite_version_info < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise ValueError(f"A wake buffer needs SQLite {needed}; this Python has {sqlite3.sqlite_version}. Update it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # readable by its owner only
        database = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
        _prepare(database, path)
    except (OSError, sqlite3.OperationalError) as error:
        raise ValueError(
            f"The wake buffer {path} cannot be opened ({error}). Give a path in a writable folder."
        ) from None
    except sqlite3.DatabaseError:
        raise ValueError(f"{path} is not a wake buffer. Give another path.") from None
    return database


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    """Create the tables of an empty file; check that any other file is a wake buffer of this version."""
    if not _is_empty(database) and database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
        raise sqlite3.DatabaseError
    _use_wal(database)
    database.executescript(PRAGMAS)
    if _is_empty(database):
        with transaction(database, path):
            tables = TABLES + STAY_THE_SAME if _is_empty(database) else ""  # another process may have been faster
            for statement in _statements(tables):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.execute(f"PRAGMA user_version = {VERSION}")
    if (version := database.execute("PRAGMA user_version").fetchone()[0]) != VERSION:
        raise ValueError(f"{path} is a wake buffer of version {version}; this version of sleep-trl reads {VERSION}.")


def _use_wal(database: sqlite3.Connection) -> None:
    """Switch to WAL mode. It is retried, because SQLite does not wait if two processes create a file at once."""
    end = time.monotonic() + WAIT
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _is_empty(database: sqlite3.Connection) -> bool:
    return database.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None


def _statements(script: str) -> Iterator[str]:
    """Split a script into statements, because `executescript` would commit the surrounding transaction."""
    statement = ""
    for line in script.splitlines():
        statement += f"{line}\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def transaction(database: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Run a block as one transaction, which is on disk when the block ends.

    Raises:
        `RuntimeError`: if the disk is full or read-only; nothing was changed.
    """
    try:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("COMMIT")
    except sqlite3.OperationalError as error:
        _roll_back(database)
        raise RuntimeError(
            f"The wake buffer {path} could not be written ({error}). This batch was not stored; earlier ones were. "
            f"Free disk space or fix the permissions, and give the same input again; stored records are duplicates."
        ) from None
    except BaseException:
        _roll_back(database)
        raise


def replace_text(database: sqlite3.Connection, number: int, text: str, questions: str) -> None:
    """Replace the damaged text of a record, within a transaction: the one change that the triggers do not allow."""
    database.execute("DROP TRIGGER records_stay_the_same")
    database.execute("UPDATE records SET text = ?, questions = ? WHERE number = ?", (text, questions, number))
    database.execute(STAY_THE_SAME)


def _roll_back(database: sqlite3.Connection) -> None:
    if database.in_transaction:
        database.execute("ROLLBACK")
