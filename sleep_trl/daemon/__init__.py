"""A life without a fixed number of nights: it waits until enough was heard or for an hour, and sleeps. No torch."""

from .clock import Alarm, next_time
from .pending import PendingRecords, Waiting, load_tokenizer
from .subprocess_night import Launcher
from .supervisor import SleepPolicy, Supervisor

__all__ = ["Alarm", "Launcher", "PendingRecords", "SleepPolicy", "Supervisor", "Waiting", "load_tokenizer", "next_time"]
