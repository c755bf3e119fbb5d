"""Sharded weights in one process: nothing to do, and what is told before a launch that cannot work."""

import pytest
import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

from sleep_trl.distributed import zero3 as sharding
from sleep_trl.models.inspection import build_without_weights, read_config
from tests.tiny import tiny_model
from tests.tiny_runs import write_model

zero3 = pytest.mark.usefixtures("_launched_for_zero3")


@pytest.fixture
def _launched_for_zero3(monkeypatch):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    sharding._launched.cache_clear()
    yield
    sharding._launched.cache_clear()
    unset_hf_deepspeed_config()


def test_whole_weights_are_left_alone():
    model = tiny_model()
    weight = model.lm_head.weight
    with sharding.gathered(model.parameters(), write=True), sharding.sharding(torch.float32):
        assert sharding.whole_shape(weight) == weight.shape == (97, 32)
        assert sharding.whole_size(weight) == 97 * 32
    sharding.serve(model)
    sharding.withdraw(model)
    assert not sharding.is_sharded(model) and sharding.takes_part_in_saving(model) and sharding.writes_files(model)
    sharding.check_launch(dreams=True)


def test_fsdp_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"FSDP.*zero3.yaml"):
        sharding.check_launch(dreams=False)


@zero3
def test_dreams_on_sharded_layers_are_refused():
    with pytest.raises(ValueError, match=r"dream.rounds: .* ZeRO-3 .* --dream.rounds 0"):
        sharding.check_launch(dreams=True)


@zero3
def test_a_lock_of_a_killed_build_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    with lock.open("w"):  # as long as a build runs
        sharding.check_launch(dreams=False)
    with pytest.raises(ValueError, match=r"deepspeed_shm_comm/lock was left behind .*Run `rm /.*lock`"):
        sharding.check_launch(dreams=False)


@zero3
def test_a_model_without_weights_is_built_in_a_sharded_launch_too(tmp_path):
    folder = str(write_model(tmp_path))
    with sharding.sharding(torch.bfloat16):
        assert is_deepspeed_zero3_enabled()
    model = build_without_weights(folder, read_config(folder))
    assert model.lm_head.weight.shape == (97, 32) and model.lm_head.weight.is_meta
    with sharding.sharding(None):
        assert not is_deepspeed_zero3_enabled()
