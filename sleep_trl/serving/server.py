"""`sleep-trl serve`: runs the endpoint for the newest committed model."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from ..runs.finished import newest_model
from .backend import POLL, Kind, choose_kind
from .connections import DeadlineProtocol
from .keeper import Keeper
from .proxy import Proxy
from .recording import Recorder

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
BACKLOG = 2048  # connections that wait to be accepted, as in uvicorn
DRAIN_TIMEOUT = 30  # seconds for requests in flight when the endpoint stops


@dataclass(frozen=True)
class ServeOptions:
    """Options of the endpoint.

    Args:
        folder (`Path`):
            The `output_dir` of a run, or of a chain with `night-001/`, `night-002/`, ...
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen on. Any but a loopback address opens the endpoint to the network, without TLS.
        port (`int`, *optional*, defaults to `8000`):
            Port to listen on; 0 chooses a free one.
        api_key (`str`, *optional*):
            Bearer token of clients. Default: generated.
        record (`Path`, *optional*):
            Wake buffer to record conversations in. Default: do not record.
        backend (`str`, *optional*):
            `vllm` or `transformers`. Default: vLLM if it is installed.
        name (`str`, *optional*):
            Name of the model for clients. Default: the folder's name.
        options (`tuple[str, ...]`, *optional*):
            Options for vLLM's server.
        poll (`float`, *optional*, defaults to `2.0`):
            Seconds between two checks for a new night.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    record: Path | None = None
    backend: Kind | None = None
    name: str | None = None
    options: tuple[str, ...] = ()
    poll: float = 2.0


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint.

    Args:
        url (`str`): base URL for OpenAI clients.
        api_key (`str`): their API key.
        model (`str`): name of the model.
        night (`str`): night and entry of the model.
        backend (`str`): `vllm` or `transformers`.
    """

    url: str
    api_key: str
    model: str
    night: str
    backend: str


def serve(options: ServeOptions, on_ready: Callable[[Endpoint], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        options (`ServeOptions`):
            Options of the endpoint.
        on_ready (`Callable[[Endpoint], None]`):
            Called once, when the endpoint accepts requests.

    Raises:
        `ValueError`: if there is no committed model, the address is unavailable, the buffer is invalid, or a package is
            missing. Nothing was started then.
        `RuntimeError`: if the model server does not start.
    """
    kind = choose_kind(options.backend)
    if options.options and kind == "transformers":
        raise ValueError(f"{' '.join(options.options)}: only vLLM's server takes options. Leave them out.")
    if options.api_key is not None and not (
        options.api_key.isascii() and options.api_key.isprintable() and options.api_key
    ):
        raise ValueError("--api_key must be one or more printable ASCII characters. Leave it out to generate one.")
    model = newest_model(options.folder)
    if options.host not in LOOPBACK:
        logger.warning("%s is not a loopback address: keys and texts cross the network unencrypted", options.host)
    recorder: AbstractContextManager[Recorder | None] = (
        closing(Recorder(options.record)) if options.record else nullcontext()
    )
    with recorder as opened, _bind(options.host, options.port) as bound:
        logger.info("Loading %s with %s; this may take a minute or more", model.path, kind)
        asyncio.run(_until_stopped(_serve(options, kind, bound, opened, on_ready)))


async def _serve(
    options: ServeOptions,
    kind: Kind,
    bound: socket.socket,
    recorder: Recorder | None,
    on_ready: Callable[[Endpoint], None],
) -> None:
    name = options.name or options.folder.resolve().name
    key = options.api_key or secrets.token_urlsafe(32)
    async with Keeper(options.folder, kind, name, options.options, options.poll) as keeper:
        app = Proxy(keeper, name, recorder).app(key)
        server = _Server(
            uvicorn.Config(
                app,
                http=DeadlineProtocol,
                access_log=False,
                log_config=None,
                lifespan="off",
                timeout_graceful_shutdown=DRAIN_TIMEOUT,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            while not server.started and not serving.done():
                await asyncio.sleep(POLL)
            host, port = bound.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            on_ready(Endpoint(f"http://{shown}:{port}/v1", key, name, keeper.night, kind))
            await asyncio.wait([serving, keeper.watching], return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.should_exit = True
            await serving
        if keeper.watching.done():
            keeper.watching.result()


async def _until_stopped(serving: Coroutine[None, None, None]) -> None:
    """Run until SIGINT or SIGTERM, which finishes the requests in flight and then stops the servers."""
    task = asyncio.create_task(serving)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(host: str, port: int) -> socket.socket:
    """Bind the address before anything is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves out TCP_NODELAY
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)  # now, or a second endpoint could bind the same port
    except OSError as error:
        bound.close()
        raise ValueError(f"--host {host} --port {port} is not available: {error.strerror}. Give another.") from None
    return bound
