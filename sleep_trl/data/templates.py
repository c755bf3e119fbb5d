"""Prompt templates: how the teacher is asked about a memory, and how the student is asked without it.

A template is a Jinja file `NAME.j2`, rendered with `context` (the memory's text for the teacher, nothing for the
student), `request`, `source` and `chat` (whether the model has a chat template). Beside it may stand `NAME.ask.j2`, by
which the teacher first thinks of a `request`, such as a question. `{% set stop = [...] %}` names strings that end a
sample. Text that does not depend on `context` is what teacher and student share.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

FOLDER = Path(__file__).parent / "templates"
BUILT_IN = ("question_answer", "continuation", "paraphrase", "summary", "implications", "questions", "notes")


@dataclass(frozen=True)
class Prompt:
    """A rendered template: the text, and the strings that end what follows it."""

    text: str
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """A pair of prompts: how the teacher thinks of a request (or nothing), and how a request is answered."""

    name: str
    ask: jinja2.Template | None
    respond: jinja2.Template

    @staticmethod
    def load(name: str) -> Template:
        """Load a built-in template by name, or a user's by the path of its `.j2` file.

        Raises:
            `ValueError`: if there is no such template, or it is not valid Jinja.
        """
        path = FOLDER / f"{name}.j2" if name in BUILT_IN else Path(name)
        if path.suffix != ".j2" or not path.is_file():
            raise ValueError(
                f"There is no template {name!r}. Built in are {', '.join(BUILT_IN)}; any other is given as the path "
                f"of a .j2 file."
            )
        ask = path.with_suffix(".ask.j2")
        return Template(path.stem, _compile(ask) if ask.is_file() else None, _compile(path))


def render(template: jinja2.Template, **variables: Any) -> Prompt:
    """Render a template. Its own white space at the end is kept off, since a prompt that ends in a space splits words
    badly in most tokenizers."""
    module = template.make_module({"context": None, "request": None, "source": None, "chat": False, **variables})
    return Prompt(str(module).rstrip(" "), tuple(getattr(module, "stop", ())))


def load_general() -> jinja2.Template:
    """Load the prompt of general samples (empty for a model without a chat template, which just begins)."""
    return _compile(FOLDER / "general.j2")


def _compile(path: Path) -> jinja2.Template:
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)
    try:
        return environment.from_string(path.read_text(encoding="utf-8"))
    except (jinja2.TemplateSyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"The template {path} cannot be read: {error}. See the Jinja syntax.") from None
