"""Wake: what is heard by day is checked and stored at once, and waits for a night."""

from .buffer import WakeBuffer
from .reading import Form, add_path, add_stream, follow
from .records import (
    MOST_BYTES,
    STATES,
    Listed,
    Position,
    Rejection,
    State,
    Tally,
    WakeRecord,
    record_of_line,
    record_of_text,
)

__all__ = [
    "MOST_BYTES",
    "STATES",
    "Form",
    "Listed",
    "Position",
    "Rejection",
    "State",
    "Tally",
    "WakeBuffer",
    "WakeRecord",
    "add_path",
    "add_stream",
    "follow",
    "record_of_line",
    "record_of_text",
]
