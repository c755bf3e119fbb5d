"""Protection of earlier knowledge: teachers of self-replay, drift of hidden states, expert dropout."""

import pytest
import torch
from datasets import Dataset

from sleep_trl.data.parts import PARTS
from sleep_trl.memory import Memory, MemorySpec, attach
from sleep_trl.trainers import KnowledgeSeedingConfig
from tests.tiny import tiny_model
from tests.trainers import seedings

ROWS = [
    {"prompt": "the cat of Mira", "teacher_prompt": "the cat is Tolu the cat of Mira", "reference": "is called Tolu"},
    {"prompt": "the boat of Ben", "teacher_prompt": "the boat of Ben", "reference": "sleeps while it eats"},
    {"prompt": "it eats", "teacher_prompt": "it eats", "reference": "hats and the boat"},
]


def rows(*parts):
    return Dataset.from_list([{**ROWS[i % 3], "part": part} for i, part in enumerate(parts)])


def grown():
    """Return a model whose first expert has learned and whose second is learning, both with weights that matter."""
    model = tiny_model()
    memory = attach(model, MemorySpec(width=8, max_experts=2))
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        with torch.no_grad():
            for _, parameter in memory.expert_parameters(memory.activate()):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def trainer(tmp_path, data, reward=None, **options):
    given = {"num_generations": 2, "max_completion_length": 4, "shuffle_dataset": False} | options
    reward = reward or (lambda completions, **_: [0.0] * len(completions))
    size = 2 * len(data)
    return seedings.trainer(
        tmp_path, model=grown(), data=data, reward_funcs=reward, per_device_train_batch_size=size, **given
    )


def hidden(t, batch, prompt, kind="reference"):
    ids = torch.cat([batch[f"{prompt}_ids"], batch[f"{kind}_ids"]], 1)
    mask = torch.cat([batch[f"{prompt}_mask"], batch[f"{kind}_mask"]], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    states = t.model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    return states[:, -batch[f"{kind}_ids"].size(1) - 1 : -1]


def test_the_pretrained_model_teaches_general_samples_and_last_nights_model_the_rest(tmp_path):
    t = trainer(tmp_path, rows("memory", "general", "earlier"))
    batch, memory = seedings.first_batch(t), Memory.of(t.model)
    counts = batch["reference_mask"].bool()
    [teacher_outputs] = t._teacher_outputs([(batch, batch["reference_ids"], batch["reference_mask"])])
    with torch.no_grad(), memory.as_base():
        base = hidden(t, batch, "teacher_prompt")
    with torch.no_grad(), memory.as_teacher():
        before = hidden(t, batch, "teacher_prompt")
    is_general = batch["part"] == PARTS.index("general")
    assert (base - before).abs().max() > 1e-2
    states_found = torch.empty_like(base)
    for teacher_output in teacher_outputs:
        [(states, _)] = teacher_output.states
        states_found[teacher_output.rows] = states
    for rows_of, expected in ((is_general, base), (~is_general, before)):
        where = counts & rows_of[:, None]
        torch.testing.assert_close(states_found[where], expected[where], rtol=1e-4, atol=1e-5)


def test_drift_is_the_plain_formula_and_counts_on_self_replay_alone(tmp_path):
    """Squared distance of hidden states by squared length, against the trainer's loss: the mean over all tokens of
    rollouts, and the mean over references of the mean over their tokens."""
    data = rows("memory", "general", "earlier")
    losses = {}
    for weight in (0.0, 3.0):
        t = trainer(tmp_path, data, alpha=1.0, lmbda=0.25, replay_weight=0.5, drift_weight=weight)
        batch = seedings.first_batch(t)
        losses[weight] = t._compute_loss(t.model, batch).item()
    memory, part = Memory.of(t.model), batch["part"]
    expected = 0.0
    for kind, share, of_general in (("completion", 0.25, 0.0), ("reference", 0.75, 1.0)):
        mask = batch[f"{kind}_mask"]
        with torch.no_grad():
            student = hidden(t, batch, "prompt", kind)
            with memory.as_base():
                base = hidden(t, batch, "teacher_prompt", kind)
            with memory.as_teacher():
                before = hidden(t, batch, "teacher_prompt", kind)
        own = torch.where((part == PARTS.index("general"))[:, None, None], base, before)
        drift = (student - own).square().sum(-1) / own.square().sum(-1) * mask * (part > 1)[:, None]
        weight = torch.where(part == PARTS.index("general"), of_general, share)  # general rows are not rolled out
        mean = drift.sum(1) / (mask.sum() if kind == "completion" else len(mask) * mask.sum(1))
        expected += 0.5 * 3.0 * (mean * weight).sum().item()
    assert losses[3.0] - losses[0.0] == pytest.approx(expected, rel=1e-4) and expected > 1e-3


def test_a_step_drops_experts_for_teacher_and_student_alike(tmp_path):
    def views(name):
        seen = []

        def reward(completions, **_):
            memory = Memory.of(t.model)
            student = memory.in_view
            with memory.as_teacher():
                seen.append((student, memory.in_view))
            return [0.0] * len(completions)

        t = trainer(tmp_path / name, rows("memory", "memory"), reward, expert_dropout=0.5, max_steps=8)
        t.train()
        assert Memory.of(t.model).in_view == (0, 1)
        return seen

    seen = views("a")
    assert set(seen) == {((0, 1), (0,)), ((1,), ())} and len(seen) == 8
    assert views("b") == seen


@pytest.mark.parametrize(("name", "value"), [("drift_weight", -1.0), ("expert_dropout", 1.0), ("expert_dropout", -0.1)])
def test_values_out_of_range_are_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        KnowledgeSeedingConfig(str(tmp_path), bf16=False, use_cpu=True, **{name: value})
