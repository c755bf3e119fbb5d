import json
import sqlite3
from pathlib import Path

import pytest

from sleep_trl.data.documents import MemoryText, Question
from sleep_trl.runs.ledger import LedgerEntry, Source, read_ledger, write_ledger
from sleep_trl.wake import Tally, WakeBuffer, WakeRecord, record_of_line

TIME = "2026-07-10T08:00:00+00:00"


def record(text: str, source: str = "contract-17.pdf", id: str = "") -> WakeRecord:
    memory = MemoryText(id or f"id of {text}", source, text)
    return WakeRecord(memory, TIME)


@pytest.fixture
def buffer(tmp_path):
    with WakeBuffer(tmp_path / "chain" / "wake.db") as opened:
        yield opened


def test_columns_for_rewards_are_kept_with_the_text(buffer) -> None:
    line = json.dumps({"id": "a", "text": "one", "time": TIME, "level": 3, "tags": ["x", None]}).encode()
    asked = json.dumps({"id": "b", "text": "two", "questions": [{"question": "Who?", "answers": ["Tolu"]}]}).encode()
    buffer.add([record_of_line("line 1", line, "s"), record_of_line("line 2", asked, "s")])
    first, second = buffer.memories("new")
    assert first == MemoryText("a", "s", "one", (), {"level": 3, "tags": ["x", None]})
    assert second == MemoryText("b", "s", "two", (Question("Who?", ("Tolu",)),))
    buffer.forget("s")
    assert b"tags" not in buffer.path.read_bytes()


def states(buffer: WakeBuffer) -> dict[str, tuple[str, str]]:
    return {found.id: (found.state, found.detail) for found in buffer.records()}


def entry(number: int, *memories: MemoryText, dropped: str | None = None) -> LedgerEntry:
    return LedgerEntry(
        id=f"entry-{number:03}",
        date=TIME,
        expert=number - 1,
        level=1,
        fingerprint="",
        base="",
        parents=(),
        sources=tuple(Source(id=m.id, source=m.source, sha256=m.sha256) for m in memories),
        metrics={},
        dropped=dropped,
    )


def test_a_record_is_read_as_it_was_stored(buffer):
    questions = [{"question": "Who?", "answers": ["Tolu", "tolu"], "form": "plain"}]
    row = {
        "id": "a",
        "source": "letter",
        "time": "2026-07-10T10:00:00+02:00",
        "text": "ü\u2028\n",
        "questions": questions,
    }
    assert buffer.add([record_of_line("x", json.dumps(row).encode(), "file")]).added == 1
    (found,) = buffer.records()
    assert (found.id, found.source, found.time, found.state, found.copies) == ("a", "letter", TIME, "new", 1)
    (memory,) = buffer.memories()
    assert memory == MemoryText("a", "letter", "ü\u2028\n", (Question("Who?", ("Tolu", "tolu")),))
    assert memory.sha256 == found.sha256


def test_a_repeated_text_is_counted_and_not_stored_twice(buffer):
    first = buffer.add([record("a"), record("b"), record("a", "contract-18.pdf", "other id")])
    assert (first.added, first.duplicates) == (2, 1)
    assert buffer.add([record("a")]).duplicates == 1
    assert [(found.id, found.copies) for found in buffer.records()] == [("id of a", 3), ("id of b", 1)]
    assert [found.id for found in buffer.records(source="contract-18.pdf")] == ["id of a"]


def test_an_id_of_another_text_is_rejected_and_the_rest_of_the_batch_is_stored(buffer):
    tally = buffer.add([record("a", id="1"), record("b", id="1"), record("c", id="2")])
    assert (tally.added, dict(tally.rejected)) == (2, {"id taken": 1})
    assert "'1' already belongs to another text" in tally.reasons[0]
    assert buffer.counts() == {"new": 2, "consolidated": 0, "failed": 0, "forgotten": 0, "rejected": 1}
    assert [row["kind"] for row in buffer.rejections()] == ["id taken"]


