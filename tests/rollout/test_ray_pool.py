import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sleep_trl.distributed import ray as cluster
from sleep_trl.launch import sleep
from sleep_trl.rollout import Sampling
from sleep_trl.rollout.ray_pool import RayPool
from sleep_trl.rollout.synced import InThisProcess, SyncedEngine
from sleep_trl.rollout.weights import Region, WeightMismatch
from tests.night.test_run import arguments as night
from tests.night.test_run import results_of
from tests.rollout.engines import (
    LONG,
    PROMPTS,
    assert_draws_from_nucleus,
    assert_equal,
    grown_model,
    on_the_model_itself,
    send_while_generating,
    spec_of,
    teach,
    weights_of,
)
from tests.tiny_runs import write_model

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make setup installs it")


def pool_of(memory, count=2, **options):
    weights, spec = weights_of(memory), spec_of(memory)
    return SyncedEngine(weights, lambda: RayPool(spec, count, batch_size=4, **options))


@pytest.fixture(scope="module")
def engine():
    """Two engines of a Ray of this module's own, which is told of a GPU; engines find none, and take the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cluster.start(gpus=1)
    made = pool_of(grown_model())
    made.sync()
    yield made
    import ray

    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture
def memory(engine):
    return engine.weights.memory


def test_greedy_is_transformers_own_before_and_after_an_update(engine, memory):
    assert_equal(engine, memory)
    teach(memory, memory.activate(), seed=2)
    assert_equal(engine, memory)


def test_what_is_drawn_does_not_depend_on_who_draws(engine, memory):
    sampling = Sampling(12, seed=5, logprobs=True)
    alone = SyncedEngine(weights_of(memory), lambda: InThisProcess(spec_of(memory).make(), "alone", 4))
    drawn = engine.generate(PROMPTS, sampling)
    assert drawn == alone.generate(PROMPTS, sampling)
    assert drawn != engine.generate(PROMPTS, Sampling(12, seed=6, logprobs=True))


def test_top_p_samples_from_the_nucleus(engine, memory):
    assert_draws_from_nucleus(engine, memory.model)


def test_nights_by_a_pool(engine, tmp_path, capsys, monkeypatch):
    """A night's text comes from the pool, and rollouts are in step with the trainer. The base of the second night is
    what the first one has folded, by a path relative to this process's folder."""
    monkeypatch.chdir(tmp_path)
    for model, run in ((write_model(Path("model")), "first"), (Path("first", "model"), "second")):
        assert sleep.main(night(model, Path(run), **{"rollout.engine": "ray"})) == 0
        assert "Generating with 2 x transformers under Ray: asked for" in capsys.readouterr().out
        logs = [log for log in results_of(Path(run))["history"] if "reward" in log]
        assert len(logs) == 1  # the last quarter of the steps
        assert all(log["sampling/sampling_logp_difference/max"] < 1e-4 for log in logs)


def test_all_engines_have_their_share_of_the_rollouts_of_a_step(engine, monkeypatch):
    pool, asked = engine.backend, []
    engine.sync()

    def call(member, phase, method, prompts, *args, _call=pool._call, **kwargs):
        asked.append((method, member.place, len(prompts)))
        _call(member, phase, method, prompts, *args, **kwargs)

    monkeypatch.setattr(pool, "batch_size", 256)
    monkeypatch.setattr(pool, "_call", call)
    engine.generate(PROMPTS[-16:] * 2, LONG)
    assert sorted(asked) == [("generate", 0, 16), ("generate", 1, 16)]


def test_a_killed_engine_loses_no_prompt(engine, memory, caplog):
    pool = engine.backend
    before = pool.process_ids()
    send_while_generating(pool, before[0], signal.SIGKILL)
    seen = []
    found = engine.generate(PROMPTS * 3, LONG, seen.append)
    assert found == on_the_model_itself(memory).generate(PROMPTS * 3, LONG) and sum(seen) == len(found)
    assert "while generating; replacing it" in caplog.text
    assert_equal(engine, memory)
    after = pool.process_ids()
    assert len(after) == 2 and before[0] not in after


def test_a_hung_engine_is_replaced_at_its_deadline(engine, memory, caplog):
    pool = engine.backend
    pool.timeout_s = 3.0
    hung = pool.process_ids()[0]
    name = pool.members[0].name
    os.kill(hung, signal.SIGSTOP)
    assert engine.generate(PROMPTS, LONG) == on_the_model_itself(memory).generate(PROMPTS, LONG)
    pool.timeout_s = 600.0
    assert f"{name} did not answer within 3 s while generating" in caplog.text
    assert hung not in pool.process_ids() and len(pool.members) == 2


def test_a_planted_weight_is_caught(engine, memory):
    pool = engine.backend
    pool.process_ids()  # the replaced ones are up
    region = Region("model.layers.0.mlp.down_proj.weight", 1, 48, 8)
    right = weights_of(memory).experts()[region]
    pool._ray.get(pool.members[1].actor.update.remote({region: right + 1e-6}, []))
    teach(memory, 1, seed=3)
    with pytest.raises(WeightMismatch, match=f"{pool.members[1].name} does not hold .* the first is .*down_proj"):
        engine.generate(PROMPTS, LONG)
    pool._ray.get(pool.members[1].actor.update.remote({region: right}, []))
    assert_equal(engine, memory)


def test_the_pool_goes_on_with_fewer(engine, memory, caplog):
    pool = engine.backend
    pool.max_restarts = 0
    os.kill(pool.process_ids()[1], signal.SIGKILL)
    assert_equal(engine, memory)
    assert "continuing with 1 engines" in caplog.text
    os.kill(pool.process_ids()[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match="No engine is left"):
        engine.generate(PROMPTS, LONG)


def test_the_first_traceback_is_what_the_user_sees(engine):
    memory = grown_model()
    weights, spec = weights_of(memory), spec_of(memory)
    spec.config.num_attention_heads = 5  # of 32 hidden units: the engine cannot hold the weights
    broken = SyncedEngine(weights, lambda: RayPool(spec, 1))
    seen = (
        r"(?s)sleep-engine-\S+ failed while starting.*line \d+, in write_regions.*ValueError: The engine has no place"
    )
    with pytest.raises(RuntimeError, match=seen):
        broken.sync()


def test_a_call_that_failed_leaves_nothing_behind(engine):
    """An engine that raises stops the call, not the pool."""
    fresh = pool_of(grown_model(), count=1)
    with pytest.raises(RuntimeError, match="failed while generating"):
        fresh.generate([PROMPTS[1], [10**9], *PROMPTS], LONG)  # not a token
    assert_equal(fresh, fresh.weights.memory)
    fresh.close()


def test_engines_for_which_there_is_no_room_are_refused(engine):
    """Ray itself would wait for a GPU until the deadline."""
    with pytest.raises(ValueError, match=r"2 engines of 0\.6 GPUs each .* room for 1\. Give a smaller rollout\.num_e"):
        pool_of(grown_model(), gpus=0.6).sync()


def test_engines_on_one_gpu_start_in_turn(engine, memory):
    pool = RayPool(spec_of(memory), 2, gpus=0.5)
    assert [member.has_answered for member in pool.members] == [True, True]
    pool.close()


def test_nobody_listens_to_the_network(engine):
    """Every port that Ray opened is on the loopback address."""
    psutil = pytest.importorskip("psutil")  # accelerate brings it along
    mine = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in mine]
    assert listening
    assert not [c.laddr for c in listening if c.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
