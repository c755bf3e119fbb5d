"""Code blocks and commands of the documentation: Python compiles and imports what exists, commands are read by the
parsers of their programs, YAML by the configuration. Two blocks are run, in `tests/test_readme.py` and
`tests/trainers/test_dreaming_page.py`."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
from collections.abc import Iterator
from textwrap import dedent
from typing import NamedTuple

import pytest
import yaml

from sleep_trl.config import RunConfig
from tests.docs.commands import commands_of, find_fault
from tests.docs.test_pages import INLINE, PAGES, text_of

LANGUAGES = {"bash", "console", "json", "jsonl", "python", "text", "yaml"}
BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks(page: str) -> Iterator[Block]:
    text = text_of(page)
    for match in BLOCK.finditer(text):
        yield Block(match[2], dedent(match[3]), text.count("\n", 0, match.start()) + 1)


def of(page: str, *languages: str) -> list[Block]:
    return [block for block in blocks(page) if block.language in languages]


def faults_of_imports(code: str) -> list[str]:
    """Return what a block imports from this package that is not there."""
    faults = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sleep_trl":
            module = importlib.import_module(node.module)
            faults += [f"{node.module}.{name.name}" for name in node.names if not hasattr(module, name.name)]
    return faults


def faults_of_json(text: str) -> list[str]:
    """Return the fault of a block with one value after another."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        try:
            text = text[decoder.raw_decode(text)[1] :].lstrip()
        except ValueError as error:
            return [str(error)]
    return []


@pytest.mark.parametrize("page", PAGES)
def test_each_block_has_a_language_that_is_checked(page: str) -> None:
    assert [block for block in blocks(page) if block.language not in LANGUAGES] == []
    assert text_of(page).count("```") == 2 * len(list(blocks(page)))


@pytest.mark.parametrize("page", PAGES)
def test_python_compiles_and_imports_what_exists(page: str) -> None:
    for block in of(page, "python"):
        compile(block.text, f"{page}:{block.line}", "exec")
        assert faults_of_imports(block.text) == []


@pytest.mark.parametrize("page", PAGES)
def test_json_and_yaml_are_read(page: str) -> None:
    for block in of(page, "json", "jsonl"):
        assert faults_of_json(block.text) == [], f"{page}:{block.line}"
    for block in of(page, "yaml"):
        RunConfig.model_validate({"model": "m", "memories": "m", **yaml.safe_load(block.text)})


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_read_by_their_parsers(page: str) -> None:
    for block in of(page, "bash"):
        done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{page}:{block.line}: {done.stderr}"
    commands = [command for block in of(page, "bash") for command in commands_of(block.text)]
    for block in of(page, "console"):
        commands += [line.split("<")[0].split() for line in block.text.splitlines() if line.startswith("python ")]
    commands += [command for code in INLINE.findall(text_of(page)) for command in inline_commands(code)]
    faults = {" ".join(command): fault for command in commands if (fault := find_fault(command))}
    assert faults == {}


def inline_commands(code: str) -> list[list[str]]:
    """Return a command in inline code, of which only the beginning may be given."""
    is_command = re.match(r"(sleep-trl|make|python \w+/|accelerate launch|pip install) ?[\w.'-]", code)
    return [[*command, "…"] for command in commands_of(code)] if is_command else []


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("sleep-trl wake add docs --bufer x", "No such option: --bufer"),
        ("sleep-trl gone", "no such command"),
        ("sleep-trl memory drop", "Missing argument"),
        ("sleep-trl night --model m", "memories is missing"),
        ("sleep-trl doctor --seeding.alfa 1", "seeding.alfa is not an option"),
        ("accelerate launch launch/sleep.py … --seeding.alpha 2", "seeding.alpha"),
        ("accelerate launch --config_file launch/gone.yaml launch/sleep.py …", "does not exist"),
        ("python benchmarks/crash.py --deaths 5", "--deaths is no option"),
        ("python examples/extend_sft.py --learning_rat 1", "no options"),
        ("make gone", "not in the Makefile"),
        ("pip install 'sleep-trl[gone]'", "no extra"),
        ("unheard-of program", "no parser"),
    ],
)
def test_a_wrong_command_is_found(command: str, fault: str) -> None:
    (words,) = commands_of(command)
    assert fault in str(find_fault(words))
