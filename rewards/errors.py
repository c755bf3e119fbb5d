"""What a failed reward says: its exception in full, without the text of the batch, which is made of memories."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

LEFT_OUT = "[text of the batch]"
SHORTEST_RUN = 12  # characters; shorter runs that message and batch share are often plain English
FRAMES = 3
NAMES = ("part", "template")  # columns whose values are names, not text
QUOTED = re.compile(r"'([^']+)'|\"([^\"]+)\"")


class RewardError(RuntimeError):
    """A reward function failed.

    A reward function may raise it to explain what is wrong. Its message is shown as it is, so it must not quote the
    batch.
    """


def describe_error(error: Exception | SystemExit, call: Mapping[str, Any]) -> str:
    """Describe an exception of a reward function: its kind, where it was raised, and its message without text of the
    batch.

    Args:
        error (`Exception` or `SystemExit`):
            What the function raised.
        call (`Mapping[str, Any]`):
            The keywords that it was called with.
    """
    if isinstance(error, RewardError):
        return str(error)
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_guard(frame.filename)]
    places = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in own[-FRAMES:]]
    place = f" at {', '.join(reversed(places))}" if places else ""
    message = without_text(str(error), call)
    if "signal only works in main thread" in message:
        message += " (timeout_s runs a reward in a thread: leave it out, and let the reward limit its own time)"
    return f"it raised {type(error).__name__}{place}" + (f": {message}" if message else "")


def without_text(message: str, call: Mapping[str, Any]) -> str:
    """Return a message with what it quotes from the batch left out: whole values, quoted parts of them, and longer runs
    of characters."""
    texts = sorted({text for name, value in call.items() if name not in NAMES for text in _texts(value)}, key=len)
    for text in reversed(texts):
        for form in (text, repr(text)[1:-1], text.strip()):
            message = message.replace(form, LEFT_OUT) if form.strip() else message
    batch = "\n".join(texts)
    message = QUOTED.sub(lambda match: repr(LEFT_OUT) if (match[1] or match[2]) in batch else match[0], message)
    return _without_runs(message, batch)


def _without_runs(message: str, batch: str) -> str:
    kept, start = "", 0
    while start < len(message):
        end = start
        while end < len(message) and message[start : end + 1] in batch:
            end += 1
        is_quote = end - start >= SHORTEST_RUN
        kept += LEFT_OUT if is_quote else message[start]
        start = end if is_quote else start + 1
    return kept


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            if key != "role":
                yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _is_guard(filename: str) -> bool:
    return filename.endswith(("rewards/guard.py", "asyncio/tasks.py"))
