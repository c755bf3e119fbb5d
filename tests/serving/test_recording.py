"""What the endpoint records of a conversation, and that recording harms no answer."""

from __future__ import annotations

import asyncio
import sqlite3
import time

import pytest

from sleep_trl.serving.recording import Recorder, as_row
from sleep_trl.wake import WakeBuffer

USER = {"role": "user", "content": "a"}
ANSWERED = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("messages", "new"),
    [
        ([USER], [USER]),
        ([{"role": "system", "content": "s"}, USER], [{"role": "system", "content": "s"}, USER]),
        ([USER, ANSWERED, {"role": "user", "content": "c"}], [{"role": "user", "content": "c"}]),
        ([USER, ANSWERED, USER, ANSWERED], []),
    ],
)
def test_a_row_holds_only_new_messages(messages, new):
    row = as_row({"messages": messages}, "said")
    assert row == {"source": "chat", "messages": [*new, {"role": "assistant", "content": "said"}]}


def test_a_row_has_no_thoughts():
    thought = "<think>Hm?</think>\n\nsaid"
    assert as_row({"messages": [USER]}, thought) == as_row({"messages": [USER]}, "said")
    assert as_row({"prompt": "a "}, thought)["text"] == "a said"


def test_a_row_names_the_user():
    assert as_row({"prompt": "a ", "user": "Mira"}, "b") == {"source": "chat/Mira", "text": "a b"}
    assert as_row({"prompt": "a ", "user": {"not": "a name"}}, "b")["source"] == "chat"


def test_a_recording_failure_is_logged_only(tmp_path, caplog):
    recorder = Recorder(tmp_path / "wake.db")
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "secret"}}]}
    asyncio.run(recorder.record({"messages": [picture]}, "said"))
    asyncio.run(recorder.record({"prompt": "a", "user": "\n"}, "b"))
    asyncio.run(recorder.record({"prompt": "a"}, "b"))
    recorder.close()
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        assert buffer.counts()["new"] == 1 and buffer.counts()["rejected"] == 2
    assert caplog.text.count("was not recorded") == 2 and "secret" not in caplog.text


def test_a_locked_buffer_delays_no_answer_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr("sleep_trl.serving.recording.PATIENCE", 0.2)
    recorder = Recorder(tmp_path / "wake.db")
    other = sqlite3.connect(tmp_path / "wake.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    asyncio.run(recorder.record({"prompt": "a"}, "b"))
    assert time.monotonic() - began < 5
    other.execute("COMMIT")
    other.close()
    recorder.close()  # what waited is stored
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        assert [memory.text for memory in buffer.memories()] == ["ab"]


def test_a_full_disk_harms_no_answer(tmp_path, caplog):
    recorder = Recorder(tmp_path / "wake.db")
    pages = "PRAGMA page_count"
    limit = recorder._thread.submit(lambda: recorder._buffer._database.execute(pages).fetchone()[0]).result()
    recorder._thread.submit(recorder._buffer._database.execute, f"PRAGMA max_page_count = {limit}").result()
    asyncio.run(recorder.record({"prompt": "secret " * 10_000}, "b"))
    assert "was not recorded" in caplog.text and "full" in caplog.text and "secret" not in caplog.text
    recorder.close()


# -- connections and nights --------------------------------------------------------------------------
