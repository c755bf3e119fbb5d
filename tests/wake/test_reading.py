import json
import os
import threading
import time
from pathlib import Path

import pytest

from sleep_trl.data.sources import read_memories
from sleep_trl.wake import (
    MAX_BYTES,
    Rejection,
    WakeBuffer,
    WakeRecord,
    add_path,
    add_stream,
    follow,
    reading,
    record_of_line,
    record_of_text,
)


@pytest.fixture
def buffer(tmp_path):
    with WakeBuffer(tmp_path / "wake.db") as opened:
        yield opened


def line(**row: object) -> bytes:
    return json.dumps(row).encode()


def texts(buffer: WakeBuffer) -> list[str]:
    return [memory.text for memory in buffer.memories()]


def rejected(content: bytes, read=record_of_line) -> Rejection:
    found = read("in.jsonl, byte 0", content, "in.jsonl")
    assert isinstance(found, Rejection), found
    return found


# -- records ---------------------------------------------------------------------------------------


def test_a_row_without_an_id_gets_one_from_its_text():
    first, second = (record_of_line(place, line(text="a"), "s") for place in ("x, byte 0", "y, byte 70"))
    assert first.memory == second.memory and first.memory.id == first.memory.sha256[:16]


def test_a_chat_becomes_a_text_with_a_line_for_each_message():
    parts = [{"type": "text", "text": "Tolu,"}, {"type": "text", "text": "of course."}]
    messages = [{"role": "user", "content": "Who is the cat?"}, {"role": "assistant", "content": parts}]
    found = record_of_line("x", line(messages=messages, id="chat-1", source="support"), "file")
    assert isinstance(found, WakeRecord)
    assert (found.memory.id, found.memory.source) == ("chat-1", "support")
    assert found.memory.text == "user: Who is the cat?\nassistant: Tolu, of course."


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"\xff\xfe", "not UTF-8", "byte 0"),
        (b"{", "not JSON", "column 2"),
        (b"[" * 200_000, "not JSON", "nested too deeply"),
        (b"9" * 5_000, "not JSON", "thousands of digits"),
        (b"[]", "not a record", "must be a JSON object, not a list"),
        (line(), "not a record", "`text` (or `messages`) is missing"),
        (line(text=" \n"), "not a record", "`text` is empty"),
        (line(text={"text": {}}), "not a record", "must be a string, not an object"),
        (b'{"text": "\\ud800"}', "not a record", "half a surrogate pair"),
        (line(text="a\0b"), "not text", "NUL"),
        (line(text="a", id=7.5), "not a record", "`id` must be a string"),
        (line(text="a", id="\x1b[2J"), "bad label", "cannot be printed"),
        (line(text="a", source="a\u202eb"), "bad label", "cannot be printed"),
        (line(text="a", source="s" * 600), "bad label", "600 characters"),
        (line(text="a", time="yesterday"), "not a record", "ISO 8601"),
        (line(text="a", time="0001-01-01T00:00:00+14:00"), "not a record", "ISO 8601"),
        (line(text="a", questions="Who?"), "not a record", "`questions` must be a list"),
        (line(text="a", messages=[]), "not a record", "both"),
        (line(messages=[]), "not a record", "must be a list"),
        (line(messages=[{"role": "user"}]), "not a record", "messages[0]"),
        (line(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "not a record", "text parts"),
        (line(messages=["hello"]), "not a record", "messages[0]"),
    ],
)
def test_a_rejection_gives_place_and_reason(content, kind, words):
    found = rejected(content)
    assert found.kind == kind and found.reason.startswith("in.jsonl, byte 0: ") and words in found.reason


def test_a_reason_contains_no_text():
    for content in (b'{"text": "swordfish"', line(text="swordfish\0"), line(text="swordfish", id=1.5)):
        assert "swordfish" not in rejected(content).reason


# -- files and folders -----------------------------------------------------------------------------


def test_memories_of_a_night_and_wake_records_are_the_same(buffer):
    path = Path(__file__).parents[2] / "examples" / "quickstart" / "memories.jsonl"
    assert add_path(buffer, path).added == 6
    assert buffer.memories() == read_memories(str(path))
    assert add_path(buffer, path).duplicates == 6


def test_a_folder_of_texts_is_stored_file_by_file(buffer, tmp_path, monkeypatch):
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("first")
    (folder / "deep" / "b.md").write_text("second")
    (folder / "c.txt").write_bytes(b"\xff")
    (folder / "d.txt").write_bytes(b"x" * (MAX_BYTES + 1))
    (folder / "e.png").write_bytes(b"\xff")
    (folder / ".git").mkdir()
    (folder / ".git" / "secret.txt").write_text("secret")
    monkeypatch.chdir(tmp_path)
    tally = add_path(buffer, Path("notes"))
    assert (tally.added, dict(tally.rejected)) == (2, {"not UTF-8": 1, "too long": 1})
    assert [(m.source, m.text) for m in buffer.memories()] == [("notes/a.txt", "first"), ("notes/deep/b.md", "second")]
    assert [reason.split(":")[0] for reason in tally.left_out] == ["notes/.git", "notes"]


def test_a_document_is_converted_and_one_that_cannot_be_is_rejected(buffer, tmp_path):
    pytest.importorskip("bs4")
    (tmp_path / "a.html").write_text("<p>The ferry sails at noon.</p>")
    assert add_path(buffer, tmp_path / "a.html").added == 1 and texts(buffer) == ["The ferry sails at noon."]
    (tmp_path / "b.pdf").write_bytes(b"x")
    assert dict(add_path(buffer, tmp_path).rejected) in ({"unreadable": 1}, {"extra not installed": 1})


