"""An expert that replaces others: they teach it, and are pruned once it is committed."""

from __future__ import annotations

import pytest
import torch

from sleep_trl.memory import Memory, MemorySpec, attach, load_experts, load_memory, save_memory
from sleep_trl.runs.files import read_json
from tests.memory.test_memory import fill, logits
from tests.tiny import FORMS, tiny_model

SPEC = {"width": 8, "max_experts": 4, "top_k": 2}


def grown(form: str = "llama", **spec: object) -> Memory:
    """Return a memory with three settled experts."""
    memory = attach(tiny_model(form), MemorySpec(**{**SPEC, **spec}))
    for seed in range(3):
        fill(memory, memory.activate(), seed)
    memory.commit()
    return memory


def without(*pruned: int, **spec: object) -> torch.Tensor:
    """Return the logits of the memory that never had some of them."""
    memory = grown(**spec)
    for index in pruned:
        memory.reset(index)
    return logits(memory.model)


@pytest.mark.parametrize("form", FORMS)
def test_the_teacher_has_those_that_the_student_lacks(form):
    memory = grown(form)
    whole, rest = logits(memory.model), without(0, 2, form=form)
    assert (whole - rest).abs().max() > 1e-2
    assert memory.activate(level=2, replacing=[0, 2]) == 3
    assert memory.active == (1, 3)
    assert torch.equal(logits(memory.model), rest)  # the new one changes nothing yet
    fill(memory, 3, seed=3)
    with memory.as_teacher():
        assert memory.in_view == (0, 1, 2)
        assert (logits(memory.model) - whole).abs().max() <= 1e-5
    assert [index for index in range(4) if any(p.requires_grad for _, p in memory.expert_parameters(index))] == [3]


def test_a_routed_teacher_has_them_too():
    memory = grown(routing="topk")
    whole = logits(memory.model)
    memory.activate(level=2, replacing=[0, 1])
    with memory.as_teacher():
        assert torch.equal(logits(memory.model), whole)
    assert torch.equal(logits(memory.model), without(0, 1, routing="topk"))


def test_switching_between_teacher_and_student_rebuilds_no_host():
    memory = grown()
    memory.activate(replacing=[0, 2])
    maps = memory.hosts[0].module.memory.maps
    logits(memory.model)
    made = maps._made_of
    with memory.as_teacher():
        logits(memory.model)
    assert maps._made_of is made


def test_committing_prunes_and_frees_the_slots():
    memory = grown()
    first = attach(tiny_model(), MemorySpec(**SPEC)).fingerprint(0)
    fill(memory, memory.activate(level=2, replacing=[0, 2]), seed=3)
    learning = logits(memory.model)
    memory.commit()
    assert sorted(memory.records) == [1, 3] and memory.records[3].level == 2 and memory.replacing == ()
    assert (logits(memory.model) - learning).abs().max() <= 1e-5
    assert memory.fingerprint(0) == first
    assert memory.activate() == 0


def test_resetting_the_new_expert_restores_them():
    memory = grown()
    whole = logits(memory.model)
    fill(memory, memory.activate(replacing=[0, 2]), seed=3)
    memory.reset(3)
    assert memory.active == (0, 1, 2) and torch.equal(logits(memory.model), whole)


def test_saved_in_between_it_is_loaded_as_committed(tmp_path):
    memory = grown()
    fill(memory, memory.activate(level=2, replacing=[0, 2]), seed=3)
    save_memory(memory, tmp_path)
    assert read_json(tmp_path / "memory.json")["replacing"] == [0, 2]
    resumed = grown()
    resumed.activate(level=2, replacing=[0, 2])
    load_experts(resumed, tmp_path)
    assert resumed.active == (1, 3) and resumed.replacing == (0, 2)
    for one in (memory, resumed):
        one.commit()
    loaded = load_memory(tiny_model(), tmp_path)
    assert loaded.records == memory.records == resumed.records
    assert torch.equal(logits(loaded.model), logits(memory.model))
    assert torch.equal(logits(resumed.model), logits(memory.model))
    save_memory(memory, tmp_path)
    assert "replacing" not in read_json(tmp_path / "memory.json")


def test_errors_name_what_cannot_be_replaced():
    memory = grown(max_experts=5)
    with pytest.raises(ValueError, match=r"Expert 3 is not active; active ones are \[0, 1, 2\]"):
        memory.activate(replacing=[0, 3])
    memory.activate(replacing=[0, 1])
    with pytest.raises(ValueError, match=r"Experts \[0, 1\] are still being replaced by expert 3"):
        memory.activate()
