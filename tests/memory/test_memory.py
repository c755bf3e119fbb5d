import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sleep_trl.memory import (
    Memory,
    MemorySpec,
    attach,
    base_fingerprint,
    fold,
    load_memory,
    logit_difference,
    save_memory,
)
from sleep_trl.memory.attach import warn_once
from tests.tiny import FORMS, tiny_model

SPEC = MemorySpec(width=8, max_experts=3)
IDS = torch.randint(3, 97, (2, 16), generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def fill(memory: Memory, index: int, seed: int = 0) -> None:
    """Give an expert weights that matter, as a night would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in memory.expert_parameters(index):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.mark.parametrize("form", FORMS)
def test_attach_and_activate_change_no_logit(form):
    model = tiny_model(form)
    before = logits(model)
    memory = attach(model, SPEC)
    memory.activate()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("form", FORMS)
def test_a_later_activation_changes_no_bit(form):
    model = tiny_model(form)
    memory = attach(model, SPEC)
    fill(memory, memory.activate())
    memory.commit()
    before = logits(model)
    fill(memory, memory.activate())
    with memory.as_teacher():
        assert torch.equal(logits(model), before)
    memory.reset(1)
    memory.activate()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("form", FORMS)
def test_committing_moves_an_expert_into_its_host(form):
    model = tiny_model(form)
    base = {name: parameter.clone() for name, parameter in model.named_parameters()}
    memory = attach(model, SPEC)
    fill(memory, memory.activate())
    learning = logits(model)
    memory.commit()
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))
    assert (logits(model) - learning).abs().max() <= 1e-5
    assert all(torch.equal(parameter, base[name]) for name, parameter in memory.base_parameters())
    fill(memory, 0, seed=1)  # a settled expert that is written to is read again
    rewritten = logits(model)
    assert (rewritten - learning).abs().max() > 1e-2
    memory.train_only(0)
    assert (logits(model) - rewritten).abs().max() <= 1e-5


def test_a_trained_model_folds_to_the_last_digits(tmp_path):
    model = AutoModelForCausalLM.from_pretrained("examples/quickstart/model")
    memory = attach(model)
    for seed in range(2):
        fill(memory, memory.activate(), seed)
    memory.commit()
    assert logits(model).abs().max() > 10  # where rounding alone is more than 1e-5
    assert fold(memory, tmp_path) <= 1e-5


def test_settled_experts_share_the_input_maps_of_their_host():
    model = tiny_model()
    memory = attach(model, SPEC)
    fill(memory, memory.activate())
    memory.commit()
    with torch.inference_mode():
        model(input_ids=IDS)
    for linear in (model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj):
        assert linear.weight.untyped_storage().nbytes() == (48 + 8) * 32 * 4
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    with memory.as_base():
        model(input_ids=IDS).logits.sum()  # narrow again
    assert model.model.layers[0].mlp.gate_proj.weight.shape == (48, 32)


def test_a_host_with_an_adapter_keeps_its_experts():
    model = tiny_model()
    memory = attach(model, SPEC)
    fill(memory, memory.activate())
    memory.commit()
    before = logits(model)
    lora = get_peft_model(model, LoraConfig(target_modules=["gate_proj", "down_proj"]))
    assert (logits(lora) - before).abs().max() <= 1e-5  # a new adapter changes nothing


@pytest.mark.parametrize("form", FORMS)
def test_a_filled_expert_takes_part_for_the_student_only(form):
    model = tiny_model(form)
    before = logits(model)
    memory = attach(model, SPEC)
    first = memory.activate()
    fill(memory, first)
    assert (logits(model) - before).abs().max() > 1e-2
    with memory.as_teacher():
        assert torch.equal(logits(model), before)
        with memory.as_student():
            assert (logits(model) - before).abs().max() > 1e-2
    memory.commit()
    with memory.as_teacher():  # nothing is learning: the teacher is the whole model
        assert (logits(model) - before).abs().max() > 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_folded_checkpoint_loads_plainly_and_agrees(form, tmp_path):
    model = tiny_model(form)
    memory = attach(model, SPEC)
    for seed in range(2):
        fill(memory, memory.activate(), seed)
    memory.commit()
    assert fold(memory, str(tmp_path)) <= 1e-5
    folded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(folded) is type(model)
    assert (logits(folded) - logits(model)).abs().max() <= 1e-5
    assert sum(p.numel() for p in folded.parameters()) >= memory.count_parameters()["base"]


def test_fold_leaves_the_grown_model_as_it_was(tmp_path):
    model = tiny_model()
    memory = attach(model, SPEC)
    fill(memory, memory.activate())
    before, config = logits(model), copy.deepcopy(model.config)
    fold(memory, tmp_path)
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config.to_dict()


def test_fold_in_bfloat16(tmp_path):
    model = tiny_model().to(torch.bfloat16)
    memory = attach(model, SPEC)
    fill(memory, memory.activate())
    assert all(p.dtype is torch.float32 for _, p in memory.expert_parameters(0))
    fold(memory, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype is torch.bfloat16


def test_only_the_new_expert_trains():
    model = tiny_model()
    memory = attach(model, SPEC)
    memory.activate()
    second = memory.activate()
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert trainable == {id(p) for _, p in memory.expert_parameters(second)}
    counts = memory.count_parameters()
    assert counts["trainable"] == 2 * 3 * 32 * 8 and counts["added"] == 2 * counts["trainable"]


def test_training_a_frozen_model_is_warned_of_once(caplog):
    """With gradient checkpointing, as in SFTConfig, nothing else says so: the loss has a gradient, of no weight."""
    warn_once.cache_clear()
    model = tiny_model()
    memory = attach(model, SPEC)
    model.eval()(input_ids=IDS)
    logits(model.train())
    memory.activate()
    model(input_ids=IDS)
    memory.commit()
    model.lm_head.requires_grad_(True)  # as a PEFT adapter beside settled experts
    model(input_ids=IDS)
    assert not caplog.records
    model.lm_head.requires_grad_(False)
    model(input_ids=IDS)
    model(input_ids=IDS)
    [record] = caplog.records
    assert "nothing is trained. Call attach(model).activate()" in record.message


def test_a_disabled_expert_takes_no_part_and_is_not_folded(tmp_path):
    model = tiny_model()
    before = logits(model)
    memory = attach(model, SPEC)
    fill(memory, memory.activate())
    memory.enable(0, False)
    assert torch.equal(logits(model), before)
    fold(memory, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.intermediate_size == 48


def test_reset_frees_the_slot_and_restores_its_first_weights():
    model = tiny_model()
    memory = attach(model, SPEC)
    first = memory.fingerprint(0)
    fill(memory, memory.activate())
    assert memory.fingerprint(0) != first
    memory.reset(0)
    assert memory.fingerprint(0) == first and memory.active == ()


def test_no_expert_left():
    memory = attach(tiny_model(), MemorySpec(width=8, max_experts=1))
    memory.activate()
    with pytest.raises(ValueError, match="All 1 experts of this memory are taken"):
        memory.activate()


def test_save_and_load_give_equal_logits(tmp_path):
    model = tiny_model()
    memory = attach(model, SPEC)
    for seed in range(2):
        fill(memory, memory.activate(level=seed + 1), seed)
    save_memory(memory, str(tmp_path))  # folders may be plain strings
    memory.commit()
    other = tiny_model()
    loaded = load_memory(other, str(tmp_path), max_experts=5)
    assert torch.equal(logits(other), logits(model))
    assert [record.level for record in loaded.records.values()] == [1, 2]
    assert loaded.activate() == 2
    assert not list(tmp_path.glob("*.partial"))


def test_a_memory_refuses_a_foreign_base(tmp_path):
    save_memory(attach(tiny_model(), SPEC), tmp_path)
    with pytest.raises(ValueError, match="another base model"):
        load_memory(tiny_model(seed=1), tmp_path)


def test_the_bases_fingerprint_does_not_depend_on_the_loaded_dtype(tmp_path):
    """A night on a CPU, in float32, may be followed by one on a GPU, in bfloat16."""

    def load(dtype, seed=0):
        tiny_model(seed=seed).save_pretrained(tmp_path / str(seed))
        return AutoModelForCausalLM.from_pretrained(tmp_path / str(seed), dtype=dtype)

    wide, narrow, other = (attach(load(*given), SPEC) for given in ((torch.float32,), (torch.bfloat16,), ("auto", 1)))
    assert base_fingerprint(wide) == base_fingerprint(narrow) != base_fingerprint(other)
    fill(wide, wide.activate())
    save_memory(wide, tmp_path / "adapter")
    continued = load_memory(load(torch.bfloat16), tmp_path / "adapter")
    assert continued.fingerprint(0) == wide.fingerprint(0)


def test_a_damaged_memory_is_named(tmp_path):
    memory = attach(tiny_model(), SPEC)
    memory.activate()
    save_memory(memory, tmp_path)
    path = tmp_path / "experts.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"experts\.safetensors is damaged or was changed"):
        load_memory(tiny_model(), tmp_path)


def test_a_run_in_place_of_its_experts_is_told_where_they_are(tmp_path):
    for run in (tmp_path / "sft", tmp_path / "chain" / "night-002"):
        save_memory(attach(tiny_model(), SPEC), run / "adapter")
    for file in ("ledger.jsonl", "results.json"):
        (tmp_path / "chain" / "night-002" / file).touch()
    for given, run in (("sft", "sft"), ("chain", "chain/night-002")):
        with pytest.raises(ValueError, match=rf"Give that of its experts: {tmp_path}/{run}/adapter\."):
            load_memory(tiny_model(), tmp_path / given)
    with pytest.raises(ValueError, match=r"memory\.json does not exist"):
        load_memory(tiny_model(), tmp_path)


def test_a_second_memory_is_refused_with_the_first_ones_name():
    model = tiny_model()
    attach(model, SPEC)
    with pytest.raises(ValueError, match=r"sleep_trl\.memory\.Memory\.of\(model\) returns it"):
        attach(model)


def test_width_that_is_not_low_rank_is_refused():
    with pytest.raises(ValueError, match="not low-rank"):
        attach(tiny_model(), MemorySpec(width=32))


def test_unknown_form_names_what_was_looked_for():
    config = CONFIG_MAPPING["bloom"](vocab_size=97, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(ValueError, match="gate_proj, up_proj, down_proj"):
        attach(AutoModelForCausalLM.from_config(config), SPEC)


def test_deep_copy_has_its_own_memory():
    model = tiny_model()
    memory = attach(model, SPEC)
    memory.activate()
    twin = copy.deepcopy(model)
    fill(Memory.of(twin), 0)
    assert (logits(twin) - logits(model)).abs().max() > 1e-2
    assert logit_difference(model, tiny_model())[0] == 0.0


def test_weights_beside_a_settled_expert_can_be_trained():
    """Computed inside its host, an expert would hide the host's own weights from the gradient."""
    model = tiny_model()
    memory = attach(model, SPEC)
    fill(memory, memory.activate())
    memory.commit()
    before = logits(model)
    model.requires_grad_(True)
    assert torch.allclose(logits(model), before, atol=1e-5)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for _, parameter in memory.base_parameters())
    memory.commit()
    assert torch.equal(logits(model), before)
    memory.forget_wide()
    assert torch.equal(logits(model), before)


def test_an_expert_may_count_as_part_of_the_base():
    model = tiny_model()
    memory = attach(model, SPEC)
    fill(memory, own := memory.activate())
    memory.commit()
    grown = logits(model)
    fill(memory, memory.activate(), seed=1)
    memory.commit()
    with memory.as_base():
        assert not torch.equal(logits(model), grown)
    memory.in_base = (own,)
    with memory.as_base():
        assert torch.equal(logits(model), grown)
    assert not torch.equal(logits(model), grown)
