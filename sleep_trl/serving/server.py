"""`sleep-trl serve`: the endpoint over the newest committed model, from start to end."""

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
from .backend import LOOK, Kind, choose_kind
from .keeper import Keeper
from .proxy import Proxy
from .recording import Recorder

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
DRAIN = 30  # seconds that requests may still take when the endpoint is asked to end


@dataclass(frozen=True)
class ServeOptions:
    """What is served, and how.

    Args:
        folder (`Path`):
            A run's `output_dir`, or a life's, which holds `night-001/`, `night-002/`, ...
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen on. Another than a loopback address opens the endpoint to the network, without TLS.
        port (`int`, *optional*, defaults to `8000`):
            Port to listen on; 0 takes a free one.
        api_key (`str`, *optional*):
            What clients must send as a bearer token; made up if left out.
        record (`Path`, *optional*):
            Wake buffer to which conversations are recorded; none are if left out.
        backend (`str`, *optional*):
            `vllm` or `transformers`; if left out, vLLM where it is installed.
        name (`str`, *optional*):
            What clients call the model; the folder's name if left out.
        options (`tuple[str, ...]`, *optional*):
            Passed on to vLLM's server.
        poll (`float`, *optional*, defaults to `2.0`):
            Seconds between two looks for a new night.
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
    """Where the endpoint is, told when it is ready.

    Args:
        url (`str`): base URL for OpenAI's clients.
        api_key (`str`): what they must send.
        model (`str`): what they must ask for.
        night (`str`): whose model answers.
        backend (`str`): `vllm` or `transformers`.
    """

    url: str
    api_key: str
    model: str
    night: str
    backend: str


def serve(options: ServeOptions, tell: Callable[[Endpoint], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        options (`ServeOptions`):
            What is served, and how.
        tell (`Callable[[Endpoint], None]`):
            Called once, when requests are answered.

    Raises:
        `ValueError`: if there is no committed model, the address cannot be had, the buffer is none, or a package is
            missing. Nothing has been started then.
        `RuntimeError`: if the model server does not start.
    """
    kind = choose_kind(options.backend)
    if options.options and kind == "transformers":
        raise ValueError(f"{' '.join(options.options)}: only vLLM's server takes options. Leave them out.")
    if options.api_key is not None and not (
        options.api_key.isascii() and options.api_key.isprintable() and options.api_key
    ):
        raise ValueError(
            "--api_key must be of printable ASCII characters, at least one. Leave it out to have one made."
        )
    newest_model(options.folder)
    if options.host not in LOOPBACK:
        logger.warning("%s is no loopback address: keys and texts cross the network unencrypted", options.host)
    recorder: AbstractContextManager[Recorder | None] = (
        closing(Recorder(options.record)) if options.record else nullcontext()
    )
    with recorder as opened, _bind(options.host, options.port) as bound:
        asyncio.run(_until_stopped(_serve(options, kind, bound, opened, tell)))


async def _serve(
    options: ServeOptions,
    kind: Kind,
    bound: socket.socket,
    recorder: Recorder | None,
    tell: Callable[[Endpoint], None],
) -> None:
    name = options.name or options.folder.resolve().name
    key = options.api_key or secrets.token_urlsafe(32)
    async with Keeper(options.folder, kind, name, options.options, options.poll) as keeper:
        app = Proxy(keeper, name, recorder).app(key)
        server = _Server(
            uvicorn.Config(app, access_log=False, log_config=None, lifespan="off", timeout_graceful_shutdown=DRAIN)
        )
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            while not server.started and not serving.done():
                await asyncio.sleep(LOOK)
            host, port = bound.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            tell(Endpoint(f"http://{shown}:{port}/v1", key, name, keeper.night, kind))
            await asyncio.wait([serving, keeper.watching], return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.should_exit = True
            await serving
        if keeper.watching.done():
            keeper.watching.result()


async def _until_stopped(serving: Coroutine[None, None, None]) -> None:
    """Run until SIGINT or SIGTERM, by which it is cancelled: requests are answered to their end, then servers end."""
    task = asyncio.create_task(serving)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(host: str, port: int) -> socket.socket:
    """Take the address before anything is started."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ValueError(f"--host {host} --port {port} cannot be had: {error.strerror}. Give another.") from None
    return bound
