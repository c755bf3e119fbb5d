"""A Ray cluster of two nodes on this machine, and a night whose engines are spread over both."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from sleep_trl.distributed.ray import prepare
from sleep_trl.launch import sleep
from sleep_trl.rollout import Sampling
from sleep_trl.rollout.ray_pool import RayPool
from sleep_trl.rollout.synced import SyncedEngine
from tests.distributed.launching import ROOT
from tests.distributed.test_zero3_pool import GREEDY, wait_for, written
from tests.night.test_run import arguments, results_of
from tests.rollout.engines import PROMPTS, assert_equal, grown_model, spec_of, weights_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make setup installs it"),
]


def wait_for_resources(cluster: Any, cpus: int) -> None:
    """Wait until the scheduler knows of all nodes: before, it places everything on the first."""
    import ray

    cluster.connect()
    try:
        end = time.monotonic() + 60
        while ray.available_resources().get("CPU", 0) < cpus:
            assert time.monotonic() < end, f"{ray.available_resources()} after a minute"
            time.sleep(0.2)
    finally:
        ray.shutdown()


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A cluster with a head and one more node, which have a raylet, an object store and workers each."""
    prepare()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    wait_for_resources(cluster, 2)
    yield cluster
    cluster.shutdown()


@pytest.mark.parametrize("phase", ["writing", "training"])
def test_a_night_survives_the_loss_of_a_node(model, tmp_path, nodes, phase):
    """The engine that was on it is replaced on the other one, and the night ends as one process alone does."""
    run = tmp_path / "run"
    pool = {"rollout.engine": "ray", "rollout.num_engines": 2, "rollout.ray_address": nodes.address}
    command = [sys.executable, ROOT / "launch" / "sleep.py", *arguments(model, run, **pool | GREEDY)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    begun = {"writing": "phases/evaluate_before.json", "training": "checkpoints/checkpoint-2/trainer_state.json"}
    wait_for(run / begun[phase], process)
    nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "replacing it" in output, output[-4000:]
    alone = tmp_path / "alone"
    assert sleep.main(arguments(model, alone, **GREEDY)) == 0
    assert written(run) == written(alone) != []
    assert results_of(run)["recall"] == results_of(alone)["recall"]


def test_an_answer_that_is_lost_with_its_node_is_asked_for_again(nodes):
    """A large answer stays in the object store of its node until it is fetched."""
    memory = grown_model()
    pool = RayPool(spec_of(memory), 2, address=nodes.address)
    try:
        engine = SyncedEngine(weights_of(memory), lambda: pool)
        engine.sync()
        many, seeds = PROMPTS * 8, list(range(len(PROMPTS) * 8))
        for member in pool.members:
            pool._call(member, "generating", "generate", many, Sampling(120, logprobs=True), seeds, shard=range(1))
        answers, _ = pool._ray.wait(list(pool._jobs), num_returns=2, fetch_local=False)
        held = pool._ray.experimental.get_object_locations(answers).values()
        assert len({node for place in held for node in place["node_ids"]}) == 2, "not one on each node"
        nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
        found = []
        while pool._jobs:
            jobs, result = pool._next()
            found += [result is None for job in jobs if job.shard is not None]
        assert sorted(found) == [False, True] and len(pool.members) == 2
        assert_equal(engine, memory)
    finally:
        pool._ray.shutdown()
