"""Keeps one model server behind the proxy: the newest night's, started anew when it dies, exchanged when a night ends.

A new server is started beside the old one and answers once before any request goes to it. The old one ends when its
last request has been answered. So a swap needs room for two models for a moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ..runs.finished import CommittedModel, newest_model
from .backend import Backend, Kind

logger = logging.getLogger(__name__)

HOLD = 300.0  # seconds that a request waits for a server that is being started again, which takes vLLM a minute or two
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two attempts to start a server that died


class NoBackend(RuntimeError):
    """No model server came back within `HOLD` seconds."""


class Keeper:
    """The model server in use.

    Its task `watching` never ends by itself; if it does, it has failed.

    Args:
        folder (`Path`):
            A run, or a life of nights.
        kind (`str`):
            `vllm` or `transformers`.
        name (`str`):
            What clients call the model.
        options (`Sequence[str]`):
            Passed on to vLLM's server.
        poll (`float`):
            Seconds between two looks for a new night.
    """

    def __init__(self, folder: Path, kind: Kind, name: str, options: Sequence[str], poll: float) -> None:
        self._folder, self._kind, self._name, self._options, self._poll = folder, kind, name, options, poll
        self._current: Backend | None = None
        self._is_there = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()
        self._refused = ""  # version whose server did not start

    async def __aenter__(self) -> Self:
        """Start the newest model's server.

        Raises:
            `ValueError`: if no night is committed.
            `RuntimeError`: if its server does not start.
        """
        self._use(await self._start(newest_model(self._folder)))
        self.watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.watching.cancel()
        with suppress(asyncio.CancelledError):
            await self.watching
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        if self._current:
            await self._current.close()

    @property
    def night(self) -> str:
        """Whose model answers now: night and entry."""
        assert self._current
        return self._current.committed.name

    @asynccontextmanager
    async def backend(self) -> AsyncIterator[Backend]:
        """The server to send a request to; it does not end within this context.

        Raises:
            `NoBackend`: if there is none within `HOLD` seconds.
        """
        try:
            async with asyncio.timeout(HOLD):
                while not (self._current and self._current.is_alive):
                    self._is_there.clear()
                    await self._is_there.wait()
        except TimeoutError:
            raise NoBackend from None
        backend = self._current
        with backend.busy():
            yield backend

    async def _start(self, committed: CommittedModel) -> Backend:
        backend = Backend(committed, self._kind, self._name, self._options)
        try:
            await backend.start()
        except BaseException:
            await backend.close()
            raise
        return backend

    def _use(self, backend: Backend) -> None:
        old, self._current = self._current, backend
        self._is_there.set()
        logger.info("%s answers from now on", backend.committed.name)
        if old:
            task = asyncio.create_task(_retire(old))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _watch(self) -> None:
        while True:
            assert self._current
            died = asyncio.create_task(self._current.died())
            await asyncio.wait([died], timeout=self._poll)
            if died.done():
                logger.error("The model server ended with exit code %d; it is started again", died.result())
                await self._start_again()
            else:
                died.cancel()
                await self._look()

    async def _look(self) -> None:
        """Go over to a new night's model, if there is one. If its server does not start, the old one stays."""
        try:
            found = await asyncio.to_thread(newest_model, self._folder)
        except (ValueError, OSError) as error:
            logger.debug("%s", error)  # a model is being written anew, which takes a moment
            return
        if not self._current or found.version in (self._current.committed.version, self._refused):
            return
        logger.info("%s is committed; its model server is started", found.name)
        try:
            self._use(await self._start(found))
        except (RuntimeError, ValueError, OSError) as error:
            self._refused = found.version
            logger.error("%s goes on answering. %s", self._current.committed.name, error)

    async def _start_again(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                self._use(await self._start(newest_model(self._folder)))
                return
            except (RuntimeError, ValueError, OSError) as error:
                logger.error("Tried again in %g seconds: %s", pause, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)


async def _retire(backend: Backend) -> None:
    """End a server when its last request has been answered."""
    try:
        await backend.idle.wait()
        logger.info("%s has answered its last request", backend.committed.name)
    finally:
        await backend.close()
