"""The smoke test: it passes on a healthy machine, and fails where something is wrong."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from sleep_trl.cli import main
from sleep_trl.config import RolloutConfig
from sleep_trl.doctor import Case, machine, smoke_test
from sleep_trl.doctor.run import covers
from sleep_trl.doctor.smoke_test import Trial, make_tokenizer, make_trial
from sleep_trl.memory import MemorySpec
from sleep_trl.rollout import TransformersEngine
from sleep_trl.rollout.replica import ReplicaSpec
from sleep_trl.rollout.stopping import end_tokens
from sleep_trl.rollout.synced import InThisProcess, SyncedEngine
from sleep_trl.rollout.weights import GrownWeights

ROOT = Path(__file__).parents[2]


def run_doctor(capfd, *arguments) -> tuple[int, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *map(str, arguments)])
    return int(ended.value.code or 0), capfd.readouterr().out


def test_the_quickstart_passes(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    options = "--config", "examples/quickstart/config.yaml", "--output_dir", tmp_path / "run"
    code, out = run_doctor(capfd, "--json", *options)
    report = json.loads(out)
    states = {finding["name"]: finding["state"] for finding in report["findings"]}
    assert code == 0 and report["go"] is True, out
    assert {states.pop(name) for name in smoke_test.CHECKS} == {"ok"}
    for name in ("trl", "tokenizer", "engine", "rewards", "plan", "teacher's prompts", "context"):
        assert states[name] == "ok"
    assert not (tmp_path / "run").exists()


def test_without_a_run_only_the_machine_is_checked(capfd):
    code, out = run_doctor(capfd, "--no_smoke_test")
    assert code == 0
    assert out.splitlines()[-1].startswith("Go")
    assert "no run given: --config FILE" in out and "teacher's prompts" not in out and "smoke test" not in out


def test_a_fault_is_shown_with_its_remedy(capfd, tmp_path):
    code, out = run_doctor(capfd, "--no-prove", "--config", tmp_path / "no.yaml")
    assert code == 2
    assert "→ Give the path of a YAML file." in out and out.splitlines()[-1].startswith("No go: 1 fault")


def test_every_package_has_a_range_and_a_tested_version_within():
    for package in machine.PACKAGES:
        allowed = machine.allowed_versions()[package].specifier
        for version in (machine.tested_versions()[package], *machine.also_tested(package)):
            assert allowed.contains(version), f"{package} {version}"


def test_doctor_reads_the_table_of_tested_versions(monkeypatch):
    found = {}
    for version in ("5.17.0", "5.24.3", "5.20.0"):
        monkeypatch.setattr(machine, "_installed_version", lambda _, version=version: Version(version))
        found[version] = machine.check_version("transformers", Case())
    assert [finding.state for finding in found.values()] == ["ok", "ok", "warning"]
    assert found["5.20.0"].found == "5.20.0 is allowed, but 5.17.0 and 5.24.0 were tested"


def test_what_does_not_work_is_not_allowed():
    broken = [row for row in machine.read_tested() if not row["works"]]
    assert broken
    for row in broken:
        assert not machine.allowed_versions()[row["package"]].specifier.contains(row["version"]), row


def test_the_page_of_versions_shows_what_doctor_reads():
    lines = (ROOT / "docs" / "versions.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    together = {row[0]: row[1] for row in rows if len(row) == 2 and row[1][0].isdigit()}
    assert together and together.items() <= {name: str(v) for name, v in machine.tested_versions().items()}.items()
    works = {True: "yes", False: "no"}
    listed = [[row["package"], row["version"], works[row["works"]], row["result"]] for row in machine.read_tested()]
    assert [row for row in rows if len(row) == 4 and row[1][0].isdigit()] == listed


# -- faults that the smoke test detects ---------------------------------------------------------------------


@pytest.fixture
def trial() -> Trial:
    return make_trial(RolloutConfig(engine="transformers"), MemorySpec(width=16, max_experts=3))


def with_replica(trial):
    """Let the trial generate with an engine that has its own weights, in this process."""
    weights = GrownWeights(trial.memory, sorted(trial.memory.records))
    tokenizer = make_tokenizer()
    spec = ReplicaSpec("transformers", weights.config(), tokenizer, tuple(end_tokens(trial.memory.model, tokenizer)))
    trial.engine = SyncedEngine(weights, partial(InThisProcess, spec.make(), "The engine", 64))
    return trial.engine


def states(trial: Trial) -> list[str]:
    return [check(trial).state for check in smoke_test.CHECKS.values()]


def test_routed_experts_and_engines_with_their_own_weights_pass(trial):
    routed = make_trial(RolloutConfig(engine="transformers"), MemorySpec(16, 3, "topk", top_k=1))
    assert states(routed) == ["ok"] * 4
    with_replica(trial)
    assert states(trial) == ["ok"] * 4


def test_a_wrong_weight_is_detected(trial):
    engine = with_replica(trial)
    assert smoke_test.check_generation(trial).state == "ok"
    down = engine.backend.replica.tensors["model.layers.0.mlp.down_proj.weight"]
    down[:, 3] += 0.5
    assert smoke_test.check_generation(trial).state == "fault"
    finding = smoke_test.check_weight_update(trial)
    assert finding.state == "fault" and "down_proj" in finding.found and "rollout.engine transformers" in finding.remedy


def test_weights_that_are_not_sent_are_detected(trial):
    engine = with_replica(trial)
    engine.sync()
    engine._send = lambda *args, **kwargs: None  # nothing is sent any more
    assert [
        check(trial).state
        for check in (smoke_test.check_generation, smoke_test.check_teaching, smoke_test.check_weight_update)
    ] == ["ok", "ok", "fault"]


class Truncating(TransformersEngine):
    """An engine that drops a prompt's first word where the context is full."""

    def generate_batch(self, prompts, sampling, *shared):
        return super().generate_batch([p[:1] + p[2:] if len(p) > 200 else p for p in prompts], sampling)


def test_a_truncated_prompt_is_detected(trial):
    trial.engine = Truncating(trial.memory.model, make_tokenizer())
    assert smoke_test.check_truncation(trial).state == "fault"


def test_an_untrained_expert_that_changes_logits_is_detected(trial):
    with torch.no_grad():
        for _, parameter in trial.memory.expert_parameters(trial.expert):
            parameter.add_(0.05)
    assert smoke_test.check_teaching(trial).state == "fault"


@pytest.mark.parametrize(
    ("windows", "are_complete"),
    [
        (["a b. ", "c d."], True),
        (["a b.", "b. c d."], True),
        (["a b. c d."], True),
        (["a b."], False),
        (["c d."], False),
        (["a ", " c d."], False),
    ],
)
def test_covers_a_text(windows, are_complete):
    assert covers("a b. c d.", windows) is are_complete


def test_covers_a_text_that_repeats_itself():
    assert covers("la la la la la la", ["la la la", "la la la"])
    assert not covers("la la la la la la la", ["la la la", "la la la"])
