"""Arguments that trainers share with a run: written once, documented as they are."""

import dataclasses
import inspect
import re

import pytest
from transformers import HfArgumentParser
from trl import GRPOConfig, GRPOTrainer

from sleep_trl.config import RunConfig
from sleep_trl.config.command_line import options
from sleep_trl.config.dreaming import DreamConfig
from sleep_trl.config.sections import SeedingConfig
from sleep_trl.trainers import DreamingConfig, DreamingTrainer, KnowledgeSeedingConfig, KnowledgeSeedingTrainer
from sleep_trl.trainers.options import shared_options, with_present_names

SEEDING = """alpha divergence_beta drift_weight expert_dropout gamma gradient_checkpointing learning_rate lmbda
logging_steps lr_scheduler_type max_completion_length max_grad_norm num_generations reference_passes replay_weight
rollout_start
save_steps sft_weight warmup_steps z0"""
DREAMING = """chunk confidence em_epochs gpus_per_worker improvement judge learning_rate lora_alpha lora_learning_rate
lora_rank lora_steps measure random_expert repeats rounds select_random_k select_top_k selection smallest_reward test
workers"""
RENAMED = {"top_k": "select_top_k", "random_k": "select_random_k"}


@pytest.mark.parametrize(
    ("section", "arguments", "renamed", "names"),
    [(SeedingConfig(), KnowledgeSeedingConfig, {}, SEEDING), (DreamConfig(), DreamingConfig, RENAMED, DREAMING)],
)
def test_options_of_a_run_are_passed_on_by_name(section, arguments, renamed, names):
    """A list, so that a field that a new TRL brings is not set by an option of the same name unseen."""
    assert sorted(shared_options(section, arguments, renamed)) == sorted(names.split())
    assert shared_options(section, arguments)["learning_rate"] == section.learning_rate


@pytest.mark.parametrize("arguments", [KnowledgeSeedingConfig, DreamingConfig])
def test_no_argument_means_something_else_in_grpo(arguments):
    """A `top_k` that selected dreams once also restricted the sampling of their tokens."""
    inherited = {field.name for field in dataclasses.fields(GRPOConfig)}
    assert set(arguments.__annotations__) & inherited <= {"learning_rate"}


@pytest.mark.parametrize("arguments", [KnowledgeSeedingConfig, DreamingConfig])
def test_the_docstring_has_every_argument_with_its_default(arguments):
    inherited = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}
    ours = {f.name: f.default for f in dataclasses.fields(arguments) if inherited.get(f.name, "none") != f.default}
    documented = re.findall(r"^ +(\w+) \(`[^)]*\*optional\*(?:, defaults to `(.*)`)?\):$", arguments.__doc__, re.M)
    found = {name: eval(default) if default else None for name, default in documented}
    assert found == ours


@pytest.mark.parametrize("arguments", [KnowledgeSeedingConfig, DreamingConfig])
def test_the_arguments_can_be_parsed_and_have_help(arguments, capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(arguments).parse_args(["--help"])
    assert "--alpha" in capsys.readouterr().out or arguments is DreamingConfig


@pytest.mark.parametrize("trainer", [KnowledgeSeedingTrainer, DreamingTrainer])
def test_arguments_come_in_the_order_of_grpo(trainer):
    theirs = list(inspect.signature(GRPOTrainer).parameters.values())
    ours = [p for p in inspect.signature(trainer).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in ours] == [p.name for p in theirs[: len(ours)]] and len(ours) == 6


@pytest.mark.parametrize("arguments", [KnowledgeSeedingConfig, DreamingConfig])
def test_help_names_only_what_the_trainer_has(arguments):
    of_runs = {name for name, _ in options(RunConfig) if "." in name} | set(RunConfig.model_fields)
    of_runs -= {field.name for field in dataclasses.fields(arguments)}
    for field in dataclasses.fields(arguments):
        named = set(re.findall(r"[a-z_]+(?:\.[a-z_]+)+|\b[a-z]+_[a-z_]+\b", field.metadata.get("help", "")))
        assert not named & of_runs, field.name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"test": "ttest"}, "test must be 'sign', 'bootstrap' or 'mcnemar', got 'ttest'"),
        ({"selection": "best"}, "selection must be 'gradient_norm', .* or 'all', got 'best'"),
        ({"metric": "bleu"}, "metric must be 'exact', 'contains' or 'f1', got 'bleu'"),
        ({"improvement": "ppo"}, "improvement must be 'rest_em' or 'grpo', got 'ppo'"),
        ({"confidence": 95}, "confidence must be less than 1, got 95"),
        ({"repeats": 0}, "repeats must be greater than or equal to 1, got 0"),
        ({"chunk": 0}, "chunk must be greater than or equal to 1, got 0"),
        ({"select_top_k": 8}, r"select_top_k \(8\) and select_random_k \(1\) select 9 of 8 dreams per task"),
        ({"select_top_k": 0, "select_random_k": 0}, "select 0 of 8 dreams"),
    ],
)
def test_a_value_that_dreaming_does_not_allow_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        DreamingConfig(str(tmp_path), bf16=False, use_cpu=True, **given)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    args = DreamingConfig(str(tmp_path), bf16=False, use_cpu=True, lora_learning_rate="1e-3")
    assert args.lora_learning_rate == 1e-3


def test_dreaming_learns_as_fast_as_in_a_night(tmp_path):
    assert DreamingConfig(str(tmp_path), bf16=False, use_cpu=True).learning_rate == DreamConfig().learning_rate


@dataclasses.dataclass
class Former:
    """Names of transformers 5.17, with a default of TRL's."""

    gradient_checkpointing: bool = True
    gradient_checkpointing_kwargs: dict | None = None


@dataclasses.dataclass
class Present(Former):
    """Names of transformers 5.24, which warns if a former one has a value and the present one has none."""

    activation_checkpointing: bool | None = None
    activation_checkpointing_kwargs: dict | None = None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"gradient_checkpointing": False}, {"activation_checkpointing": False}),
        ({"gradient_checkpointing": False, "activation_checkpointing": True}, {"activation_checkpointing": True}),
        ({"lr": 1}, {"lr": 1, "activation_checkpointing": True}),
    ],
)
def test_arguments_have_the_names_that_transformers_wants(given, expected):
    assert with_present_names(given, Present) == expected
    assert with_present_names(given, Former) == given
