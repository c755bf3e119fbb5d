"""A new configuration file: what it says is what the model of the configuration says."""

from __future__ import annotations

import re
from itertools import pairwise

import yaml

from sleep_trl.config import RunConfig
from sleep_trl.config.command_line import options
from sleep_trl.config.new_file import OFTEN_CHANGED, new_file
from sleep_trl.config.option_help import summary

GIVEN = {"model": "Qwen/Qwen3-0.6B", "memories": "a: [b] #c", "output_dir": "~/x y"}


def test_only_what_was_given_is_set() -> None:
    assert yaml.safe_load(new_file(GIVEN)) == GIVEN


def test_every_setting_can_be_uncommented_and_shows_its_default() -> None:
    text = new_file(GIVEN)
    uncommented = re.sub(r"^#(?! )|^#(?=  \w+:)", "", text, flags=re.MULTILINE)
    values = yaml.safe_load(uncommented)
    assert RunConfig.model_validate(values) == RunConfig.model_validate(GIVEN)
    named = {
        f"{name}.{inner}" if isinstance(value, dict) and inner else name
        for name, value in values.items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    assert named == set(OFTEN_CHANGED) and named <= dict(options()).keys()


def test_each_setting_follows_one_line_of_its_help() -> None:
    lines, fields, section = new_file(GIVEN).splitlines(), dict(options()), ""
    assert max(map(len, lines)) <= 120
    for above, line in pairwise(lines):
        name, indent = line.strip("# ").partition(":")[0], line.lstrip("#").startswith("  ")
        if re.match(r"#\w+:$", line):
            section = f"{name}."
        elif line and not line.lstrip().startswith("# "):
            assert above.strip() == f"# {summary(fields[section * indent + name])}"


def test_summary_is_a_sentence_with_what_is_allowed() -> None:
    shown = {name: summary(field) for name, field in options()}
    assert shown["seeding.steps"] == "Optimizer steps per night, instead of passes (paper: 100). At least 1."
    assert shown["dtype"] == "Dtype of the frozen base. One of auto, float32, bfloat16."
    assert shown["max_context"].endswith("in tokens. At least 32. Default: the model's limit.")
    assert shown["memories"] == "What to learn."  # the list that follows is longer than a line
    assert not [name for name, line in shown.items() if any(line.count(a) != line.count(b) for a, b in ("()", "{}"))]
    assert not [name for name, line in shown.items() if not re.fullmatch(r"[A-Z\w].*\w.*\.", line)]
