"""The messages on `docs/faults.md` are those of the code."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from sleep_trl.config.exit_codes import DONE, FAILURE, STOPPED, TERMINATED, TRY_AGAIN, USER_ERROR
from tests.docs.test_pages import ROOT, text_of

MESSAGES = re.findall(r"^\| `([^`]*)` \| .* \| .* \|$", text_of("docs/faults.md"), re.MULTILINE)


def _text(node: ast.expr) -> str:
    """Return a string of the code, with … for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(map(_text, node.values)) if isinstance(node, ast.JoinedStr) else "…"


@cache
def strings() -> list[str]:
    paths = [path for top in ("sleep_trl", "trainers", "rewards", "launch") for path in (ROOT / top).rglob("*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    return [_text(node) for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant)]


def is_a_message(shown: str) -> bool:
    pattern = re.compile(".*?".join(re.escape(part.strip()) for part in shown.split("…")), re.DOTALL)
    return any(pattern.search(string) for string in strings())


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_has_this_message(message: str) -> None:
    assert is_a_message(message)


def test_a_message_that_is_gone_is_found() -> None:
    assert len(MESSAGES) > 35
    assert not is_a_message("has no column … Rename it") and is_a_message("holds an unfinished run")


def test_the_exit_codes_are_those_of_the_code() -> None:
    (line,) = re.findall(r"Exit codes: (.*?)\.", text_of("docs/faults.md").replace("\n", " "))
    assert [int(code) for code in re.findall(r"\b\d+\b", line)] == [
        DONE,
        FAILURE,
        USER_ERROR,
        TRY_AGAIN,
        STOPPED,
        TERMINATED,
    ]
