import copy
import logging
import pickle
from shutil import copytree
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sleep_trl.memory import Memory, MemorySpec, attach, fold, load_experts, load_memory
from tests.memory.test_memory import SPEC, fill, logits
from tests.tiny import FORMS, tiny_model

WEIGHTS = "model.safetensors"


def grown(form: str = "llama", **spec: object):
    """A model with a settled expert and a learning one, and its memory."""
    model = tiny_model(form)
    memory = attach(model, MemorySpec(**{"width": 8, "max_experts": 3, **spec}))
    fill(memory, memory.activate())
    memory.commit()
    fill(memory, memory.activate(), seed=1)
    return model, memory


def fresh(form: str = "llama", experts: int = 2, **spec: object):
    """The same model as a script makes it before it resumes."""
    model = tiny_model(form)
    memory = attach(model, MemorySpec(**{"width": 8, "max_experts": 3, **spec}))
    for _ in range(experts):
        memory.commit()
        memory.activate()
    return model, memory


@pytest.mark.parametrize("form", FORMS)
def test_what_save_pretrained_writes_from_pretrained_loads(form, tmp_path):
    model, _ = grown(form)
    before, config = logits(model), model.config.to_dict()
    model.save_pretrained(tmp_path)
    saved, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and type(saved) is type(model)
    assert (logits(saved) - before).abs().max() <= 1e-5
    assert torch.equal(logits(model), before) and model.config.to_dict() == config


@pytest.mark.parametrize("form", FORMS)
def test_load_state_dict_takes_the_experts_out_of_a_folded_checkpoint(form, tmp_path):
    model, memory = grown(form)
    model.save_pretrained(tmp_path)
    resumed, resumed_memory = fresh(form)
    resumed.load_state_dict(load_file(tmp_path / WEIGHTS), strict=False)
    assert [resumed_memory.fingerprint(i) for i in range(3)] == [memory.fingerprint(i) for i in range(3)]
    assert torch.equal(logits(resumed), logits(model))


def test_shards_of_a_checkpoint_load_one_by_one(tmp_path):
    model, memory = grown()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 3
    resumed, resumed_memory = fresh()
    for shard in shards:
        resumed.load_state_dict(load_file(shard), strict=False)
    assert [resumed_memory.fingerprint(i) for i in range(2)] == [memory.fingerprint(i) for i in range(2)]


def test_a_models_own_state_dict_loads_as_before():
    model, memory = grown()
    resumed, resumed_memory = fresh()
    resumed.load_state_dict(model.state_dict())
    assert resumed_memory.fingerprint(1) == memory.fingerprint(1)


def test_the_saved_folder_has_the_experts_for_load_memory(tmp_path):
    model, _ = grown()
    model.save_pretrained(tmp_path)
    base = tiny_model()
    load_memory(base, tmp_path / "adapter")
    assert (logits(base) - logits(model)).abs().max() <= 1e-5


def test_experts_in_bfloat16_resume_rounded_and_say_so(tmp_path, caplog):
    model = tiny_model().to(torch.bfloat16)
    memory = attach(model, SPEC)
    fill(memory, memory.activate())
    model.save_pretrained(tmp_path)
    resumed = tiny_model().to(torch.bfloat16)
    resumed_memory = attach(resumed, SPEC)
    resumed_memory.activate()
    with caplog.at_level(logging.WARNING):
        resumed.load_state_dict(load_file(tmp_path / WEIGHTS), strict=False)
    assert "bfloat16" in caplog.text and "load_experts" in caplog.text
    pairs = zip(memory.expert_parameters(0), resumed_memory.expert_parameters(0), strict=True)
    assert all(torch.equal(a.to(torch.bfloat16).float(), b) for (_, a), (_, b) in pairs)
    load_experts(resumed_memory, tmp_path / "adapter")
    assert resumed_memory.fingerprint(0) == memory.fingerprint(0)


@pytest.mark.parametrize("experts", [1, 3])
def test_another_number_of_experts_is_refused(experts, tmp_path):
    grown()[0].save_pretrained(tmp_path)
    resumed, _ = fresh(experts=experts)
    with pytest.raises(ValueError, match=rf"2 experts of width 8 folded.*has {experts} active"):
        resumed.load_state_dict(load_file(tmp_path / WEIGHTS), strict=False)


def test_an_inactive_memory_saves_the_base(tmp_path):
    model = tiny_model()
    attach(model, SPEC)
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / WEIGHTS)) == set(tiny_model().state_dict())


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_saves_its_own_memory(twin_of, tmp_path):
    model, _ = grown()
    twin = twin_of(model)
    fill(Memory.of(twin), 1, seed=5)
    twin.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (logits(saved) - logits(twin)).abs().max() <= 1e-5 < (logits(saved) - logits(model)).abs().max()


def test_fold_writes_nothing_but_the_checkpoint(tmp_path):
    fold(grown()[1], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "generation_config.json", WEIGHTS]


def test_routed_experts_are_saved_alone_and_say_how_to_load_them(tmp_path, caplog):
    model, memory = grown(routing="topk", top_k=1)
    with caplog.at_level(logging.WARNING):
        model.save_pretrained(tmp_path)
    assert "load_memory(model," in caplog.text and "routing='dense'" in caplog.text
    with pytest.raises((OSError, ValueError)):  # and not the base
        AutoModelForCausalLM.from_pretrained(tmp_path)
    base = tiny_model()
    loaded = load_memory(base, tmp_path / "adapter")
    assert loaded.fingerprint(1) == memory.fingerprint(1)
    resumed, resumed_memory = fresh(routing="topk", top_k=1)
    resumed.load_state_dict(load_file(tmp_path / WEIGHTS), strict=False)
    assert torch.equal(logits(resumed), logits(model)) and resumed_memory.fingerprint(1) == memory.fingerprint(1)


def test_routed_experts_are_not_put_next_to_another_models_config(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a config\.json already.*empty folder"):
        grown(routing="topk", top_k=1)[0].save_pretrained(tmp_path)


def test_push_to_hub_uploads_what_loads(tmp_path, monkeypatch):
    """Only the three calls that need the hub are replaced."""
    model, _ = grown()
    uploaded = tmp_path / "uploaded"
    hub = SimpleNamespace(create_repo=lambda name, **kwargs: SimpleNamespace(repo_id=name))
    card = SimpleNamespace(save=lambda path: None)
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *args, **kwargs: card)
    monkeypatch.setattr(type(model), "_upload_modified_files", lambda self, at, *args, **kwargs: copytree(at, uploaded))
    model.push_to_hub("someone/grown")
    assert (logits(AutoModelForCausalLM.from_pretrained(uploaded)) - logits(model)).abs().max() <= 1e-5


def test_a_model_wrapped_by_peft_is_refused():
    wrapped = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"PeftModel.*Leave out peft_config"):
        attach(wrapped, SPEC)
