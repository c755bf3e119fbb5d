"""Parts of the endpoint without a model server: requests, recording, invalid options."""

from __future__ import annotations

import asyncio
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import get_type_hints

import httpx
import psutil
import pytest
import uvicorn
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chat

from sleep_trl.cli import main
from sleep_trl.runs.checksums import record_folder
from sleep_trl.runs.files import write_json
from sleep_trl.runs.finished import newest_model
from sleep_trl.serving.backend import Backend
from sleep_trl.serving.connections import DeadlineProtocol
from sleep_trl.serving.fields import (
    IGNORED_BY_TRANSFORMERS,
    PASSED_ON,
    WITHOUT_EFFECT,
    ChatFields,
    CompletionFields,
    find_fault,
)
from sleep_trl.serving.keeper import Keeper
from sleep_trl.serving.protocol import CHAT, COMPLETIONS, ApiError, error_of, for_backend
from sleep_trl.serving.proxy import events
from sleep_trl.serving.recording import Recorder, as_row
from sleep_trl.serving.server import _bind, _Server
from sleep_trl.serving.stopping import StopCutter, cut
from sleep_trl.wake import WakeBuffer
from tests.tiny_runs import write_finished_run

USER = {"role": "user", "content": "a"}
ANSWERED = {"role": "assistant", "content": "b"}


# -- recording -------------------------------------------------------------------------------------


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


@contextmanager
def listening(app) -> Iterator[tuple[str, int]]:
    """Serve an application as the endpoint does, on a port of its own."""
    with _bind("127.0.0.1", 0) as bound:
        config = uvicorn.Config(app, http=DeadlineProtocol, log_config=None, lifespan="off")
        serving = _Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(serving.serve(sockets=[bound])))
        thread.start()
        try:
            yield bound.getsockname()
        finally:
            serving.should_exit = True
            thread.join()


async def greet(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"])
def test_connections_without_a_request_are_closed(monkeypatch, sent):
    monkeypatch.setattr("sleep_trl.serving.connections.REQUEST_TIMEOUT", 0.3)
    with listening(greet) as address:
        opened = [socket.create_connection(address, timeout=5) for _ in range(20)]
        for client in opened:
            client.sendall(sent)
        with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as kept:
            assert [kept.get("/").text for _ in range(3)] == ["hi"] * 3  # on one connection
        began = time.monotonic()
        assert all(client.recv(100) == b"" for client in opened), "still open"
        assert time.monotonic() - began < 3
        for client in opened:
            client.close()


def test_answers_are_not_held_back_and_a_port_has_one_endpoint():
    with _bind("127.0.0.1", 0) as bound, socket.create_connection(bound.getsockname()) as client:
        accepted, _ = bound.accept()
        assert accepted.proto == socket.IPPROTO_TCP, "asyncio sets TCP_NODELAY only on sockets that say so"
        accepted.close()
        with pytest.raises(ValueError, match="Address already in use"):
            _bind("127.0.0.1", client.getpeername()[1])


def test_a_night_whose_server_did_not_start_is_tried_again(run, tmp_path, monkeypatch, caplog):
    """It was copied in while incomplete."""
    record_folder(run / "model")
    (run / "model" / "config.json").write_text("{}")  # the copy is not complete
    keeper = Keeper(run, "transformers", "chain", (), 1.0)
    old = SimpleNamespace(committed=SimpleNamespace(version="old", name="night-000:entry-000"))
    keeper._current = old

    def check() -> int:
        asyncio.run(keeper._check_for_new_night())
        return caplog.text.count("night-000:entry-000 stays in use, and the next attempt is in")

    assert [check(), check()] == [1, 1]  # it is not tried at once again
    assert "in 30 seconds" in caplog.text
    monkeypatch.setattr(keeper, "_retry_at", 0.0)
    assert check() == 2 and "in 60 seconds" in caplog.text
    write_json(run / "model" / "config.json", {"dtype": "float32"})  # complete
    monkeypatch.setattr(keeper, "_retry_at", 0.0)
    started = []

    async def start(self) -> None:
        started.append(self.committed.name)

    monkeypatch.setattr(Backend, "start", start)
    monkeypatch.setattr("sleep_trl.serving.keeper._retire", lambda old: asyncio.sleep(0))
    assert check() == 2 and started == ["run:entry-000"]


# -- requests and answers --------------------------------------------------------------------------


def server(kind: str, is_chat: bool = True, variables: dict | None = None) -> SimpleNamespace:
    given = {"has_tools": False, "vocabulary": 50, "model": "model", "chat_template_kwargs": variables or {}}
    return SimpleNamespace(kind=kind, is_chat=is_chat, **given)


def test_requests_are_converted_for_each_model_server():
    asked = {"model": "chain", "prompt": "a", "store": True, "n": 1, "max_completion_tokens": 5, "echo": False}
    assert for_backend(asked, server("transformers"), COMPLETIONS) == {
        "model": "model",
        "prompt": "a",
        "max_tokens": 5,
    }
    assert for_backend(asked, server("vllm"), COMPLETIONS) == {
        "model": "model",
        "prompt": "a",
        "n": 1,
        "max_completion_tokens": 5,
        "echo": False,
    }
    assert asked["store"] is True, "a request is not changed"


@pytest.mark.parametrize(
    "asked", [{"n": 2}, {"logprobs": True}, {"response_format": {"type": "json_object"}}, {"presence_penalty": 0.5}]
)
def test_fields_that_transformers_would_ignore_are_refused(asked):
    [name] = asked
    with pytest.raises(ApiError, match=f"`{name}` needs vLLM") as refused:
        for_backend(asked, server("transformers"), COMPLETIONS)
    assert refused.value.param == name
    assert for_backend(asked, server("vllm"), COMPLETIONS)[name] == asked[name]


@pytest.mark.parametrize(
    ("asked", "field", "says"),
    [
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 2.5}, "max_tokens", "valid integer"),
        ({"max_tokens": True}, "max_tokens", "valid integer"),
        ({"stop": 5}, "stop", "valid string or should be a valid list"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": [None]}, "stop", "valid string"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"stream_options": {"include_usage": 1}}, "stream_options", "valid boolean"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "match pattern"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "less than or equal to 100"),
        ({"seed": 2**70}, "seed", "less than"),
        ({"user": 5}, "user", "valid string"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"tools": {}}, "tools", "valid list"),
    ],
)
def test_wrong_types_and_ranges_name_the_field(asked, field, says):
    found = find_fault({"model": "chain", "messages": [USER]} | asked, ChatFields)
    assert found is not None and found[0] == field and says in found[1], found