def test_links_do_not_lead_out_of_a_folder(buffer, tmp_path):
    folder, secret = tmp_path / "notes", tmp_path / "secret.txt"
    folder.mkdir()
    secret.write_text("secret")
    (folder / "a.txt").write_text("first")
    (folder / "b.txt").symlink_to(secret)
    tally = add_path(buffer, folder)
    assert tally.added == 1 and texts(buffer) == ["first"]
    assert [reason for reason in tally.left_out if "b.txt: a link that leads out" in reason]


def test_an_unprintable_name_is_rejected_with_a_printable_reason(buffer, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (Path(os.fsdecode(bytes(folder) + b"/\xff\x1b.txt"))).write_text("text")
    (reason,) = add_path(buffer, folder).reasons
    assert reason.isprintable() and "notes/\\xdcff\\x1b.txt: `source` contains" in reason


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent.jsonl", "does not exist"), ("data.csv", "--form"), ("empty", "has no documents")],
)
def test_a_path_that_cannot_be_read_is_refused(buffer, tmp_path, name, message):
    (tmp_path / "data.csv").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        add_path(buffer, tmp_path / name)


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 7, 1000])
def test_lines_are_complete_wherever_blocks_end(buffer, tmp_path, monkeypatch, block):
    monkeypatch.setattr(reading, "BLOCK", block)
    path = tmp_path / "in.txt"
    path.write_bytes("erste Zeile\r\n\n  \nzweite: ü\u2028\nno newline".encode())
    with path.open("rb") as file:
        tally = add_stream(buffer, file.fileno(), "in.txt", "lines", "log")
    assert tally.added == 3 and texts(buffer) == ["erste Zeile", "zweite: ü\u2028", "no newline"]


def test_a_line_that_is_too_long_is_skipped_without_being_kept(buffer, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 100)
    monkeypatch.setattr(reading, "BLOCK", 30)
    (tmp_path / "in.txt").write_bytes(b"a\n" + b"x" * 1_000 + b"\nb\n" + b"y" * 100 + b"\n")
    tally = add_path(buffer, tmp_path / "in.txt", "lines")
    assert (tally.added, dict(tally.rejected)) == (3, {"too long": 1})
    assert tally.reasons[0].endswith("in.txt, line 2: longer than 8 MiB. Split it.")
    assert texts(buffer) == ["a", "b", "y" * 100]


def test_a_pipe_is_stored_as_it_is_read(buffer):
    """A block is stored at once, while the other end is still open."""
    out, into = os.pipe()
    seen: list[list[str]] = []

    def write() -> None:
        with WakeBuffer(buffer.path) as other, os.fdopen(into, "wb", buffering=0) as pipe:
            for part, expected in ((b"first\n", 1), (b"second\nthi", 2)):
                pipe.write(part)
                end = time.monotonic() + 10
                while len(texts(other)) < expected and time.monotonic() < end:
                    time.sleep(0.01)
                seen.append(texts(other))
            pipe.write(b"rd")

    writer = threading.Thread(target=write)
    writer.start()
    assert add_stream(buffer, out, "-", "lines", "stdin").added == 3
    writer.join()
    os.close(out)
    assert seen == [["first"], ["first", "second"]]
    assert texts(buffer) == ["first", "second", "third"]


def test_following_a_file_continues_where_it_stopped(buffer, tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("one\ntw")

    def read_new() -> int:
        return sum(tally.added + tally.duplicates for tally in follow(buffer, path, poll=0.01, idle=0))

    assert read_new() == 1 and texts(buffer) == ["one"]
    with path.open("a") as file:
        file.write("o\nthree\n")
    assert read_new() == 2 and texts(buffer) == ["one", "two", "three"]
    assert read_new() == 0
    path.rename(tmp_path / "log.1")  # rotated
    path.write_text("four\nfive\nsix\nseven\n")
    assert read_new() == 4
    path.write_text("eight\n")  # truncated
    assert read_new() == 1 and texts(buffer)[-1] == "eight"


def test_a_file_is_followed_while_it_grows(buffer, tmp_path):
    path = tmp_path / "log.txt"
    path.touch()

    def write() -> None:
        for number in range(50):
            with path.open("a") as file:
                file.write(f"line {number}\n")
            time.sleep(0.002)

    writer = threading.Thread(target=write)
    writer.start()
    added = sum(tally.added for tally in follow(buffer, path, poll=0.01, idle=0.5))
    writer.join()
    assert added == 50 and texts(buffer) == [f"line {number}" for number in range(50)]


def test_the_position_in_a_stream_is_stored_with_its_records_or_not_at_all(buffer, tmp_path, monkeypatch):
    path = tmp_path / "log.txt"
    path.write_text("one\ntwo\n")
    monkeypatch.setattr(buffer, "_store", lambda record, tally: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(follow(buffer, path, idle=0))
    monkeypatch.undo()
    assert buffer.position(str(path)) is None and texts(buffer) == []
    list(follow(buffer, path, idle=0))
    assert buffer.position(str(path)).offset == 8 and texts(buffer) == ["one", "two"]


def test_a_text_file_is_a_record(tmp_path):
    found = record_of_text("a.txt", b"\xef\xbb\xbfa\n\nb\n", "a.txt")
    assert isinstance(found, WakeRecord) and found.memory.text == "a\n\nb\n"
