"""Perplexity against the plain cross-entropy of all logits."""

import math

import pytest
import torch
from torch.nn import functional as F

from sleep_trl.evaluation import perplexity
from sleep_trl.evaluation.perplexity import mean_loss
from sleep_trl.memory import MemorySpec, attach
from sleep_trl.models.head import Head
from tests.tiny import tiny_model

WINDOWS = [[1, 5, 9, 33, 7, 8], [4, 2], [1, *range(10, 60)]]


def plain_loss(model, windows) -> float:
    losses = []
    for window in windows:
        ids = torch.tensor([window])
        with torch.no_grad():
            losses.append(F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none"))
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize("form", ["llama", "gemma2", "gpt2", "phi"])
def test_it_is_the_plain_cross_entropy_in_small_tiles(form, monkeypatch):
    monkeypatch.setattr(perplexity, "TILE", 4 * 97)
    sizes, logits = [], Head.logits

    def recorded(self, hidden, size=None):
        sizes.append(len(hidden))
        return logits(self, hidden, size)

    monkeypatch.setattr(Head, "logits", recorded)
    model, finished = tiny_model(form).train(), []
    loss = mean_loss(model, WINDOWS, finished.append)
    assert loss == pytest.approx(plain_loss(model.eval(), WINDOWS), rel=1e-5)
    assert max(sizes) == 4 and sum(sizes) == sum(len(window) - 1 for window in WINDOWS) and sum(finished) == 3


def test_an_expert_takes_part():
    model = tiny_model()
    memory = attach(model, MemorySpec(width=8, max_experts=1))
    with torch.no_grad():
        for _, parameter in memory.expert_parameters(memory.activate()):
            parameter.normal_(0, 0.2)
    grown, plain = plain_loss(model, WINDOWS), plain_loss(tiny_model(), WINDOWS)
    assert mean_loss(model, WINDOWS) == pytest.approx(grown, rel=1e-5) and abs(grown - plain) > 0.01
    assert mean_loss(model, []) is None


def test_a_broken_model_has_a_loss_that_can_be_stored():
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(math.nan)
    assert mean_loss(model, WINDOWS) == 100.0