def test_a_forgotten_text_is_erased_from_the_file_and_not_stored_again(buffer):
    secret = "the password is swordfish"
    again = record("also from else", "else")
    buffer.add([record(secret, id="1"), record("kept", "else"), record("also from else"), again])
    assert buffer.forget("contract-17.pdf") == 2
    assert buffer.forget("contract-17.pdf") == 0
    assert states(buffer) == {
        "1": ("forgotten", ""),
        "id of kept": ("new", ""),
        "id of also from else": ("forgotten", ""),
    }
    for path in buffer.path.parent.iterdir():
        assert secret.encode() not in path.read_bytes(), path
    assert [m.text for m in buffer.memories()] == ["kept"]
    assert buffer.add([record(secret)]) == Tally(forgotten=1)
    with pytest.raises(ValueError, match=r"There is no record from 'contract-18\.pdf'"):
        buffer.forget("contract-18.pdf")


def test_the_buffer_is_append_only(buffer):
    buffer.add([record("a")])
    database = sqlite3.connect(buffer.path)
    for statement in (
        "DELETE FROM records",
        "UPDATE records SET text = 'b'",
        "UPDATE records SET source = 'b'",
        "UPDATE records SET text = NULL",
        "REPLACE INTO records (id, time, source, sha256, text) SELECT id, time, source, sha256, 'b' FROM records",
    ):
        database.execute("PRAGMA recursive_triggers = ON")
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute(statement)
    database.close()
    assert [m.text for m in buffer.memories()] == ["a"]


def test_states_follow_the_ledger_of_the_newest_run(buffer, tmp_path):
    """The night writes only its ledger. Opening the buffer updates the states, any number of times."""
    texts = [record(text).memory for text in "abc"]
    buffer.add([WakeRecord(memory, TIME) for memory in texts])
    buffer.fail(["id of b"], "the teacher wrote nothing usable about it")

    def after(run: str, *entries: LedgerEntry) -> list[str]:
        write_ledger(tmp_path / run / "ledger.jsonl", list(entries))
        for _ in range(2):
            with WakeBuffer(buffer.path) as again:
                found = [" ".join(state).strip() for state in states(again).values()]
        return found

    buffer.register(tmp_path / "night1")
    assert [state for state, _ in states(buffer).values()] == ["new", "failed", "new"]
    first = entry(1, *texts[:2])
    assert after("night1", first) == ["consolidated entry-001", "consolidated entry-001", "new"]
    buffer.register(tmp_path / "night2")  # started, but killed before its ledger was written
    assert after("night1", first)[0] == "consolidated entry-001"
    second = entry(2, texts[2])
    assert after("night2", first, second)[2] == "consolidated entry-002"
    assert after("night2", entry(1, *texts[:2], dropped=TIME), second) == ["new", "new", "consolidated entry-002"]
    buffer.forget("contract-17.pdf")
    held = ["forgotten entry-001", "forgotten entry-001", "forgotten entry-002"]
    assert after("night2", first, second) == held, "the entry that still holds it is not shown"
    assert after("night2", entry(1, *texts[:2], dropped=TIME), second) == ["forgotten", "forgotten", held[2]]


@pytest.mark.parametrize("damage", ["empty", "cut", "another", "missing"])
def test_a_damaged_or_missing_ledger_sends_nothing_back_to_new(buffer, tmp_path, caplog, damage):
    texts = [record(text).memory for text in "abc"]
    buffer.add([WakeRecord(memory, TIME) for memory in texts])
    ledgers = [tmp_path / name / "ledger.jsonl" for name in ("night1", "night2")]
    for number, path in enumerate(ledgers, 1):
        buffer.register(path.parent)
        write_ledger(path, [entry(n + 1, texts[n]) for n in range(number)])
    buffer.settle()
    before = states(buffer)
    assert [state for state, _ in before.values()] == ["consolidated", "consolidated", "new"]
    if damage == "missing":
        ledgers[1].parent.rename(tmp_path / "moved")
    else:
        ledgers[1].write_text({"empty": "", "cut": ledgers[1].read_text()[:-30], "another": '{"id": 3}\n'}[damage])
    with WakeBuffer(buffer.path) as again:
        assert again.add([record("d")]).added == 1
        assert states(again) == before | {"id of d": ("new", "")}
    if damage != "missing":
        assert f"{ledgers[1]}" in caplog.text and "not updated" in caplog.text


def flip(path: Path, text: str) -> None:
    """Flip a bit of a text in a buffer's file, as a disk may do."""
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    content[content.index(text.encode())] ^= 1
    path.write_bytes(content)


