"""The wake buffer: where records wait for a night. Durable, append-only and crash-safe."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..data.documents import MemoryText, Question
from ..runs.folder import RunFolder
from ..runs.ledger import LedgerEntry, active_entries, read_ledger
from .database import open_database, replace_text, transaction
from .records import STATES, Position, RecordInfo, Rejection, State, Tally, WakeRecord, now, rejection

logger = logging.getLogger(__name__)

DAMAGED = "its text in the buffer's file is damaged and no longer fits its SHA-256. Add the text again, or forget it"
COLUMNS = "id, time, source, sha256, copies, state, detail"
FIELDS = len(COLUMNS.split(","))


class WakeBuffer:
    """A wake buffer in one SQLite file.

    States are derived: a record is consolidated if the ledger of the newest run passed to `register` names its hash in
    an active entry. So a night writes only its ledger, and a kill leaves nothing to repair (ours).

    Args:
        path (`Path`):
            The file, created if it is missing.

    Raises:
        `ValueError`: if the file is not a wake buffer or cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = open_database(path)
        self.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    # -- ingesting ------------------------------------------------------------------------------------------------

    def add(self, batch: Sequence[WakeRecord | Rejection], position: Position | None = None) -> Tally:
        """Store a batch atomically; it is on disk when this returns.

        Args:
            batch (`Sequence[WakeRecord | Rejection]`):
                Records, and rejected input, of which the reason is stored and not the text.
            position (`Position`, *optional*):
                How far the stream has been read with this batch. It is stored with the batch, so that reading resumes
                after the last record.

        Returns:
            `Tally`: counts of added, duplicate, forgotten and rejected items. A record whose id belongs to another text
            is rejected. A text that failed is a duplicate and pending again; if the stored one is damaged, it is
            replaced.
        """
        tally = Tally()
        with transaction(self._database, self.path):
            for item in batch:
                if isinstance(item, Rejection):
                    self._reject(item, tally)
                else:
                    self._store(item, tally)
            if position:
                self._database.execute(
                    "INSERT INTO streams VALUES (?, ?, ?) "
                    "ON CONFLICT (path) DO UPDATE SET file = excluded.file, offset = excluded.offset",
                    (position.path, position.file, position.offset),
                )
        return tally

    def _store(self, record: WakeRecord, tally: Tally) -> None:
        memory, execute = record.memory, self._database.execute
        stored = execute(
            "INSERT INTO records (id, time, source, sha256, text, questions) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT DO NOTHING RETURNING number",
            (memory.id, record.time, memory.source, memory.sha256, memory.text, _pack(memory)),
        ).fetchone()
        if stored:
            number, tally.added = stored[0], tally.added + 1
        elif found := execute(
            "SELECT number, state, CAST(text AS BLOB) FROM records WHERE sha256 = ?", (memory.sha256,)
        ).fetchone():
            number, state, text = found
            if text is not None and _sha256(text) != memory.sha256:
                replace_text(self._database, number, memory.text, _pack(memory))
            execute("UPDATE records SET copies = copies + 1 WHERE number = ?", (number,))
            execute("UPDATE records SET state = 'new', detail = '' WHERE number = ? AND state = 'failed'", (number,))
            tally.duplicates += state != "forgotten"
            tally.forgotten += state == "forgotten"
        else:
            reason = f"the id {memory.id!r} already belongs to another text. Make ids unique, or leave them out."
            self._reject(rejection(memory.source, "id taken", reason), tally)
            return
        execute("INSERT OR IGNORE INTO hearings VALUES (?, ?)", (memory.source, number))

    def _reject(self, rejected: Rejection, tally: Tally) -> None:
        tally += Tally(rejected=Counter([rejected.kind]), reasons=[rejected.reason])
        self._database.execute(
            "INSERT INTO rejections (time, kind, reason) VALUES (?, ?, ?)", (now(), rejected.kind, rejected.reason)
        )

    def position(self, path: str) -> Position | None:
        """Return how far a stream has been read."""
        row = self._database.execute("SELECT path, file, offset FROM streams WHERE path = ?", (path,)).fetchone()
        return Position(*row) if row else None

    # -- reading --------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return the number of records in each state, and of rejected items as `rejected`."""
        rows = dict(self._database.execute("SELECT state, count(*) FROM records GROUP BY state").fetchall())
        rejected = self._database.execute("SELECT count(*) FROM rejections").fetchone()[0]
        return {state: rows.get(state, 0) for state in STATES} | {"rejected": rejected}

    def records(self, state: State | None = None, source: str | None = None, excerpt: int = 0) -> Iterator[RecordInfo]:
        """Yield records in the order they arrived, without loading all of them.

        Args:
            state (`str`, *optional*):
                Only those in this state.
            source (`str`, *optional*):
                Only those that arrived from this source, the first time or again.
            excerpt (`int`, *optional*, defaults to `0`):
                Characters of the excerpts of their texts.
        """
        shown = f", CAST(substr(text, 1, {int(excerpt)}) AS BLOB)" if excerpt else ""  # it may be damaged
        query, given = f"SELECT {COLUMNS}{shown} FROM records WHERE 1", list[str]()
        if state is not None:
            query, given = query + " AND state = ?", [*given, state]
        if source is not None:
            query, given = query + " AND number IN (SELECT number FROM hearings WHERE source = ?)", [*given, source]
        for row in self._database.execute(f"{query} ORDER BY number", given):
            values, begins = row[:FIELDS], row[FIELDS:]
            yield RecordInfo(*values, *((text or b"").decode(errors="replace") for text in begins))

    def sources(self) -> list[str]:
        """Return the sources from which records arrived."""
        return [source for (source,) in self._database.execute("SELECT DISTINCT source FROM hearings")]

    def rejections(self) -> Iterator[dict[str, str]]:
        """Yield the `time`, `kind` and `reason` of each rejection."""
        for row in self._database.execute("SELECT time, kind, reason FROM rejections ORDER BY number"):
            yield dict(zip(("time", "kind", "reason"), row, strict=True))

    def memories(self, state: State = "new") -> list[MemoryText]:
        """Return the records in a state with their texts, in the order they arrived. Damaged ones are left out, with a
        warning; new ones among them are marked as failed."""
        rows = self._database.execute(
            "SELECT id, source, sha256, CAST(text AS BLOB), questions FROM records WHERE state = ? ORDER BY number",
            (state,),
        )
        found, damaged = list[MemoryText](), list[str]()
        for id, source, sha256, text, questions in rows:
            if text is not None and _sha256(text) != sha256:
                damaged.append(id)
            else:
                found.append(MemoryText(id, source, (text or b"").decode(), **_unpack(questions)))
        self._leave_out(damaged)
        return found

    def is_sound(self, record: RecordInfo) -> bool:
        """Return whether the text of a record is as it arrived. A new record that is not is marked as failed, with a
        warning."""
        query = "SELECT CAST(text AS BLOB) FROM records WHERE sha256 = ?"
        (text,) = self._database.execute(query, (record.sha256,)).fetchone()
        is_sound = text is None or _sha256(text) == record.sha256
        self._leave_out([] if is_sound else [record.id])
        return is_sound

    def _leave_out(self, damaged: Sequence[str]) -> None:
        if damaged:
            self.fail(damaged, DAMAGED)
            logger.warning(
                "%d records of %s are left out, such as %r: %s.", len(damaged), self.path, damaged[0], DAMAGED
            )

    def text(self, id: str) -> str:
        """Return a record's text, or an empty string if it was forgotten."""
        (text,) = self._database.execute("SELECT CAST(text AS BLOB) FROM records WHERE id = ?", (id,)).fetchone()
        return (text or b"").decode(errors="replace")

    # -- states ---------------------------------------------------------------------------------------------------

    def forget(self, source: str) -> int:
        """Erase the text of every record that arrived from a source, even if it also arrived from others.

        Its id, time, source and hash stay. If a forgotten text arrives again, it is counted but not stored.

        Returns:
            `int`: the number of records forgotten by this call.

        Raises:
            `ValueError`: if no record arrived from this source.
        """
        if not self._database.execute("SELECT 1 FROM hearings WHERE source = ?", (source,)).fetchone():
            raise ValueError(f"There is no record from {source!r}. See `sleep-trl wake list`.")
        with transaction(self._database, self.path):
            changed = self._database.execute(
                "UPDATE records SET state = 'forgotten', detail = '', text = NULL, questions = NULL "
                "WHERE state != 'forgotten' AND number IN (SELECT number FROM hearings WHERE source = ?)",
                (source,),
            ).rowcount
        self.empty_log()
        return changed

    def empty_log(self) -> bool:
        """Empty the write-ahead log, which holds texts that were forgotten too. Returns whether that was possible: not
        while another process reads an older state. Then the last process to close the buffer removes the log."""
        is_busy, *_ = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not is_busy

    def fail(self, ids: Iterable[str], reason: str) -> int:
        """Mark new records as failed, so that no night takes them unless they arrive again. Returns their number."""
        with transaction(self._database, self.path):
            changed = self._database.executemany(
                "UPDATE records SET state = 'failed', detail = ? WHERE id = ? AND state = 'new'",
                ((reason, id) for id in ids),
            ).rowcount
        return max(changed, 0)

    def forgotten(self) -> set[str]:
        """Return the hashes of all texts that were forgotten."""
        return {hash for (hash,) in self._database.execute("SELECT sha256 FROM records WHERE state = 'forgotten'")}

    def requeue(self, hashes: Iterable[str]) -> None:
        """Make consolidated records new again, because the night that learned them starts over."""
        with transaction(self._database, self.path):
            self._database.executemany(
                "UPDATE records SET state = 'new', detail = '' WHERE sha256 = ? AND state = 'consolidated'",
                ((hash,) for hash in hashes),
            )

    def register(self, run: Path) -> None:
        """Make a run the one whose ledger determines states, as soon as it has a ledger.

        The path is stored relative to the buffer's folder, so that both can be moved together.
        """
        folder = os.path.relpath(run.resolve(), self.path.parent.resolve())
        with transaction(self._database, self.path):
            self._database.execute("DELETE FROM runs WHERE folder = ?", (folder,))
            self._database.execute("INSERT INTO runs (folder) VALUES (?)", (folder,))

    def runs(self) -> list[Path]:
        """Return all registered runs, newest first, whether their folders still exist or not."""
        rows = self._database.execute("SELECT folder FROM runs ORDER BY number DESC")
        return [Path(os.path.normpath(self.path.parent / folder)) for (folder,) in rows]

    def run(self) -> Path | None:
        """Return the newest registered run that has a ledger."""
        return next((run for run in self.runs() if RunFolder(run).ledger.is_file()), None)

    def settle(self) -> None:
        """Update states from the ledger: records in an active entry are consolidated, those of a dropped one are new
        again. Only entries of nights count, since an entry that holds others repeats their records.

        Called whenever the buffer is opened. A record that the ledger does not name keeps its state, since a ledger
        never loses a line: its run may have been moved. Without a readable ledger nothing changes.
        """
        if (run := self.run()) is None:
            return
        try:
            entries = read_ledger(RunFolder(run).ledger)
        except (ValueError, OSError) as error:
            _warn_once(f"The states of the records in {self.path} are not updated. {error}")
            return
        self._settle(entries)

    def _settle(self, entries: Iterable[LedgerEntry]) -> None:
        nights = [entry for entry in entries if not entry.holds]
        held = {source.sha256: "" for entry in nights for source in entry.sources}
        held |= {source.sha256: entry.id for entry in active_entries(nights) for source in entry.sources}
        execute = self._database.execute
        execute("CREATE TEMP TABLE IF NOT EXISTS held (sha256 TEXT PRIMARY KEY, entry TEXT) WITHOUT ROWID")
        execute("DELETE FROM held")
        self._database.executemany("INSERT INTO held VALUES (?, ?)", held.items())
        entry = "(SELECT entry FROM held WHERE held.sha256 = records.sha256)"  # NULL if the ledger does not name it
        stale = f"state = 'consolidated' AND {entry} = ''"
        fresh = f"state != 'forgotten' AND {entry} NOT IN ('', detail)"
        kept = f"state = 'forgotten' AND {entry} != detail"
        if not execute(f"SELECT 1 FROM records WHERE ({stale}) OR ({fresh}) OR ({kept}) LIMIT 1").fetchone():
            return
        with transaction(self._database, self.path):
            execute(f"UPDATE records SET state = 'new', detail = '' WHERE {stale}")
            execute(f"UPDATE records SET state = 'consolidated', detail = {entry} WHERE {fresh}")
            execute(f"UPDATE records SET detail = {entry} WHERE {kept}")


@cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _pack(memory: MemoryText) -> str:
    """Return the questions of a record as JSON, with its columns if it has some."""
    rows = [{"question": q.question, "answers": q.answers, "form": q.form} for q in memory.questions]
    packed = {"questions": rows, "columns": memory.columns} if memory.columns else rows
    return json.dumps(packed, ensure_ascii=False) if packed else ""


def _unpack(packed: str) -> dict[str, Any]:
    found = json.loads(packed) if packed else []
    rows, columns = (found["questions"], found["columns"]) if isinstance(found, dict) else (found, {})
    questions = tuple(Question(row["question"], tuple(row["answers"]), row["form"]) for row in rows)
    return {"questions": questions, "columns": columns}
