"""Prompt templates of the teacher, which sees a memory, and of the student, which does not.

A template is a Jinja file `NAME.j2`, rendered with `context` (the memory's text for the teacher, `None` for the
student), `request`, `source` and `chat` (whether the model has a chat template). An optional `NAME.ask.j2` next to it
lets the teacher first write the `request`, such as a question. `{% set stop = [...] %}` sets strings that end a sample.
Text that does not depend on `context` is shared by teacher and student.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

FOLDER = Path(__file__).parent / "templates"
BUILT_IN = ("question_answer", "continuation", "paraphrase", "summary", "implications", "questions", "notes")


@dataclass(frozen=True)
class Prompt:
    """A rendered template: the text, and the strings that end a completion."""

    text: str
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """A pair of prompts: one that asks the teacher for a request (optional), and one that asks for the response."""

    name: str
    ask: jinja2.Template | None
    respond: jinja2.Template

    @staticmethod
    def load(name: str) -> Template:
        """Load a built-in template by name, or your own by the path of its `.j2` file.

        Raises:
            `ValueError`: if there is no such template, or it is not valid Jinja.
        """
        path = FOLDER / f"{name}.j2" if name in BUILT_IN else Path(name)
        if path.suffix != ".j2" or not path.is_file():
            raise ValueError(
                f"There is no template {name!r}. Give a built-in one ({', '.join(BUILT_IN)}) or the path of a .j2 file."
            )
        ask = path.with_suffix(".ask.j2")
        return Template(path.stem, _compile(ask) if ask.is_file() else None, _compile(path))


def render(template: jinja2.Template, **variables: Any) -> Prompt:
    """Render a template. Trailing spaces are removed, since most tokenizers split words badly after them."""
    module = template.make_module({"context": None, "request": None, "source": None, "chat": False, **variables})
    return Prompt(str(module).rstrip(" "), tuple(getattr(module, "stop", ())))


@cache
def load_general() -> jinja2.Template:
    """Load the prompt of general samples: the text they begin with, if any."""
    return _compile(FOLDER / "general.j2")


def _compile(path: Path) -> jinja2.Template:
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)
    try:
        return environment.from_string(path.read_text(encoding="utf-8"))
    except (jinja2.TemplateSyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"The template {path} cannot be read: {error}. Correct its Jinja syntax.") from None
