"""Perplexity against the plain cross-entropy of all logits, and how texts are cut."""

import math

import pytest
import torch
from torch.nn import functional as F

from sleep_trl.evaluation import perplexity
from sleep_trl.evaluation.perplexity import mean_loss, token_windows
from sleep_trl.memory import MemorySpec, attach
from sleep_trl.models.head import Head
from tests.tiny import byte_tokenizer, tiny_model, tiny_tokenizer

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


def test_texts_are_cut_into_windows_that_lose_nothing(monkeypatch):
    tokenizer = byte_tokenizer()
    text = "the boat of Ben " * 20
    windows = token_windows([text, "x"], tokenizer, 64)
    assert [len(window) for window in windows] == [64] * 5 and tokenizer.decode([i for w in windows for i in w]) == text
    monkeypatch.setattr(perplexity, "LONGEST_WINDOW", 100)
    assert [len(window) for window in token_windows([text], tokenizer, 4096)] == [100, 100, 100, 20]


def test_a_window_begins_with_what_the_tokenizer_puts_before_a_text(monkeypatch):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    special = [("<bos>", 1), ("<eos>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<bos> $A <eos>", special_tokens=special)
    assert token_windows(["the cat of Mira", "it"], tokenizer, 3) == [[1, 4, 5], [1, 6, 7], [1, 12]]