def test_good_values_are_no_faults():
    asked = {
        "temperature": 1,
        "top_p": 1,
        "max_tokens": None,
        "stop": "x",
        "seed": -5,
        "logit_bias": {"3": -100},
        "top_k": 5,
    }
    assert find_fault(asked | {"stream": True, "stream_options": {"include_usage": True}}, ChatFields) is None
    assert find_fault({"prompt": [[1, 2], [3]], "logprobs": 2}, CompletionFields) is None


@pytest.mark.parametrize(
    ("params", "path"),
    [(chat.CompletionCreateParamsStreaming, CHAT), (completions.CompletionCreateParamsStreaming, COMPLETIONS)],
)
def test_every_field_of_the_openai_client_is_obeyed_or_refused(params, path):
    """No field is passed on to be ignored: a new one has to be put into one of the three lists."""
    fields = set(get_type_hints(params))
    assert fields - {"extra_body"} <= PASSED_ON | WITHOUT_EFFECT | IGNORED_BY_TRANSFORMERS.keys()
    assert not PASSED_ON & (WITHOUT_EFFECT | IGNORED_BY_TRANSFORMERS.keys())


def test_texts_are_cut_before_a_stop_string_however_they_are_split():
    text, stops = "one two. three\n\nfour", ["\n\n", "two.x"]
    for size in range(1, len(text) + 1):
        cutter = StopCutter(stops)
        shown = [cutter.feed(text[start : start + size]) for start in range(0, len(text), size)]
        assert "".join(shown) + cutter.end() == "one two. three" and cutter.is_cut
    cutter = StopCutter(["\n\n"])
    assert (cutter.feed("a\n"), cutter.feed("b\n"), cutter.end()) == ("a", "\nb", "\n")
    assert cut("a b c", ["c", "b"]) == "a " and cut("a b c", []) == "a b c"


def test_a_model_without_template_does_not_chat():
    with pytest.raises(ApiError, match="no chat template"):
        for_backend({"messages": [USER]}, server("vllm", is_chat=False), CHAT)
    assert for_backend({"prompt": "a"}, server("vllm", is_chat=False), COMPLETIONS)["prompt"] == "a"


