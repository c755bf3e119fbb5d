"""A Jinja environment for templates of users: no access to Python, and limits on time, length and operators."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any, Protocol

import jinja2
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment

LONGEST = 1_000_000  # characters that a template may write, or elements that an operator may make
WIDE = re.compile(r"%[^a-zA-Z%]*(?:\d{7}|\*)")  # a width in a format that is too large, or comes from a value
TIME = 5.0  # seconds that a template may take


class Rendered(Protocol):
    """What a template writes."""

    @property
    def text(self) -> str: ...


class LimitedEnvironment(SandboxedEnvironment):
    """A sandbox in which the operators `*`, `**` and `%` make no huge value. Concatenation in a loop and methods and
    filters with a large width, such as `center`, still can: [`try_out`] limits their time and what they write, but not
    their memory."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, str | list | tuple) and isinstance(times, int) and len(text) * times > LONGEST:
                    raise jinja2.TemplateRuntimeError(
                        f"a value of {len(text) * times:,} elements, of at most {LONGEST:,}"
                    )
        elif operator == "**" and isinstance(right, int) and abs(right) > 64:
            raise jinja2.TemplateRuntimeError(f"an exponent of {right:,}, of at most 64")
        elif operator == "%" and isinstance(left, str) and WIDE.search(left):
            raise jinja2.TemplateRuntimeError(f"a field of millions of characters in a format, of at most {LONGEST:,}")
        return super().call_binop(context, operator, left, right)


def try_out(render: Callable[[], Rendered], name: str) -> None:
    """Render a template once.

    Raises:
        `ValueError`: if it takes too long, writes too much, or cannot be rendered.
    """
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["text"] = render().text
        except Exception as error:  # also what the template's filters raise
            outcome["error"] = error

    thread = threading.Thread(target=work, name="sleep-trl-template", daemon=True)
    thread.start()
    thread.join(TIME)
    if thread.is_alive():
        raise ValueError(f"The template {name} takes longer than {TIME:g} s for a short text. Remove its long loop.")
    if (error := outcome.get("error")) is not None:
        raise ValueError(f"The template {name} cannot be rendered: {type(error).__name__}: {error}. Correct it.")
    if len(outcome["text"]) > LONGEST:
        raise ValueError(
            f"The template {name} writes {len(outcome['text']):,} characters. At most {LONGEST:,} are allowed."
        )
