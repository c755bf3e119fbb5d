"""A Ray that is there: joined with its token, named without, and generating in the proof."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from sleep_trl.config import RunConfig
from sleep_trl.doctor import Case
from sleep_trl.doctor.network import join_ray
from sleep_trl.doctor.proof import prove
from tests.tiny_runs import write_memories, write_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make setup installs it"),
]

CLUSTER = """
import os, sys
from sleep_trl import cluster
cluster.connect(cpus=1)
import ray
print(ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"], flush=True)
sys.stdin.read()
"""
TOKEN = "RAY_AUTH_TOKEN"


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, str]]:
    """A Ray of this machine in another process: its address and its token."""
    fresh = {name: value for name, value in os.environ.items() if name != TOKEN}
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=fresh) as process:
        address, token = process.stdout.readline().split()
        yield address, token


def case(tmp_path, **rollout) -> Case:
    model, memories = write_model(tmp_path / "model"), write_memories(tmp_path / "docs.jsonl")
    given = {"model": str(model), "memories": str(memories), "memory": {"width": 8}}
    return Case(RunConfig.model_validate({**given, "rollout": {"engine": "ray", **rollout}}))


def test_a_token_opens_and_another_does_not(cluster, tmp_path, monkeypatch):
    address, token = cluster
    asked = case(tmp_path, ray_address=address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv(TOKEN, token)
    assert join_ray(asked).state == "ok"
    monkeypatch.setenv(TOKEN, "0" * 64)
    told = join_ray(asked)
    assert told.state == "fault"
    assert "its token, which is missing here or another one" in told.found and TOKEN in told.remedy


def test_the_proof_generates_in_the_cluster(cluster, tmp_path, monkeypatch):
    address, token = cluster
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv(TOKEN, token)
    findings = list(prove(case(tmp_path, ray_address=address)))
    assert [finding.state for finding in findings] == ["ok"] * 4, findings
    assert "1 x transformers under Ray" in findings[0].found and "bytes were sent" in findings[2].found


def test_the_proof_starts_a_ray_of_its_own(tmp_path):
    findings = list(prove(case(tmp_path)))
    assert [finding.state for finding in findings] == ["ok"] * 4, findings
