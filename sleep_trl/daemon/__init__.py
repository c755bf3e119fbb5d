"""`sleep-trl live`: starts nights when enough records are pending or at a scheduled time. Imports no torch."""

from .clock import Alarm, next_time
from .pending import Pending, PendingRecords, load_tokenizer
from .subprocess_night import Launcher
from .supervisor import SleepPolicy, Supervisor

__all__ = ["Alarm", "Launcher", "Pending", "PendingRecords", "SleepPolicy", "Supervisor", "load_tokenizer", "next_time"]
