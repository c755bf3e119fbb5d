import pytest
import torch

from sleep_trl.evaluation.recall import agreement
from sleep_trl.memory import MemorySpec, attach
from tests.tiny import FORMS, tiny_model

SEQUENCES = torch.randint(3, 97, (4, 24), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [True, False])
def test_a_model_agrees_with_itself_in_any_mode(form, training):
    """GPT-2 has dropout, and TRL leaves a model in training mode."""
    model = tiny_model(form).train(training)
    memory = attach(model, MemorySpec(width=8, max_experts=1))
    memory.activate()
    assert agreement(memory, SEQUENCES) == 1.0
    assert model.training is training


def test_agreement_counts_the_positions_where_an_expert_changes_the_next_token():
    model = tiny_model()
    memory = attach(model, MemorySpec(width=8, max_experts=1))
    ids = torch.tensor(SEQUENCES)
    with torch.no_grad():
        before = model(input_ids=ids).logits.argmax(-1)
        for _, parameter in memory.expert_parameters(memory.activate()):
            parameter.normal_(0, 0.2)
        after = model(input_ids=ids).logits.argmax(-1)
    expected = float((before == after).float().mean())
    assert 0 < expected < 1
    assert agreement(memory, SEQUENCES) == pytest.approx(expected)


def test_without_texts_there_is_no_agreement():
    assert agreement(attach(tiny_model(), MemorySpec(width=8, max_experts=1)), []) is None
