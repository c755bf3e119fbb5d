"""Records conversations in a wake buffer: the new messages of a request, and the answer."""

from __future__ import annotations

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..data.thoughts import without_thoughts
from ..wake import WakeBuffer, record_of_line

logger = logging.getLogger(__name__)

SOURCE = "chat"
PATIENCE = 2.0  # seconds that an answer waits for its recording
MOST_WAITING = 1000  # exchanges that wait for the buffer; further ones are not recorded


class Recorder:
    """Writes conversations to a wake buffer from its own thread.

    Args:
        path (`Path`):
            The buffer's file, created if it is missing.

    Raises:
        `ValueError`: if the file is not a wake buffer or cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self._thread = ThreadPoolExecutor(1, "recorder")  # an SQLite connection must stay in its thread
        self._waiting = 0
        self._buffer = self._thread.submit(WakeBuffer, path).result()

    async def record(self, request: dict[str, Any], answer: str) -> None:
        """Store an exchange. It is on disk when this returns, unless the buffer is busy: then it is stored a little
        later. Whatever fails, such as a full disk, is logged without the text and does not affect the request."""
        if self._waiting >= MOST_WAITING:
            logger.error("A conversation was not recorded: %d others wait for the wake buffer", self._waiting)
            return
        self._waiting += 1
        stored = asyncio.get_running_loop().run_in_executor(self._thread, self._add, as_row(request, answer))
        stored.add_done_callback(self._count_done)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(stored), PATIENCE)

    def _add(self, row: dict[str, Any]) -> None:
        try:
            tally = self._buffer.add([record_of_line("serve", json.dumps(row).encode(), row["source"])])
            for reason in tally.reasons:
                logger.warning("A conversation was not recorded: %s", reason)
        except Exception as error:  # recording must not harm a request, whatever happens
            logger.error("A conversation was not recorded: %s", error)

    def _count_done(self, _: asyncio.Future[None]) -> None:
        self._waiting -= 1

    def close(self) -> None:
        """Close the buffer after all writes."""
        self._thread.submit(self._buffer.close).result()
        self._thread.shutdown()


def as_row(request: dict[str, Any], answer: str) -> dict[str, Any]:
    """Return a row for the wake buffer.

    A client sends the whole conversation with each request. To learn nothing twice, only the messages after the model's
    last answer are kept, with the new answer (ours). The source is `chat`, or `chat/NAME` if the request names a
    `user`, so that everything from one user can be forgotten by its source.

    Args:
        request (`dict`):
            Body of a request to `/v1/chat/completions` (`messages`) or `/v1/completions` (`prompt`).
        answer (`str`):
            The model's answer, which is kept without its thoughts.
    """
    answer = without_thoughts(answer)
    user = request.get("user")
    row = {"source": f"{SOURCE}/{user}" if isinstance(user, str) and user else SOURCE}
    if "messages" not in request:
        return row | {"text": request["prompt"] + answer}
    messages = request["messages"]
    answers = [number for number, message in enumerate(messages, 1) if message["role"] == "assistant"]
    return row | {"messages": [*messages[answers[-1] if answers else 0 :], {"role": "assistant", "content": answer}]}
