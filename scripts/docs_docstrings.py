"""Docstrings for mkdocstrings, which reads Google's form: what TRL's form has more than that is taken away."""

from __future__ import annotations

import re
from typing import Any

import griffe

LINKED = re.compile(r"\[(`[^`\n]+`)\](?!\()")  # a link in the documentation of Hugging Face
ARGUMENT = re.compile(r"^( +\*{0,2}\w+ )\((`.*)\):$", re.MULTILINE)  # name (`type`, *optional*, defaults to `value`):
RESULT = re.compile(r"^( +)`([^`\n]+)`: ", re.MULTILINE)  # of Returns and Raises


class TRLForm(griffe.Extension):
    """Turns docstrings in TRL's form into Google's."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_google(obj.docstring.value)


def as_google(text: str) -> str:
    """Return a docstring without the brackets and the quotes around types that Google's form does not have."""
    text = LINKED.sub(r"\1", text).replace("`~", "`")
    text = ARGUMENT.sub(lambda found: f"{found[1]}({found[2].split(', *optional*')[0].replace('`', '')}):", text)
    return RESULT.sub(r"\1\2: ", text)
