import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sleep_trl.dreams.gradients import IGNORED, Text, gradient_scores, output_maps, reference_gradient
from sleep_trl.dreams.select import Selection, select
from sleep_trl.memory import MemorySpec, attach
from tests.tiny import tiny_model


def dreams(n=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for i in range(n):
        ids = torch.randint(3, 97, (4 + 3 * (i % 4),), generator=generator).tolist()
        texts.append(Text.behind(ids[: 1 + i % 3], ids[1 + i % 3 :]))
    return texts


def gradient_by_autograd(model, text):
    """The gradient of one text's mean loss by an ordinary backward pass, for each map, as (out, in)."""
    weights = [module.weight for module in output_maps(model).values()]
    for weight in weights:
        weight.requires_grad_(True)
    logits = model(input_ids=torch.tensor([text.ids])).logits[0, :-1]
    loss = F.cross_entropy(logits, torch.tensor(text.labels[1:]), ignore_index=IGNORED)
    gradients = torch.autograd.grad(loss, weights)
    for weight in weights:
        weight.requires_grad_(False)
    return gradients


def is_transposed(model):
    return not isinstance(next(iter(output_maps(model).values())), nn.Linear)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("form", ["llama", "gemma2", "gpt_neox", "gpt2"])
def test_scores_equal_those_of_a_backward_pass_per_dream(form, batch_size):
    model = tiny_model(form).requires_grad_(False)
    texts, others = dreams(), dreams(3, seed=1)
    reference = reference_gradient(model, others, batch_size)
    scores = gradient_scores(model, texts, reference, batch_size)
    mean = [torch.stack(g).mean(0) for g in zip(*(gradient_by_autograd(model, text) for text in others), strict=True)]
    for ours, theirs in zip(reference.values(), mean, strict=True):
        torch.testing.assert_close(ours, theirs.T if is_transposed(model) else theirs, rtol=1e-4, atol=1e-6)
    flat = torch.cat([m.flatten() for m in mean])
    for i, text in enumerate(texts):
        own = torch.cat([g.flatten() for g in gradient_by_autograd(model, text)])
        assert scores.norm[i].item() == pytest.approx(own.norm().item(), rel=1e-4)
        assert scores.alignment[i].item() == pytest.approx(F.cosine_similarity(own, flat, dim=0).item(), abs=1e-4)


def test_both_formulas_of_the_norm_agree():
    """Long texts take the other branch: 40 tokens times 80 numbers are more than 32 times 48."""
    model = tiny_model().requires_grad_(False)
    ids = torch.randint(3, 97, (40,), generator=torch.Generator().manual_seed(2)).tolist()
    text = Text(ids, ids)
    own = torch.cat([g.flatten() for g in gradient_by_autograd(model, text)]).norm().item()
    assert gradient_scores(model, [text]).norm.item() == pytest.approx(own, rel=1e-4)


def test_scoring_does_not_change_the_model():
    model = tiny_model()
    memory = attach(model, MemorySpec(width=8, max_experts=2))
    expert = memory.activate()
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    model.train()
    gradient_scores(model, dreams())
    assert model.training and memory.learning == expert
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0]) and p.requires_grad == before[name][1] and p.grad is None
    assert not any(module._forward_hooks for module in output_maps(model).values())
    assert not model.get_input_embeddings()._forward_hooks


def test_a_text_without_counted_tokens_has_norm_zero():
    model = tiny_model().requires_grad_(False)
    scores = gradient_scores(model, [Text([5, 6, 7], [IGNORED] * 3), *dreams(2)])
    assert scores.norm[0] == 0 and scores.norm[1] > 0


def test_the_best_of_each_task_and_some_random_ones_are_kept():
    model = tiny_model().requires_grad_(False)
    texts = dreams(12)
    tasks = ["a", "b"] * 6
    norms = gradient_scores(model, texts).norm
    selected = select(texts, tasks, Selection("gradient_norm", top_k=2, random_k=1), model, seed=3)
    for task in ("a", "b"):
        rows = [i for i in range(12) if tasks[i] == task]
        best = sorted(rows, key=lambda i: -norms[i].item())[:2]
        assert sorted(i for i in rows if selected.reasons[i] == "top") == sorted(best)
        assert sum(selected.reasons[i] == "random" for i in rows) == 1
    assert selected.scores == norms.tolist() and sum(selected.is_kept) == 6
    assert selected == select(texts, tasks, Selection("gradient_norm", top_k=2, random_k=1), model, seed=3)
    only_a = select(texts[::2], ["a"] * 6, Selection("gradient_norm", top_k=2, random_k=1), model, seed=3)
    assert only_a.is_kept == selected.is_kept[::2]  # independent of the other tasks


def test_controls_and_short_tasks():
    model = tiny_model().requires_grad_(False)
    texts = dreams(5)
    assert select(texts, ["a"] * 5, Selection("all"), model).reasons == ["all"] * 5
    drawn = select(texts, ["a"] * 5, Selection("random", top_k=2, random_k=1), model)
    assert drawn.reasons.count("random") == 3 and drawn.scores == [None] * 5
    assert sum(select(texts, ["a"] * 5, Selection("gradient_norm", 9, 9), model).is_kept) == 5


def test_alignment_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="gradient_norm"):
        select(dreams(2), ["a", "a"], Selection("gradient_alignment"), tiny_model())


@pytest.mark.parametrize("wrong", [{"rule": "best"}, {"top_k": -1}, {"top_k": 0, "random_k": 0}])
def test_impossible_selections_are_refused(wrong):
    with pytest.raises(ValueError):
        Selection(**wrong)
