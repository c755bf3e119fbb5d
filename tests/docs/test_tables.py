"""Tables of what is taken from OpenAI's clients and from TRL, against the code that takes it."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from trl import GRPOConfig

from sleep_trl.config import SeedingConfig
from sleep_trl.planning.grpo_arguments import NOT_WITH_EXPERTS, SET_BY_THE_RUN, WITHOUT_EFFECT
from sleep_trl.serving import fields as openai
from tests.docs.test_pages import text_of

ARGUMENTS = [field.name for field in fields(GRPOConfig)]


def rows(page: str, section: str) -> list[tuple[str, str]]:
    """Return the cells of the two-column table in a section, without its head."""
    text = re.split(rf"^#+ {section}$", text_of(page), flags=re.MULTILINE)[1]
    body = re.split(r"^\| --- .*$|^#", text, flags=re.MULTILINE)[1]
    return re.findall(r"^\| (.*?) \| (.*?) \|$", body, re.MULTILINE)


def names(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


def test_arguments_of_trl_in_a_night() -> None:
    taken = [name for _, cell in rows("docs/trl_arguments.md", "Taken") for name in names(cell)]
    set_by_run = {names(name)[0]: names(option)[0] for name, option in rows("docs/trl_arguments.md", "Set by the run")}
    refused = {names(name)[0]: reason for name, reason in rows("docs/trl_arguments.md", "Refused")}
    ignored = {reason: tuple(names(cell)) for reason, cell in rows("docs/trl_arguments.md", "Without effect")}
    seeding = {name: f"seeding.{name}" for name in SeedingConfig.model_fields}

    assert set_by_run == {name: {**SET_BY_THE_RUN, **seeding}[name] for name in set_by_run}
    assert set_by_run.keys() == set(ARGUMENTS) & (SET_BY_THE_RUN.keys() | seeding.keys())
    assert refused == NOT_WITH_EXPERTS
    assert ignored == WITHOUT_EFFECT
    listed = [*taken, *set_by_run, *refused, *(name for group in ignored.values() for name in group)]
    assert sorted(listed) == sorted(ARGUMENTS)  # each once


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (
            "supported",
            openai.PASSED_ON - {"frequency_penalty", "logit_bias", "model", "stop", "tools"}
            | {"stream_options.include_usage"},
        ),
        ("rejected, unless the value is the default", openai.IGNORED_BY_TRANSFORMERS.keys() - {"generation_config"}),
        ("ignored", openai.WITHOUT_EFFECT - {"store", "stream_options", "user"}),
        ("for [recording](#record)", {"store", "user"}),
    ],
)
def test_fields_of_openai_by_what_becomes_of_them(says: str, expected: set[str]) -> None:
    found = {
        name for cell, fate in rows("docs/serving.md", "With transformers") if fate == says for name in names(cell)
    }
    assert found == expected


def test_every_field_of_openai_is_in_the_table() -> None:
    listed = {name.split(".")[0] for cell, _ in rows("docs/serving.md", "With transformers") for name in names(cell)}
    known = openai.PASSED_ON | openai.WITHOUT_EFFECT | openai.IGNORED_BY_TRANSFORMERS.keys()
    assert listed == known - {"generation_config", "model"} | {"chat_template_kwargs"}
