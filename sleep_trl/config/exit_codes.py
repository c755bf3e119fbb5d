"""The exit codes of `launch/sleep.py` and of `sleep-trl`."""

from __future__ import annotations

import os

DONE = 0
FAILURE = 1
"""A full disk, a server that does not start, and whatever ends in a traceback."""
USER_ERROR = 2
"""Invalid input; `doctor` found a fault; `wake add` rejected records."""
TRY_AGAIN = getattr(os, "EX_TEMPFAIL", 75)
"""Another process works on the run, or has changed what a night began with."""
STOPPED = 130
"""Stopped by Ctrl-C."""
TERMINATED = 143
"""Stopped by SIGTERM."""
