"""Keeps memories out of the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_row_dump() -> Iterator[None]:
    """Hold back TRL's warning that prints a whole row when every reward abstains on it.

    Self-replay rows have no reward by design, and a row holds text of a memory, which does not belong in a log.
    """
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    hold_back = _RowDump()
    logger.addFilter(hold_back)
    try:
        yield
    finally:
        logger.removeFilter(hold_back)


class _RowDump(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "All reward functions returned None" not in record.getMessage()
