"""A console on which text is data: neither markup nor control codes in it have an effect."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from .visible import visible


class PlainConsole(Console):
    """A rich console that shows strings as they are, also those in tables. Only what is printed with a style has one.

    Args:
        **options: those of `rich.console.Console`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)
