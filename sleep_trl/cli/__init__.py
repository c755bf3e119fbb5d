"""The command `sleep-trl`. Modules that load torch are imported inside the commands that need them."""

from .app import app, main

__all__ = ["app", "main"]
