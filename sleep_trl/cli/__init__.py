"""The command `sleep-trl`. What loads torch is imported inside the commands that need it."""

from .app import app, main

__all__ = ["app", "main"]
