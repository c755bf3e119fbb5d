"""A model server as the proxy sees it: started, checked, counted in use, ended."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import httpx

from ..runs.files import read_json
from ..runs.finished import CommittedModel
from .model_server import PATIENCE

Kind = Literal["vllm", "transformers"]

START_WITHIN = 900.0  # seconds; large models take minutes to load
LOOK = 0.1  # seconds between two looks at a server that is starting
SHARE = 0.45  # of a device's memory, for one of two vLLM servers
TAIL = 4096  # bytes of a starting server's output, shown if it fails
# A connection for each request: one that is kept may be closed by the server at the moment in which it is used again.
CONNECTIONS = httpx.Limits(max_connections=None, max_keepalive_connections=0)
ANSWER_WITHIN = httpx.Timeout(None, connect=10.0)  # a long answer takes long; a dead server closes the connection


def choose_kind(wanted: Kind | None) -> Kind:
    """Return the model server to use: vLLM's where it is installed, else that of transformers.

    Raises:
        `ValueError`: if the one that is wanted, or none, is installed.
    """
    kind: Kind = wanted or ("vllm" if find_spec("vllm") else "transformers")
    needed = {"vllm": ["vllm"], "transformers": ["fastapi", "uvicorn", "openai"]}[kind]
    if missing := [name for name in needed if find_spec(name) is None]:
        extra = "vllm" if kind == "vllm" else "serve"
        raise ValueError(
            f"Serving with {kind} needs {', '.join(missing)}. Install it: pip install 'sleep-trl[{extra}]'."
        )
    return kind


class Backend:
    """One model server and the requests that it is busy with.

    Args:
        committed (`CommittedModel`):
            The model.
        kind (`str`):
            `vllm` or `transformers`.
        name (`str`):
            What clients call the model.
        options (`Sequence[str]`):
            Passed on to vLLM's server.
    """

    def __init__(self, committed: CommittedModel, kind: Kind, name: str, options: Sequence[str]) -> None:
        self.committed, self.kind = committed, kind
        self.model = name if kind == "vllm" else committed.path.name  # what the server calls it
        self.is_chat = committed.has_chat_template()
        self.idle = asyncio.Event()
        self.idle.set()
        self._in_flight = 0
        self._options = (name, *self._defaults(), *options)
        self._folder = Path(tempfile.mkdtemp(prefix="sleep-trl-"))  # mode 0700: nobody else reaches the socket
        self._tail = b""
        self._process: asyncio.subprocess.Process | None = None
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(self._socket), limits=CONNECTIONS),
            base_url="http://model",
            timeout=ANSWER_WITHIN,
            trust_env=False,
        )

    @property
    def _socket(self) -> Path:
        return self._folder / "socket"

    def _defaults(self) -> list[str]:
        """What vLLM's server is told unless options say otherwise: the dtype in which the night was measured (it would
        turn float32 into bfloat16), and to leave room for a second server, which a swap needs."""
        if self.kind != "vllm":
            return []
        dtype = read_json(self.committed.path / "config.json").get("dtype", "auto")
        return [f"--dtype={dtype}", f"--gpu-memory-utilization={SHARE}"]

    async def start(self) -> None:
        """Start the server, wait until it is there, and let it answer once.

        Raises:
            `RuntimeError`: if it does not get there, with the end of its output.
        """
        module = f"{__package__}.model_server"
        arguments = [self.kind, str(self.committed.path), str(self._socket), *self._options]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # what lies in the working directory is not imported
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
            async with asyncio.timeout(START_WITHIN):
                while not await self._is_healthy():
                    await asyncio.sleep(LOOK)
                await self._check()
        except (TimeoutError, httpx.HTTPError, RuntimeError) as error:
            tail = self._tail.decode(errors="replace").strip()
            raise RuntimeError(
                f"The {self.kind} server of {self.committed.path} did not start ({error}). Its last words: {tail}"
            ) from None
        self._tail = b""

    async def _is_healthy(self) -> bool:
        if not self.is_alive:
            raise RuntimeError(f"exit code {await self.died()}")
        try:
            return (await self.client.get("/health")).is_success
        except httpx.TransportError:
            return False

    async def _check(self) -> None:
        answer = await self.client.post("/v1/completions", json={"model": self.model, "prompt": "A", "max_tokens": 1})
        if not answer.is_success or not answer.json().get("choices"):
            raise RuntimeError(f"it answered its first request with status {answer.status_code}")

    async def _read_output(self, process: asyncio.subprocess.Process) -> None:
        """Read what the server prints, so that it never waits for a reader. It may hold requests' text and is kept
        nowhere."""
        assert process.stdout
        while piece := await process.stdout.read(65536):
            self._tail = (self._tail + piece)[-TAIL:]

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A request is being answered."""
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

    async def died(self) -> int:
        """Wait for the process to end, and return its exit code."""
        assert self._process
        return await self._process.wait()

    async def close(self) -> None:
        """End the server and its children."""
        await self.client.aclose()
        if self._process:
            await _end(self._process)
            self._reading.cancel()
        shutil.rmtree(self._folder, ignore_errors=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask a process and its children to end, and end them if they do not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await process.wait()
                return
