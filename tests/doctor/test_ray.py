"""A running Ray cluster: joined with its token, reported without it, and used by the smoke test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from sleep_trl.config import RunConfig
from sleep_trl.doctor import Case
from sleep_trl.doctor.machine import check_ray_address
from sleep_trl.doctor.run import smoke_test
from tests.tiny_runs import write_memories, write_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make setup installs it"),
]

CLUSTER = """
import os, sys
from sleep_trl.distributed.ray import connect
connect(cpus=1)
import ray
print(ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"], flush=True)
sys.stdin.read()
"""
TOKEN = "RAY_AUTH_TOKEN"


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, str]]:
    """A Ray cluster started by another process: its address and its token."""
    fresh = {name: value for name, value in os.environ.items() if name != TOKEN}
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=fresh) as process:
        address, token = process.stdout.readline().split()
        yield address, token


def case(tmp_path, **rollout) -> Case:
    model, memories = write_model(tmp_path / "model"), write_memories(tmp_path / "docs.jsonl")
    options = {"model": str(model), "memories": str(memories), "memory": {"width": 8}}
    return Case(RunConfig.model_validate({**options, "rollout": {"engine": "ray", **rollout}}))


def test_only_the_right_token_joins(cluster, tmp_path, monkeypatch):
    address, token = cluster
    joining = case(tmp_path, ray_address=address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv(TOKEN, token)
    assert check_ray_address(joining).state == "ok"
    monkeypatch.setenv(TOKEN, "0" * 64)
    finding = check_ray_address(joining)
    assert finding.state == "fault"
    assert "requires its token; none or a different one is set here" in finding.found and TOKEN in finding.remedy


def test_the_smoke_test_generates_in_the_cluster(cluster, tmp_path, monkeypatch):
    address, token = cluster
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv(TOKEN, token)
    findings = list(smoke_test(case(tmp_path, ray_address=address)))
    assert [finding.state for finding in findings] == ["ok"] * 4, findings
    assert "1 x transformers under Ray" in findings[0].found and "bytes were sent" in findings[2].found


def test_the_smoke_test_starts_its_own_ray(tmp_path):
    findings = list(smoke_test(case(tmp_path)))
    assert [finding.state for finding in findings] == ["ok"] * 4, findings
