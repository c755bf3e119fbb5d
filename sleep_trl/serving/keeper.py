"""Keeps the newest night's model server running: restarts it when it dies, and replaces it when a night is committed.

A new server is started and checked while the old one still answers. The old one stops when its last request is
answered, so a swap needs memory for two models for a moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ..runs.checksums import check_folder
from ..runs.finished import CommittedModel, newest_model
from .backend import Backend, Kind

logger = logging.getLogger(__name__)

RESTART_TIMEOUT = 300.0  # seconds a request waits for a server that restarts, which takes vLLM a minute or two
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two attempts to restart a server
RETRY_PAUSE, LONGEST_RETRY_PAUSE = 30.0, 900.0  # seconds between two attempts to start the server of a new night


class NoBackend(RuntimeError):
    """No model server was available within `RESTART_TIMEOUT` seconds."""


class Keeper:
    """Runs the model server in use. Its task `watching` ends only if it fails.

    Args:
        folder (`Path`):
            Folder of a run, or of a chain of nights.
        kind (`str`):
            `vllm` or `transformers`.
        name (`str`):
            Name of the model for clients.
        options (`Sequence[str]`):
            Options for vLLM's server.
        poll (`float`):
            Seconds between two checks for a new night.
    """

    def __init__(self, folder: Path, kind: Kind, name: str, options: Sequence[str], poll: float) -> None:
        self._folder, self._kind, self._name, self._options, self._poll = folder, kind, name, options, poll
        self._current: Backend | None = None
        self._is_available = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()
        self._failed = ""  # version whose server did not start
        self._retry_at, self._pause = 0.0, RETRY_PAUSE  # when it is tried again

    async def __aenter__(self) -> Self:
        """Start the server of the newest model.

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
        """Night and entry of the model in use."""
        assert self._current
        return self._current.committed.name

    @asynccontextmanager
    async def backend(self) -> AsyncIterator[Backend]:
        """The server to send a request to, which is not stopped within this context.

        Raises:
            `NoBackend`: if none is available within `RESTART_TIMEOUT` seconds.
        """
        try:
            async with asyncio.timeout(RESTART_TIMEOUT):
                while not (self._current and self._current.is_alive):
                    self._is_available.clear()
                    await self._is_available.wait()
        except TimeoutError:
            raise NoBackend from None
        backend = self._current
        with backend.busy():
            yield backend

    async def _start(self, committed: CommittedModel) -> Backend:
        await asyncio.to_thread(check_folder, committed.path)
        backend = Backend(committed, self._kind, self._name, self._options)
        try:
            await backend.start()
        except BaseException:
            await backend.close()
            raise
        return backend

    def _use(self, backend: Backend) -> None:
        old, self._current = self._current, backend
        self._is_available.set()
        logger.info("%s is now in use", backend.committed.name)
        if old:
            task = asyncio.create_task(_retire(old))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _watch(self) -> None:
        while True:
            assert self._current
            ended = asyncio.create_task(self._current.wait())
            await asyncio.wait([ended], timeout=self._poll)
            if ended.done():
                logger.error("The model server ended with exit code %d; restarting it", ended.result())
                await self._restart()
            else:
                ended.cancel()
                await self._check_for_new_night()

    async def _check_for_new_night(self) -> None:
        """Switch to a new night's model if there is one. If its server does not start, the old one stays in use, and it
        is tried again later: it may still be copied, or the memory be needed elsewhere."""
        try:
            found = await asyncio.to_thread(newest_model, self._folder)
        except (ValueError, OSError) as error:
            logger.debug("%s", error)  # a model is being written, which takes a moment
            return
        if not self._current or found.version == self._current.committed.version:
            return
        if found.version == self._failed and time.monotonic() < self._retry_at:
            return
        logger.info("%s was committed; starting its model server", found.name)
        try:
            self._use(await self._start(found))
        except (RuntimeError, ValueError, OSError) as error:
            self._pause = min(2 * self._pause, LONGEST_RETRY_PAUSE) if found.version == self._failed else RETRY_PAUSE
            self._failed, self._retry_at = found.version, time.monotonic() + self._pause
            name = self._current.committed.name
            logger.error("%s stays in use, and the next attempt is in %g seconds. %s", name, self._pause, error)

    async def _restart(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                self._use(await self._start(newest_model(self._folder)))
                return
            except (RuntimeError, ValueError, OSError) as error:
                logger.error("Retrying in %g seconds: %s", pause, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)


async def _retire(backend: Backend) -> None:
    """Stop a server when its last request is answered."""
    try:
        await backend.idle.wait()
        logger.info("%s answered its last request; stopping its server", backend.committed.name)
    finally:
        await backend.close()
