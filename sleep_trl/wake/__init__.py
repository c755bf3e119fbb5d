"""Wake: records are checked, stored at once, and wait for a night."""

from .buffer import WakeBuffer
from .following import follow
from .reading import Form, add_path, add_stream
from .records import (
    MAX_BYTES,
    STATES,
    Position,
    RecordInfo,
    Rejection,
    State,
    Tally,
    WakeRecord,
    record_of_line,
    record_of_text,
)

__all__ = [
    "MAX_BYTES",
    "STATES",
    "Form",
    "Position",
    "RecordInfo",
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
