"""A life without a fixed number of nights: it waits until enough was heard or for an hour, and sleeps. No torch."""

from .clock import Alarm, next_time
from .pending import Listener, Waiting, load_tokenizer
from .subprocess_night import Launcher
from .supervisor import Habits, Supervisor

__all__ = ["Alarm", "Habits", "Launcher", "Listener", "Supervisor", "Waiting", "load_tokenizer", "next_time"]
