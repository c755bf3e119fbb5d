"""Commands of the documentation, held against the parsers that would read them. Nothing is run."""

from __future__ import annotations

import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from typer import BadParameter
from typer.main import get_command

from sleep_trl.cli import app
from sleep_trl.config.command_line import explain, parse

ROOT = Path(__file__).resolve().parents[2]
GAP = "…"  # options that the reader knows, or a value
SCRIPT = ("launch/sleep.py", "sleep_trl.launch.sleep")
OF_OTHERS = {".", "cd", "diff", "git", "pre-commit", "some-program"}  # programs that are not ours
VARIABLE = re.compile(r"[A-Z_]+=")
UsageError: Any = BadParameter.__mro__[1]  # typer brings its own click


def commands_of(block: str) -> list[list[str]]:
    """Return the commands of a shell block, each as its words, without comments and without variables before them."""
    found: list[list[str]] = []
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"\$\(.*\)", "path", line), posix=True, punctuation_chars="|&;")
        lexer.whitespace_split, command = True, list[str]()
        for word in [*lexer, ";"]:
            if word and set(word) <= set("|&;"):
                found += [command] if command else []
                command = []
            elif command or not VARIABLE.match(word):
                command.append(word)
    return found


def find_fault(words: list[str]) -> str | None:
    """Return what is wrong with a command, or `None`."""
    program, rest = words[0].removeprefix(".venv/bin/").removeprefix("try/bin/"), words[1:]
    try:
        if program == "sleep-trl":
            return _fault_of_ours(rest)
        if program == "make":
            return _fault_of_make(rest)
        if program == "pip":
            return _fault_of_pip(rest)
        if program == "accelerate":
            return _fault_of_accelerate(rest)
        if program == "python" and rest[:2] == ["-m", "pytest"]:
            return _missing([word for word in rest[2:] if not word.startswith("-")])
        if program == "python" and rest[0] != "-m":
            return _fault_of_script(rest)
    except UsageError as error:
        return error.format_message()
    except ValueError as error:
        return explain(error)
    is_of_others = program in OF_OTHERS or rest[:2] == ["-m", "venv"]
    return None if is_of_others else f"no parser for {program}"


def _missing(paths: list[str]) -> str | None:
    absent = [path for path in paths if not (ROOT / path).exists()]
    return f"{', '.join(absent)} does not exist" if absent else None


@cache
def _command() -> Any:
    return get_command(app)


def _fault_of_ours(words: list[str]) -> str | None:
    """Parse the words of `sleep-trl`; a gap may stand for what is required."""
    command = _command()
    context = command.make_context("sleep-trl", [], resilient_parsing=True)
    is_partial = GAP in words
    while hasattr(command, "commands"):
        if not words:
            return None  # names a group
        if words[0].startswith("-"):
            command.make_context("sleep-trl", list(words), resilient_parsing=True)
            return None
        command, words = command.commands.get(words[0]), words[1:]
        if command is None:
            return "no such command"
    hands_on = command.context_settings.get("ignore_unknown_options")  # to launch/sleep.py
    ours = [word for word in words if word != GAP or hands_on]
    if command.name == "night":
        return _fault_of_run(words)
    parsed = command.make_context(command.name, ours, parent=context, resilient_parsing=is_partial)
    if hands_on and parsed.args:
        return _fault_of_run([*parsed.args, GAP])
    return None


def _fault_of_run(words: list[str]) -> str | None:
    """Parse the words of `launch/sleep.py`. A file of the reader's is taken as empty."""
    given, left = [], list(words)
    is_partial = GAP in left
    while left:
        word = left.pop(0)
        if word == GAP:
            continue
        value = left[0] if word.startswith("--") and left and not left[0].startswith("--") else None
        is_file = word == "--config" or (word == "--seeding.extra" and (value or "").endswith(".yaml"))
        if value == GAP or (is_file and value and not (ROOT / value).exists()):
            left.pop(0)
            is_partial = True
        elif word == "--help":
            continue
        else:
            given.append(str(ROOT / word) if given and given[-1] == "--config" else word)
    names = {word.partition("=")[0] for word in given}
    if is_partial or "--help" in words:
        given += ["--model=m"] if "--model" not in names else []
        given += ["--memories=m"] if not names & {"--memories", "--nights"} else []
    parse(given)
    return None


def _fault_of_accelerate(words: list[str]) -> str | None:
    from accelerate.commands.launch import launch_command_parser

    arguments = launch_command_parser().parse_args(words[1:])
    if arguments.config_file and (fault := _missing([arguments.config_file])):
        return fault
    if arguments.training_script not in SCRIPT:
        return f"{arguments.training_script} is not launched here"
    return _fault_of_run(arguments.training_script_args)


def _fault_of_script(words: list[str]) -> str | None:
    """Check that a script exists and has the options that are given: by its parser if it is ours or TRL's, else by its
    text."""
    script, rest = words[0], words[1:]
    if script == SCRIPT[0]:
        return _fault_of_run(rest)
    if fault := _missing([script]):
        return fault
    names = {word.partition("=")[0] for word in rest if word.startswith("--")}
    if (ROOT / script).name.startswith("extend_"):
        known = _options_of_trl(Path(script).stem)
        return f"{names - known} are no options" if names - known else None
    text = "".join(path.read_text("utf-8") for path in [ROOT / script, *(ROOT / script).parent.glob("_*.py")])
    unknown = sorted(name for name in names if f'"{name}"' not in text)
    return f"{', '.join(unknown)} is no option of {script}" if unknown else None


@cache
def _options_of_trl(example: str) -> frozenset[str]:
    from dataclasses import fields

    from trl import DPOConfig, GRPOConfig, ModelConfig, ScriptArguments, SFTConfig
    from trl.scripts.grpo import GRPOScriptArguments

    classes: tuple[type, ...] = {
        "extend_sft": (ScriptArguments, SFTConfig),
        "extend_dpo": (ScriptArguments, DPOConfig),
        "extend_grpo": (GRPOScriptArguments, GRPOConfig),
    }[example]
    return frozenset(f"--{field.name}" for one in (*classes, ModelConfig) for field in fields(one))


def _fault_of_make(words: list[str]) -> str | None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for word in words:
        if word == GAP:
            continue
        pattern = rf"^{word.split('=')[0]} *[?:]?=" if "=" in word else rf"^{re.escape(word)}:"
        if not re.search(pattern, makefile, re.MULTILINE):
            return f"{word} is not in the Makefile"
    return None


def _fault_of_pip(words: list[str]) -> str | None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for extras in re.findall(r"(?:sleep-trl|\.)\[([\w,]+)\]", " ".join(words)):
        if unknown := set(extras.split(",")) - known.keys():
            return f"{unknown} is no extra"
    return None
