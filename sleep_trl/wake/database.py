"""A wake buffer's file: its tables, how it is opened, and how it is written.

SQLite in WAL mode: the standard library's, one file, several readers beside a writer, and a batch that has been
acknowledged survives a crash of the process and of the machine.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

APPLICATION = 0x534C5031  # in the file's header: tells a wake buffer from any other SQLite file
VERSION = 1
OLDEST = (3, 37, 0)  # of SQLite: has tables that hold to their types
WAIT = 30.0  # seconds that a writer waits for another one

PRAGMAS = """
PRAGMA synchronous = FULL;        -- a commit returns when the disk has it
PRAGMA secure_delete = ON;        -- what is forgotten is overwritten with zeros
PRAGMA recursive_triggers = ON;
"""

# `hearings` says from which sources a text was heard; the first of them stands in the record too.
# The triggers keep the buffer append-only: nothing about a record changes but its state, how often it was heard, and,
# when it is forgotten, its text, which goes.
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

CREATE TRIGGER records_stay_the_same BEFORE UPDATE OF id, time, source, sha256, text, questions ON records
WHEN new.state != 'forgotten' OR new.text IS NOT NULL
    OR (new.id, new.time, new.source, new.sha256) != (old.id, old.time, old.source, old.sha256)
BEGIN SELECT RAISE(ABORT, 'a wake buffer is append-only'); END;
"""


def open_database(path: Path) -> sqlite3.Connection:
    """Open a buffer's file, and make it if it is missing.

    Raises:
        `ValueError`: if the file is no wake buffer or of another version, or cannot be made.
    """
    if sqlite3.sqlite_version_info < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise ValueError(f"A wake buffer needs SQLite {needed}; this Python has {sqlite3.sqlite_version}. Use another.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # what is heard is its owner's to read
        database = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
        _prepare(database, path)
    except (OSError, sqlite3.OperationalError) as error:
        raise ValueError(
            f"The wake buffer {path} cannot be opened ({error}). Give a path in a folder that can be written to."
        ) from None
    except sqlite3.DatabaseError:
        raise ValueError(f"{path} is no wake buffer. Give another path.") from None
    return database


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    """Make the tables of an empty file, and check those of another."""
    if not _is_empty(database) and database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
        raise sqlite3.DatabaseError
    _keep_log(database)
    database.executescript(PRAGMAS)
    if _is_empty(database):
        with transaction(database, path):
            for statement in _statements(TABLES) if _is_empty(database) else ():  # another process may be faster
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.execute(f"PRAGMA user_version = {VERSION}")
    if (version := database.execute("PRAGMA user_version").fetchone()[0]) != VERSION:
        raise ValueError(f"{path} is a wake buffer of version {version}; this version of sleep-trl reads {VERSION}.")


def _keep_log(database: sqlite3.Connection) -> None:
    """Switch to WAL mode. SQLite does not wait by itself where two processes make one file at the same time."""
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
    """Cut a script into statements; `executescript` would end the transaction around it."""
    statement = ""
    for line in script.splitlines():
        statement += f"{line}\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def transaction(database: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Do all of it or nothing. It is on the disk when this returns.

    Raises:
        `RuntimeError`: if the disk is full or may not be written to; nothing was changed.
    """
    try:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("COMMIT")
    except sqlite3.OperationalError as error:
        _roll_back(database)
        raise RuntimeError(
            f"The wake buffer {path} could not be written ({error}); this batch was not stored, all before it was. "
            f"Make room or correct the permissions, and give the same input again: what is there counts as duplicate."
        ) from None
    except BaseException:
        _roll_back(database)
        raise


def _roll_back(database: sqlite3.Connection) -> None:
    if database.in_transaction:
        database.execute("ROLLBACK")
