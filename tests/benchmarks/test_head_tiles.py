"""The small tiles on which the memory of a seeding step rests change no number."""

import pytest
import torch

from sleep_trl.models.head import Head
from sleep_trl.trainers.knowledge_seeding import loss
from sleep_trl.trainers.knowledge_seeding.loss import divergence_per_token, log_probs_per_token


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_log_probs_and_entropies_are_those_of_full_logits(rows, monkeypatch):
    monkeypatch.setattr(loss, "positions_per_tile", lambda device: rows)
    torch.manual_seed(0)
    weight, bias = torch.randn(37, 8), torch.randn(37)
    hidden = torch.randn(3, 7, 8, requires_grad=True)
    ids = torch.randint(37, (3, 7))
    mask = torch.rand(3, 7) > 0.3
    head = Head(weight, bias, scale=0.5, softcap=3.0)
    log_probs, entropies = log_probs_per_token(hidden, head, ids, mask, temperature=0.8)

    logits = 3.0 * torch.tanh((hidden @ weight.T + bias) * 0.5 / 3.0) / 0.8
    plain = logits.log_softmax(-1)
    torch.testing.assert_close(log_probs, plain.gather(-1, ids[..., None])[..., 0] * mask)
    torch.testing.assert_close(entropies, -(plain.exp() * plain).sum(-1) * mask)
    ours = torch.autograd.grad((log_probs * torch.arange(7)).sum(), hidden, retain_graph=True)[0]
    theirs = torch.autograd.grad((plain.gather(-1, ids[..., None])[..., 0] * mask * torch.arange(7)).sum(), hidden)[0]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_divergence_does_not_depend_on_the_tile(beta, monkeypatch):
    torch.manual_seed(0)
    head = Head(torch.randn(37, 8))
    teacher, mask = torch.randn(3, 7, 8), torch.rand(3, 7) > 0.3
    found = []
    for rows in (64, 4):
        monkeypatch.setattr(loss, "positions_per_tile", lambda device, rows=rows: rows)
        student = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        value = divergence_per_token(student, teacher, head, head, mask, beta)
        found.append((value.detach(), torch.autograd.grad(value.sum(), student)[0]))
    torch.testing.assert_close(found[0], found[1])


def test_nothing_that_counts_is_nothing_to_learn():
    head = Head(torch.randn(37, 8))
    hidden = torch.randn(2, 3, 8, requires_grad=True)
    none = torch.zeros(2, 3)
    log_probs, entropies = log_probs_per_token(hidden, head, torch.zeros(2, 3, dtype=torch.long), none, 1.0)
    divergence = divergence_per_token(hidden, hidden.detach(), head, head, none, 0.0)
    (log_probs.sum() + divergence.sum()).backward()
    assert not log_probs.any() and not entropies.any() and not divergence.any() and not hidden.grad.any()
