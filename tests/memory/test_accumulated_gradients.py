"""Online consolidation (Eq. 2): what a boundary adds to a level's block, against plain gradient descent."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from sleep_trl.memory import MemorySpec, attach, fold, load_memory, save_memory
from sleep_trl.memory.accumulated_gradients import Accumulated, write_updated
from sleep_trl.memory.memory import Memory
from tests.memory.test_memory import fill, logits
from tests.tiny import FORMS, tiny_model

SPEC = MemorySpec(width=8, max_experts=6)
DAYS = [[[5, 9, 13, 8, 21, 30], [7, 7, 12]], [[40, 41, 42, 43, 44]]]  # texts ingested on two days
CHUNK = [text for day in DAYS for text in day]


def with_blocks(form: str = "llama") -> Memory:
    """Return a memory with a settled expert and the blocks of two levels, with weights that matter."""
    memory = attach(tiny_model(form), SPEC)
    fill(memory, memory.activate(), seed=0)
    memory.commit()
    for level in (1, 2):
        fill(memory, memory.add_block(level), seed=level)
    return memory


def weights(memory: Memory, index: int) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in memory.expert_parameters(index)}


@pytest.mark.parametrize("form", FORMS)
def test_an_update_is_a_step_of_gradient_descent_on_the_whole_chunk(form):
    memory, plain = with_blocks(form), with_blocks(form)
    accumulated = Accumulated()
    for day in DAYS:
        accumulated.add(memory, day)
    predicted = sum(len(text) - 1 for text in CHUNK)
    assert accumulated.tokens == {1: predicted, 2: predicted}

    block = memory.blocks[2]
    plain.train_only(block)  # trains it as any optimizer would
    mean = sum(plain.model(input_ids=torch.tensor([t]), labels=torch.tensor([t])).loss * (len(t) - 1) for t in CHUNK)
    (mean / predicted).backward()
    torch.optim.SGD([p for _, p in plain.expert_parameters(block)], lr=0.5).step()

    write_updated(memory, block, accumulated.update(2, learning_rate=0.5, max_norm=math.inf), block)
    expected, moved = weights(plain, block), 0.0
    for name, found in weights(memory, block).items():
        assert (found - expected[name]).abs().max() <= 1e-6
        moved += (found - weights(with_blocks(form), block)[name]).abs().sum().item()
    assert moved > 1e-2


def test_a_large_gradient_is_scaled_down():
    memory, accumulated = with_blocks(), Accumulated()
    accumulated.add(memory, CHUNK)
    free = accumulated.update(1, learning_rate=2.0, max_norm=math.inf)
    norm = torch.cat([g.flatten() for g in free.values()]).norm().item() / 2.0
    scaled = accumulated.update(1, learning_rate=2.0, max_norm=norm / 4)
    for name, update in scaled.items():
        torch.testing.assert_close(update, free[name] / 4)


def test_accumulating_changes_nothing_and_trains_nothing():
    memory = with_blocks()
    state, before = copy.deepcopy(memory.model.state_dict()), logits(memory.model)
    Accumulated().add(memory, CHUNK)
    assert all(torch.equal(value, state[name]) for name, value in memory.model.state_dict().items())
    assert torch.equal(logits(memory.model), before)
    assert not any(p.requires_grad or p.grad is not None for p in memory.model.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_a_new_block_changes_nothing(form):
    memory = attach(tiny_model(form), SPEC)
    fill(memory, memory.activate(), seed=0)
    memory.commit()
    before = logits(memory.model)
    memory.add_block(1)
    assert (logits(memory.model) - before).abs().max() <= 1e-5


def test_saving_and_loading_changes_nothing(tmp_path):
    memory, whole, parts = with_blocks(), Accumulated(), Accumulated()
    for day in DAYS:
        whole.add(memory, day)
        parts.add(memory, day)
        parts.save(tmp_path)
        parts = Accumulated.load(tmp_path)
    assert parts.tokens == whole.tokens
    for level in (1, 2):
        for name, gradient in whole.gradients[level].items():
            assert torch.equal(parts.gradients[level][name], gradient)
    for level in (1, 2):
        parts.clear(level)
    parts.save(tmp_path)
    assert not (tmp_path / "accumulated.safetensors").exists() and Accumulated.load(tmp_path) == Accumulated()


def test_blocks_are_saved_and_folded(tmp_path):
    memory, accumulated = with_blocks(), Accumulated()
    accumulated.add(memory, CHUNK)
    write_updated(memory, memory.blocks[1], accumulated.update(1, 0.5, 1.0), memory.blocks[1])
    save_memory(memory, tmp_path / "adapter")
    read = load_memory(tiny_model(), tmp_path / "adapter")
    assert read.blocks == memory.blocks and read.records == memory.records
    assert torch.equal(logits(read.model), logits(memory.model))
    assert fold(memory, tmp_path / "model") == 0.0


def test_the_student_has_the_new_block_and_the_teacher_the_old_one():
    memory = with_blocks()
    sender, old = 0, memory.blocks[1]
    before = logits(memory.model)
    new = memory.add_block(1)
    fill(memory, new, seed=7)
    receiver = memory.activate(2, replacing=(sender, old), joining=(new,))
    assert memory.active == (memory.blocks[2], new, receiver) and memory.blocks[1] == new
    with memory.as_teacher():
        assert memory.in_view == (sender, old, memory.blocks[2])
        assert (logits(memory.model) - before).abs().max() <= 1e-5
    learning = logits(memory.model)
    memory.commit()
    assert sorted(memory.records) == sorted((memory.blocks[2], new, receiver)) and memory.joining == ()
    assert (logits(memory.model) - learning).abs().max() <= 1e-5


def test_resetting_the_receiver_restores_the_old_block():
    memory = with_blocks()
    before, old = logits(memory.model), memory.blocks[1]
    new = memory.add_block(1)
    receiver = memory.activate(2, replacing=(0, old), joining=(new,))
    fill(memory, receiver, seed=8)
    memory.reset(receiver)
    assert memory.blocks[1] == old and new not in memory.records
    assert torch.equal(logits(memory.model), before)
