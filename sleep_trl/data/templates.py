"""Prompt templates of the teacher, which sees a memory, and of the student, which does not.

A template is a Jinja file `NAME.j2`, rendered with `context` (the memory's text for the teacher, `None` for the
student), `request`, `source`, `hint` (a few words of the source) and `chat` (whether the model has a chat template). An
optional `NAME.ask.j2` next to it lets the teacher first write the `request`, such as a question; it also gets the
`sentence` to ask about, or `None` if `context` is a single sentence. `{% set stop = [...] %}` sets strings that end a
sample. Text that does not depend on `context` is shared by teacher and student. If a template has
`{% set reference = ... %}`, that is the sample, and nothing is generated: what the student learns is the teacher's
distribution along it. If it also has a `request`, that is a cue, a few words of the sentence, see
[`sleep_trl.data.cues`].

Worked examples in `NAME.examples.jsonl`, rows with `source`, `context`, `sentence`, `request` and `response`, come
before a prompt that has a context: small models write far better after them (ours).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes

from .sandbox import LimitedEnvironment, try_out

FOLDER = Path(__file__).parent / "templates"
VARIABLES = ("context", "request", "source", "hint", "sentence", "turn")
BUILT_IN = (
    "question_answer",
    "statement",
    "continuation",
    "paraphrase",
    "summary",
    "implications",
    "questions",
    "notes",
)


@dataclass(frozen=True)
class Prompt:
    """A rendered template: the text, the strings that end a completion, and the completion if it is given."""

    text: str
    stop: tuple[str, ...]
    reference: str | None = None


@dataclass(frozen=True)
class Example:
    """A worked example: the variables of its prompt, and the reply."""

    variables: tuple[tuple[str, str], ...]
    reply: str


@dataclass(frozen=True)
class PromptTemplate:
    """The template of one prompt, and worked examples of it."""

    jinja: jinja2.Template
    examples: tuple[Example, ...] = ()
    names: frozenset[str] = frozenset()  # of the variables that occur in it
    has_reference: bool = False

    def render(self, **variables: Any) -> Prompt:
        """Render the prompt. Trailing spaces are removed, since most tokenizers split words badly after them."""
        module = self.jinja.make_module({**dict.fromkeys(VARIABLES), "chat": False, **variables})
        return Prompt(str(module).rstrip(" "), tuple(getattr(module, "stop", ())), getattr(module, "reference", None))


@dataclass(frozen=True)
class Template:
    """A pair of prompts: one that asks the teacher for a request (optional), and one that asks for the response."""

    name: str
    ask: PromptTemplate | None
    respond: PromptTemplate

    @property
    def is_per_sentence(self) -> bool:
        """Whether it is about each sentence of a window, not about windows as a whole."""
        return "sentence" in self.respond.names or (self.ask is not None and "sentence" in self.ask.names)

    @property
    def is_given(self) -> bool:
        """Whether the samples are given, and not generated."""
        return self.respond.has_reference

    @property
    def takes_cues(self) -> bool:
        """Whether given samples are asked for by cues."""
        return self.is_given and self.ask is None and "request" in self.respond.names

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
        ask, rows = path.with_suffix(".ask.j2"), _read_examples(path.with_suffix(".examples.jsonl"))
        asked = _compile(ask, _examples(rows, "request")) if ask.is_file() else None
        return Template(path.stem, asked, _compile(path, _examples(rows, "response")))


@cache
def load_general() -> PromptTemplate:
    """Load the prompt of general samples: the text they begin with, if any."""
    return _compile(FOLDER / "general.j2")


def _read_examples(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not valid JSON: {error.msg}. Give one object a line.") from None
        if not isinstance(row, dict) or any(not isinstance(row.get(key), str) for key in ("context", "response")):
            raise ValueError(f"{path}, line {number}: a worked example needs the texts `context` and `response`.")
        rows.append(row)
    return rows


def _examples(rows: list[dict[str, str]], reply: str) -> tuple[Example, ...]:
    """Return the examples with this key as reply. Those of a request do not know it."""
    hidden = {"response", reply}
    return tuple(
        Example(tuple((key, row[key]) for key in VARIABLES if key in row and key not in hidden), row[reply])
        for row in rows
        if reply in row
    )


def _compile(path: Path, examples: tuple[Example, ...] = ()) -> PromptTemplate:
    environment = LimitedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)
    try:
        text = path.read_text(encoding="utf-8")
        tree = environment.parse(text)
        names = frozenset(jinja2.meta.find_undeclared_variables(tree))
        assigned = {node.target.name for node in tree.find_all(jinja2.nodes.Assign) if hasattr(node.target, "name")}
        template = PromptTemplate(environment.from_string(text), examples, names, "reference" in assigned)
    except (jinja2.TemplateSyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"The template {path} cannot be read: {error}. Correct its Jinja syntax.") from None
    if path.parent != FOLDER:
        for context in ("x", None):
            values = {**dict.fromkeys(VARIABLES, "x"), "context": context}
            try_out(partial(template.render, **values), str(path))
    return template
