"""The proof: it holds on a healthy machine, and does not where something is wrong."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from sleep_trl.cli import main
from sleep_trl.config import RolloutConfig
from sleep_trl.doctor import trial
from sleep_trl.doctor.run import covers
from sleep_trl.doctor.tiny import make_tokenizer
from sleep_trl.doctor.versions import PACKAGES, allowed, known_to_work
from sleep_trl.memory import MemorySpec
from sleep_trl.rollout import TransformersEngine
from sleep_trl.rollout.replica import ReplicaSpec
from sleep_trl.rollout.stopping import end_tokens
from sleep_trl.rollout.synced import InThisProcess, SyncedEngine
from sleep_trl.rollout.weights import GrownWeights

ROOT = Path(__file__).parents[2]


def call(capfd, *arguments) -> tuple[int, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *map(str, arguments)])
    return int(ended.value.code or 0), capfd.readouterr().out


def test_the_quickstart_is_go(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    given = "--config", "examples/quickstart/config.yaml", "--output_dir", tmp_path / "run"
    code, out = call(capfd, "--json", *given)
    told = json.loads(out)
    states = {finding["name"]: finding["state"] for finding in told["findings"]}
    assert code == 0 and told["go"] is True, out
    assert {states.pop(name) for name in trial.PARTS} == {"ok"}
    for name in ("trl", "tokenizer", "engine", "rewards", "plan", "teacher's prompts", "context"):
        assert states[name] == "ok"
    assert not (tmp_path / "run").exists()


def test_a_machine_alone_is_looked_at_and_shown(capfd):
    code, out = call(capfd, "--no-prove")
    assert code == 0
    assert out.splitlines()[-1].startswith("Go")
    assert "no run was given: --config FILE" in out and "teacher's prompts" not in out and "proof" not in out


def test_a_fault_is_shown_with_its_remedy(capfd, tmp_path):
    code, out = call(capfd, "--no-prove", "--config", tmp_path / "no.yaml")
    assert code == 2
    assert "→ Give the path of a YAML file." in out and out.splitlines()[-1].startswith("No go: 1 fault")


def test_every_package_has_a_range_and_a_tested_version_within():
    for package in PACKAGES:
        assert allowed()[package].specifier.contains(known_to_work()[package])


# -- what the proof would see ---------------------------------------------------------------------


@pytest.fixture
def made() -> trial.Trial:
    return trial.make_trial(RolloutConfig(engine="transformers"), MemorySpec(width=16, max_experts=3))


def with_replica(made):
    """Let the trial generate with an engine that has weights of its own, in this process."""
    weights = GrownWeights(made.memory, sorted(made.memory.records))
    tokenizer = make_tokenizer()
    spec = ReplicaSpec("transformers", weights.config(), tokenizer, tuple(end_tokens(made.memory.model, tokenizer)))
    made.engine = SyncedEngine(weights, partial(InThisProcess, spec.make(), "The engine", 64))
    return made.engine


def states(made: trial.Trial) -> list[str]:
    return [part(made).state for part in trial.PARTS.values()]


def test_routed_experts_and_engines_with_their_own_weights_pass(made):
    routed = trial.make_trial(RolloutConfig(engine="transformers"), MemorySpec(16, 3, "topk", top_k=1))
    assert states(routed) == ["ok"] * 4
    with_replica(made)
    assert states(made) == ["ok"] * 4


def test_a_wrong_weight_is_seen(made):
    engine = with_replica(made)
    assert trial.generate(made).state == "ok"
    down = engine.backend.replica.tensors["model.layers.0.mlp.down_proj.weight"]
    down[:, 3] += 0.5
    assert trial.generate(made).state == "fault"
    told = trial.update(made)
    assert told.state == "fault" and "down_proj" in told.found and "rollout.engine transformers" in told.remedy


def test_weights_that_do_not_travel_are_seen(made):
    engine = with_replica(made)
    engine.sync()
    engine._send = lambda *args, **kwargs: None  # the way on which they would travel is cut
    assert [part(made).state for part in (trial.generate, trial.hide_context, trial.update)] == ["ok", "ok", "fault"]


class Cutting(TransformersEngine):
    """An engine that leaves out a prompt's first word where the context is full."""

    def generate_batch(self, prompts, sampling):
        return super().generate_batch([p[:1] + p[2:] if len(p) > 200 else p for p in prompts], sampling)


def test_a_cut_prompt_is_seen(made):
    made.engine = Cutting(made.memory.model, make_tokenizer())
    assert trial.fill_context(made).state == "fault"


def test_an_expert_that_speaks_before_it_has_learnt_is_seen(made):
    with torch.no_grad():
        for _, parameter in made.memory.expert_parameters(made.expert):
            parameter.add_(0.05)
    assert trial.hide_context(made).state == "fault"


@pytest.mark.parametrize(
    ("windows", "are_whole"),
    [
        (["a b. ", "c d."], True),
        (["a b.", "b. c d."], True),
        (["a b. c d."], True),
        (["a b."], False),
        (["c d."], False),
        (["a ", " c d."], False),
    ],
)
def test_windows_cover_a_text_or_do_not(windows, are_whole):
    assert covers("a b. c d.", windows) is are_whole


def test_windows_of_a_text_that_repeats_itself():
    assert covers("la la la la la la", ["la la la", "la la la"])
    assert not covers("la la la la la la la", ["la la la", "la la la"])
