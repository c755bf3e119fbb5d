"""Conversations into the wake buffer: what is new in a request, and its answer."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..wake import WakeBuffer, record_of_line

logger = logging.getLogger(__name__)

SOURCE = "chat"


class Recorder:
    """Writes conversations to a wake buffer, one after the other, from a thread of its own.

    Args:
        path (`Path`):
            The buffer's file; made if it is missing.

    Raises:
        `ValueError`: if the file is not a wake buffer or cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self._thread = ThreadPoolExecutor(1, "recorder")  # SQLite wants a connection used where it was opened
        self._buffer = self._thread.submit(WakeBuffer, path).result()

    async def record(self, request: dict[str, Any], answer: str) -> None:
        """Store an exchange; it is on the disk when this returns. What cannot be stored is logged, without its text,
        and harms no request."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._add, as_row(request, answer))
        except (sqlite3.Error, OSError, ValueError) as error:
            logger.error("A conversation was not recorded: %s", error)

    def _add(self, row: dict[str, Any]) -> None:
        tally = self._buffer.add([record_of_line("serve", json.dumps(row).encode(), row["source"])])
        for reason in tally.reasons:
            logger.warning("A conversation was not recorded: %s", reason)

    def close(self) -> None:
        """Close the buffer, when all has been written."""
        self._thread.submit(self._buffer.close).result()
        self._thread.shutdown()


def as_row(request: dict[str, Any], answer: str) -> dict[str, Any]:
    """Return a row for the wake buffer.

    A client sends the whole conversation with each request. So that nothing is learnt twice, only what comes behind the
    model's last answer is taken, and the new answer (ours). The source is `chat`, or `chat/NAME` if the request's
    `user` says whose it is, so that all that one user said can be forgotten by its source.

    Args:
        request (`dict`):
            Of `/v1/chat/completions` (has `messages`) or of `/v1/completions` (has `prompt`).
        answer (`str`):
            What the model said.
    """
    user = request.get("user")
    row = {"source": f"{SOURCE}/{user}" if isinstance(user, str) and user else SOURCE}
    if "messages" not in request:
        return row | {"text": request["prompt"] + answer}
    messages = request["messages"]
    said = [number for number, message in enumerate(messages, 1) if message["role"] == "assistant"]
    return row | {"messages": [*messages[said[-1] if said else 0 :], {"role": "assistant", "content": answer}]}