def test_a_damaged_text_is_not_learned_until_it_arrives_again(tmp_path, caplog):
    path = tmp_path / "wake.db"
    with WakeBuffer(path) as buffer:
        buffer.add([record("the cat of Mira is called Tolu", id="1"), record("it eats hats")])
    flip(path, "the cat of Mira is called Tolu")
    with WakeBuffer(path) as buffer:
        assert [memory.text for memory in buffer.memories()] == ["it eats hats"]
        assert str(path) in caplog.text and "damaged" in caplog.text and "Tolu" not in caplog.text
        state, detail = states(buffer)["1"]
        assert state == "failed" and "Add the text again" in detail
        assert buffer.add([record("the cat of Mira is called Tolu")]).duplicates == 1
        assert [memory.text for memory in buffer.memories()] == ["the cat of Mira is called Tolu", "it eats hats"]
    with pytest.raises(sqlite3.IntegrityError, match="append-only"), sqlite3.connect(path) as database:
        database.execute("UPDATE records SET text = 'b'")


def test_only_its_owner_can_read_a_buffer(buffer):
    buffer.add([record("a")])
    assert {path.stat().st_mode & 0o777 for path in buffer.path.parent.iterdir()} == {0o600}


def test_buffer_and_runs_can_be_moved_together(buffer, tmp_path):
    memory = record("a").memory
    buffer.add([record("a")])
    run = buffer.path.parent / "night1"
    buffer.register(run)
    write_ledger(run / "ledger.jsonl", [entry(1, memory)])
    buffer.close()
    (tmp_path / "chain").rename(tmp_path / "moved")
    with WakeBuffer(tmp_path / "moved" / "wake.db") as moved:
        assert states(moved) == {"id of a": ("consolidated", "entry-001")}
        assert moved.run() == tmp_path / "moved" / "night1"


def test_a_ledger_without_the_field_dropped_is_read(tmp_path):
    row = entry(1).model_dump(mode="json")
    del row["dropped"]
    (tmp_path / "ledger.jsonl").write_text(json.dumps(row) + "\n")
    assert read_ledger(tmp_path / "ledger.jsonl") == [entry(1)]


def foreign_database(path: Path) -> None:
    sqlite3.connect(path).execute("CREATE TABLE t (x)")


def newer_buffer(path: Path) -> None:
    WakeBuffer(path).close()
    sqlite3.connect(path).execute("PRAGMA user_version = 2")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("not a database, but long enough to be checked" * 20), "is not a wake buffer"),
        (foreign_database, "is not a wake buffer"),
        (newer_buffer, "of version 2"),
        (lambda path: path.mkdir(), "cannot be opened"),
    ],
)
def test_another_file_is_refused_and_left_unchanged(tmp_path, make, message):
    path = tmp_path / "wake.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ValueError, match=message):
        WakeBuffer(path)
    assert before is None or path.read_bytes() == before


def test_a_full_disk_loses_no_acknowledged_record(buffer):
    buffer.add([record("a")])
    pages = buffer._database.execute("PRAGMA page_count").fetchone()[0]
    buffer._database.execute(f"PRAGMA max_page_count = {pages + 4}")  # SQLite's own limit gives the same error
    with pytest.raises(RuntimeError, match=r"full.*was not stored; earlier ones were"):
        buffer.add([record("b"), record("c" * 100_000)])
    assert [m.text for m in buffer.memories()] == ["a"]
    buffer._database.execute("PRAGMA max_page_count = 1000000")
    assert buffer.add([record("a"), record("b")]).added == 1


def test_forgetting_says_whether_the_log_still_holds_the_text(tmp_path):
    path, secret = tmp_path / "wake.db", "the swordfish swims at noon"
    log = path.with_name("wake.db-wal")
    with WakeBuffer(path) as buffer:
        buffer.add([record_of_line("x", json.dumps({"text": secret}).encode(), "letters")])
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM records").fetchone()  # holds on to the state before
        buffer._database.execute("PRAGMA busy_timeout = 50")
        assert buffer.forget("letters") == 1
        assert not buffer.empty_log() and secret.encode() in log.read_bytes()
        reader.execute("COMMIT")
        assert buffer.empty_log() and not log.read_bytes()
        reader.close()
        assert secret.encode() not in path.read_bytes()