def test_chats_get_the_variables_that_the_night_was_taught_with():
    taught = server("vllm", variables={"enable_thinking": False})
    assert for_backend({"messages": [USER]}, taught, CHAT)["chat_template_kwargs"] == {"enable_thinking": False}
    asked = {"messages": [USER], "chat_template_kwargs": {"enable_thinking": True, "other": 1}}
    assert for_backend(asked, taught, CHAT)["chat_template_kwargs"] == {"enable_thinking": True, "other": 1}
    assert "chat_template_kwargs" not in for_backend({"prompt": "a"}, taught, COMPLETIONS)


def test_a_request_cannot_bring_a_template():
    for given in ({"chat_template": "{{ 1 }}"}, "chat_template"):
        with pytest.raises(ApiError, match="without `chat_template`"):
            for_backend({"messages": [USER], "chat_template_kwargs": given}, server("transformers"), CHAT)
    asked = {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}}
    assert for_backend(asked, server("transformers"), CHAT) == asked | {"model": "model"}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (422, b'{"detail": "Unexpected fields"}', (422, "Unexpected fields", None)),
        (400, b'{"error": {"message": "too long", "param": "prompt"}}', (400, "too long", "prompt")),
        (500, b'{"error": {"message": "a text of the request"}}', (502, "The model server failed", None)),
        (400, b"<html>", (502, "The model server failed", None)),
    ],
)
def test_errors_of_model_servers_in_openais_form(status, body, expected):
    error = error_of(httpx.Response(status, content=body))
    assert (error.status, error.param) == (expected[0], expected[2]) and error.message.startswith(expected[1])


def test_events_are_split_at_line_feeds_only():
    pieces = [b'data: {"a": "x\xe2\x80\xa8y\xc2\x85', b'z"}\n\n: a comment\n\nda', b"ta: [DONE]\r\n\r\n"]

    async def stream():
        for piece in pieces:
            yield piece

    async def read() -> list[str]:
        return [data async for data in events(httpx.Response(200, content=stream()))]

    assert asyncio.run(read()) == ['{"a": "x\u2028y\x85z"}', "[DONE]"]


# -- invalid options --------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A committed night whose model is not loaded."""
    folder = write_finished_run(tmp_path / "run")
    write_json(folder / "model" / "config.json", {"dtype": "float32"})
    return folder


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["nowhere"], "is not a folder"),
        (["empty"], "holds no committed night"),
        (["run", "--record", "notes.txt"], "wake buffer"),
        (["run", "--api_key", ""], "printable ASCII"),
        (["run", "--host", "203.0.113.1"], "is not available"),
        (["run", "--backend", "transformers", "--", "--max-model-len", "99"], "only vLLM's server takes options"),
    ],
)
def test_mistakes_are_reported_before_anything_starts(run, given, says, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no database, but a text of sufficient length to be checked " * 20)
    with pytest.raises(SystemExit) as ended:
        main(["serve", *given])
    assert ended.value.code == 2
    assert says in capfd.readouterr().err


def test_a_port_that_is_taken(run, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as ended:
        main(["serve", str(run), "--port", str(taken.getsockname()[1])])
    assert ended.value.code == 2 and "Address already in use" in capfd.readouterr().err


def test_a_model_server_that_does_not_start_is_reported_with_its_last_output(run):
    async def start() -> None:
        backend = Backend(newest_model(run), "transformers", "chain", ["--no-such-option"])
        try:
            await backend.start()
        finally:
            await backend.close()

    with pytest.raises(
        RuntimeError, match=r"(?s)did not start \(exit code 1\). Last output:.*--no-such-option cannot be given"
    ):
        asyncio.run(start())


def test_a_model_server_and_its_children_end_with_the_proxy():
    code = (
        "import subprocess, time; from sleep_trl.serving.model_server import end_with_parent; end_with_parent(); "
        "print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    child = psutil.Process(int(process.stdout.readline()))
    process.stdin.close()  # as if the proxy was killed
    assert process.wait(20) == -signal.SIGTERM
    assert not psutil.wait_procs([child], timeout=20)[1]


def test_the_version_changes_when_a_model_is_rewritten(run):
    before = newest_model(run)
    assert before.fingerprint == f"{before.name}:{before.enabled}"
    assert newest_model(run) == before and before.name == "run:entry-000" and not before.chat_template()
    (run / "model").rename(run / "model.replaced")
    with pytest.raises(ValueError, match="being written again"):
        newest_model(run)
    write_json(run / "model" / "config.json", {"dtype": "float32"})
    write_json(run / "model" / "tokenizer_config.json", {"chat_template": "x"})
    after = newest_model(run)
    assert after.version != before.version and after.chat_template()
