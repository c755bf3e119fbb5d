"""A model server process: starting it, checking it, counting its requests, stopping it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import httpx

from ..runs.files import read_json
from ..runs.finished import CommittedModel
from .model_server import STOP_TIMEOUT

Kind = Literal["vllm", "transformers"]

START_TIMEOUT = 900.0  # seconds; large models take minutes to load
POLL = 0.1  # seconds between two checks of a server that is starting
KEPT = 2**20  # bytes of a starting server's output
TAIL = 4096  # characters of it that are shown if it fails
# An error at the beginning of a line, after a process's "(name pid=1)", or after a log's "[file:line]".
CAUSE = re.compile(r"(?:^(?:\([^)\n]*\) )?|\] ?)((?:\w+\.)*[A-Z]\w*(?:Error|Exception): .+)", re.MULTILINE)
# One connection per request: the server may close a kept one at the moment it is reused.
CONNECTIONS = httpx.Limits(max_connections=None, max_keepalive_connections=0)
TIMEOUT = httpx.Timeout(None, connect=10.0)  # no limit for long answers; a dead server closes the connection


def choose_kind(requested: Kind | None) -> Kind:
    """Return the model server to use: vLLM if it is installed, else transformers.

    Raises:
        `ValueError`: if the server is not installed.
    """
    kind: Kind = requested or ("vllm" if find_spec("vllm") else "transformers")
    needed = {"vllm": ["vllm"], "transformers": ["fastapi", "uvicorn", "openai"]}[kind]
    if missing := [name for name in needed if find_spec(name) is None]:
        extra = "vllm" if kind == "vllm" else "serve"
        raise ValueError(
            f"Serving with {kind} needs {', '.join(missing)}. Install it: pip install 'sleep-trl[{extra}]'."
        )
    return kind


class Backend:
    """One model server and the number of requests in flight.

    Args:
        committed (`CommittedModel`):
            The model to serve.
        kind (`str`):
            `vllm` or `transformers`.
        name (`str`):
            Name of the model for clients.
        options (`Sequence[str]`):
            Options for vLLM's server.
    """

    def __init__(self, committed: CommittedModel, kind: Kind, name: str, options: Sequence[str]) -> None:
        self.committed, self.kind = committed, kind
        self.model = name if kind == "vllm" else committed.path.name  # its name at the model server
        template = committed.chat_template()
        self.is_chat, self.has_tools = bool(template), "tools" in template
        self.chat_template_kwargs = committed.chat_template_kwargs
        self.idle = asyncio.Event()
        self.idle.set()
        self._in_flight = 0
        self._options = (name, *self._defaults(), *options)
        self._folder = Path(tempfile.mkdtemp(prefix="sleep-trl-"))  # mode 0700: other users cannot reach the socket
        self._output: bytes | None = b""  # until it has started
        self._process: asyncio.subprocess.Process | None = None
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(self._socket), limits=CONNECTIONS),
            base_url="http://model",
            timeout=TIMEOUT,
            trust_env=False,
        )

    @cached_property
    def vocabulary(self) -> int:
        """The number of tokens of the model."""
        config = read_json(self.committed.path / "config.json")
        return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 2**31)

    @property
    def _socket(self) -> Path:
        return self._folder / "socket"

    def _defaults(self) -> list[str]:
        """Return default options of vLLM's server: the dtype the night was evaluated in (vLLM would convert float32 to
        bfloat16)."""
        if self.kind != "vllm":
            return []
        dtype = read_json(self.committed.path / "config.json").get("dtype", "auto")
        return [f"--dtype={dtype}"]

    async def start(self) -> None:
        """Start the server, wait until it is healthy, and check that it answers a request.

        Raises:
            `RuntimeError`: if it does not start, with the end of its output.
        """
        module = f"{__package__}.model_server"
        arguments = [self.kind, str(self.committed.path), str(self._socket), *self._options]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # do not import from the working directory
            "-m",
            module,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self._reading = asyncio.create_task(self._read_output(self._process))
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while not await self._is_healthy():
                    await asyncio.sleep(POLL)
                await self._check()
        except (TimeoutError, httpx.HTTPError, RuntimeError) as error:
            output = (self._output or b"").decode(errors="replace").strip()
            raise RuntimeError(
                f"The {self.kind} server of {self.committed.path} did not start ({error}). {excerpt(output)}"
            ) from None
        self._output = None

    async def _is_healthy(self) -> bool:
        if not self.is_alive:
            raise RuntimeError(f"exit code {await self.wait()}")
        try:
            return (await self.client.get("/health")).is_success
        except httpx.TransportError:
            return False

    async def _check(self) -> None:
        answer = await self.client.post("/v1/completions", json={"model": self.model, "prompt": "A", "max_tokens": 1})
        if not answer.is_success or not answer.json().get("choices"):
            raise RuntimeError(f"it answered its first request with status {answer.status_code}")

    async def _read_output(self, process: asyncio.subprocess.Process) -> None:
        """Drain the server's output, so that it never blocks. It may contain texts of requests and is not kept."""
        assert process.stdout
        while piece := await process.stdout.read(65536):
            if self._output is not None:
                self._output = (self._output + piece)[-KEPT:]

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count a request as in flight."""
        self._in_flight += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self.idle.set()

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def wait(self) -> int:
        """Wait for the process to end, kill those that it has left, and return its exit code. `Process.wait` would also
        wait for those, since they hold the server's output: vLLM's workers outlive a server that was killed."""
        assert self._process
        while (code := self._process.returncode) is None:
            await asyncio.sleep(POLL)
        self._signal(signal.SIGKILL)
        return code

    async def close(self) -> None:
        """Terminate the server and its children, and kill them if they do not end."""
        await self.client.aclose()
        if self._process:
            for number in (signal.SIGTERM, signal.SIGKILL):
                self._signal(number)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.wait(), STOP_TIMEOUT)
                    break
            await asyncio.wait([self._reading], timeout=STOP_TIMEOUT)  # ends with the last that holds the output
            self._reading.cancel()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the server's process group, if any of it is left."""
        assert self._process
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def excerpt(output: str) -> str:
    """Return the first error in a server's output and the end of it: vLLM ends with "Engine core initialization failed.
    See root cause above.", and what to do stands far above."""
    first = CAUSE.search(output)
    return (f"First error: {first[1].strip()}\n" if first else "") + f"Last output: {output[-TAIL:]}"
