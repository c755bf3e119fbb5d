"""Parts of the endpoint without a model server: requests, recording, invalid options."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import httpx
import psutil
import pytest

from sleep_trl.cli import main
from sleep_trl.runs.files import write_json
from sleep_trl.runs.finished import newest_model
from sleep_trl.serving.backend import Backend
from sleep_trl.serving.protocol import CHAT, COMPLETIONS, ApiError, error_of, for_backend
from sleep_trl.serving.proxy import events
from sleep_trl.serving.recording import Recorder, as_row
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


# -- requests and answers --------------------------------------------------------------------------


def server(kind: str, is_chat: bool = True) -> SimpleNamespace:
    return SimpleNamespace(kind=kind, is_chat=is_chat, model="model")


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


def test_a_model_without_template_does_not_chat():
    with pytest.raises(ApiError, match="no chat template"):
        for_backend({"messages": [USER]}, server("vllm", is_chat=False), CHAT)
    assert for_backend({"prompt": "a"}, server("vllm", is_chat=False), COMPLETIONS)["prompt"] == "a"


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
    assert newest_model(run) == before and before.name == "run:entry-000" and not before.has_chat_template()
    (run / "model").rename(run / "model.replaced")
    with pytest.raises(ValueError, match="being written again"):
        newest_model(run)
    write_json(run / "model" / "config.json", {"dtype": "float32"})
    write_json(run / "model" / "tokenizer_config.json", {"chat_template": "x"})
    after = newest_model(run)
    assert after.version != before.version and after.has_chat_template()
