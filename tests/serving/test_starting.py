"""How the endpoint starts: invalid options, a server that does not start, a night that is not complete."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from sleep_trl.cli import main
from sleep_trl.runs.checksums import record_folder
from sleep_trl.runs.files import write_json
from sleep_trl.runs.finished import newest_model
from sleep_trl.serving import server
from sleep_trl.serving.backend import Backend, excerpt
from sleep_trl.serving.keeper import Keeper
from sleep_trl.serving.model_server import memory_share
from tests.tiny_runs import write_finished_run


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


def test_what_is_loaded_is_said_at_once(run, capfd, caplog, monkeypatch):
    async def nothing(*_: object) -> None: ...

    monkeypatch.setattr(server, "_serve", nothing)
    with pytest.raises(SystemExit):
        main(["serve", str(run), "--port", "0", "--backend", "transformers"])
    assert f"Loading {run / 'model'} with transformers" in caplog.text and not capfd.readouterr().out


def test_the_endpoint_imports_no_torch():
    """Its port is checked, and what it loads is said, before that would have been imported."""
    code = "import sys, sleep_trl.serving.server; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_model_server_that_does_not_start_is_reported_with_its_last_output(run):
    async def start() -> None:
        backend = Backend(newest_model(run), "transformers", "chain", ["--no-such-option"])
        try:
            await backend.start()
        finally:
            await backend.close()

    with pytest.raises(
        RuntimeError,
        match=r"(?s)did not start \(exit code 1\). First error: ValueError: --no-such-option cannot.*\nLast output: .*"
        r"--no-such-option cannot be given",
    ):
        asyncio.run(start())


def test_the_first_error_of_a_server_is_shown_however_much_comes_after_it():
    start = (
        "WARNING [a.py:9] it may raise `OSError: [Errno 24]`.\n(Worker) ERROR [b.py:7] ValueError: too little memory \n"
    )
    output = f"{start}{'x' * 9000}\nRuntimeError: see above"
    assert excerpt(output).startswith("First error: ValueError: too little memory\nLast output: x")
    assert excerpt(output).endswith("RuntimeError: see above") and len(excerpt(output)) < 5000
    assert excerpt("(Core pid=1) ValueError: so\nRuntimeError: see above").startswith("First error: ValueError: so")
    assert excerpt("all is well") == "Last output: all is well"


def test_vllm_takes_a_share_of_the_free_memory_of_a_machine_without_a_gpu(monkeypatch):
    """It does not start if less is free than its share of the whole."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=24.0, available=8.0))
    assert (memory_share(is_cpu=False), memory_share(is_cpu=True)) == (0.45, 0.15)


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


def test_a_server_that_is_killed_takes_its_children_along(run, tmp_path, monkeypatch):
    """They hold its output, as vLLM's workers do, which must not keep its end from being seen."""
    server = tmp_path / "server"
    server.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {tmp_path}/child\nwait\n")
    server.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(server))

    async def kill() -> int:
        backend = Backend(newest_model(run), "transformers", "chain", [])
        starting = asyncio.create_task(backend.start())
        try:
            # The script may run before the backend knows of its process.
            while not backend._process or not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
                await asyncio.sleep(0.01)
            pid = (tmp_path / "child").read_text()
            child, waiting = psutil.Process(int(pid)), asyncio.create_task(backend.wait())
            await asyncio.sleep(0.1)
            child.parent().kill()
            code = await asyncio.wait_for(waiting, 20)
            with pytest.raises(RuntimeError, match="exit code -9"):
                await asyncio.wait_for(starting, 20)
            assert not psutil.wait_procs([child], timeout=20)[1]
            return code
        finally:
            await backend.close()

    assert asyncio.run(kill()) == -signal.SIGKILL


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
