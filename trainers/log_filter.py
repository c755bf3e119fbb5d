"""Keeps the text of memories out of the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from .trl_private import LOGGER


@contextmanager
def without_row_dump() -> Iterator[None]:
    """Suppress TRL's warning that prints a whole row when every reward abstains on it.

    Self-replay rows have no reward by design, and a row holds text of a memory, which must not be logged.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return "All reward functions returned None" not in record.getMessage()

    logger = logging.getLogger(LOGGER)
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
