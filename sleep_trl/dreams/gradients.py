"""The gradient of each dream, from one forward and one backward pass over all of them.

A linear map with inputs x_t and output gradients g_t has the weight gradient G = Σ_t g_t x_tᵀ. Its norm and its inner
product with another gradient H need no G, since ‖G‖² = Σ_ts (g_t·g_s)(x_t·x_s) and ⟨G, H⟩ = Σ_t g_tᵀ H x_t. No weight
gradient is formed for a dream, and rows of a batch do not mix (the trick of Goodfellow, arXiv 1510.01799, and of "ghost
norms" in differentially private training, Li et al., arXiv 2110.05679).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from ..memory import Memory
from ..memory.hosts import find_hosts

IGNORED = -100  # label of a token that does not count, as in transformers


@dataclass(frozen=True)
class Text:
    """Token ids, and a label for each: the same id where the token counts in the loss, `IGNORED` elsewhere."""

    ids: list[int]
    labels: list[int]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.labels):
            raise ValueError(f"A text has {len(self.ids)} token ids and {len(self.labels)} labels; give one for each.")

    @staticmethod
    def behind(prompt: Sequence[int], completion: Sequence[int]) -> Text:
        """Make the text of a prompt, which does not count, and a completion, which does."""
        return Text([*prompt, *completion], [IGNORED] * len(prompt) + list(completion))


@dataclass(frozen=True)
class GradientScores:
    """Scores of each text, in the order given."""

    norm: torch.Tensor  # (texts,), of the gradient of the mean loss per token
    alignment: torch.Tensor | None  # (texts,), cosine with the reference gradient, in [-1, 1]


Captured = dict[str, tuple[torch.Tensor, torch.Tensor]]  # inputs (batch, length, in), gradients (batch, length, out)


def output_maps(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the output map of every MLP by name: the weights whose gradients are compared.

    Ours: the paper does not say which gradient scores a dream. These maps hold what a layer adds to the residual
    stream, every architecture that can host experts has them, and an expert's own output goes there as well.
    """
    memory = Memory.of(model)
    hosts = memory.hosts if memory is not None else find_hosts(model)
    return {f"{host.name}.{host.form.output}": getattr(host.module, host.form.output) for host in hosts}


def gradient_scores(
    model: PreTrainedModel,
    texts: Sequence[Text],
    reference: dict[str, torch.Tensor] | None = None,
    batch_size: int = 16,
) -> GradientScores:
    """
    Score texts by the gradient of their mean language-model loss with respect to [`output_maps`].

    Args:
        model (`PreTrainedModel`):
            The model, with the experts in view. Its weights and their gradients are not changed.
        texts (`Sequence[Text]`):
            Texts to score. A text in which no token counts has norm 0.
        reference (`dict[str, torch.Tensor]`, *optional*):
            A gradient to compare with, from [`reference_gradient`].
        batch_size (`int`, *optional*, defaults to `16`):
            Texts in a forward pass; they are sorted by length.

    Returns:
        `GradientScores`: norms, and cosines if there is a reference.
    """
    norms = torch.zeros(len(texts))
    products = torch.zeros(len(texts))
    for rows, captured in _backward_in_batches(model, texts, batch_size):
        norms[rows] = torch.stack([_squared_norms(x, g) for x, g in captured.values()]).sum(0).sqrt().cpu()
        if reference is not None:
            inner = [_products(x, g, reference[name]) for name, (x, g) in captured.items()]
            products[rows] = torch.stack(inner).sum(0).cpu()
    if reference is None:
        return GradientScores(norms, None)
    length = torch.stack([gradient.norm() for gradient in reference.values()]).norm().item()
    return GradientScores(norms, products / (norms * length).clamp(min=torch.finfo(norms.dtype).tiny))


def reference_gradient(model: PreTrainedModel, texts: Sequence[Text], batch_size: int = 16) -> dict[str, torch.Tensor]:
    """
    Return the gradient of the mean loss over texts, such as the memories that were just consolidated.

    Args:
        model (`PreTrainedModel`):
            The model.
        texts (`Sequence[Text]`):
            At least one text.
        batch_size (`int`, *optional*, defaults to `16`):
            Texts in a forward pass.

    Returns:
        `dict`: for each of [`output_maps`], a gradient of shape `(out, in)`.

    Raises:
        `ValueError`: if there is no text.
    """
    if not texts:
        raise ValueError("No texts to compute a reference gradient from. Give at least one.")
    total: dict[str, torch.Tensor] = {}
    for _, captured in _backward_in_batches(model, texts, batch_size):
        for name, (x, g) in captured.items():
            gradient = torch.einsum("bto,bti->oi", g, x) / len(texts)
            total[name] = total[name] + gradient if name in total else gradient
    return total


def _squared_norms(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Return ‖Σ_t g_t x_tᵀ‖² of each row; shape `(batch,)`. Uses the cheaper of the two formulas."""
    length = x.size(1)
    if length * (x.size(2) + g.size(2)) < x.size(2) * g.size(2):
        return ((x @ x.mT) * (g @ g.mT)).sum((1, 2)).clamp(min=0)
    return torch.einsum("bto,bti->boi", g, x).square().sum((1, 2))


def _products(x: torch.Tensor, g: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return ⟨Σ_t g_t x_tᵀ, reference⟩ of each row; shape `(batch,)`."""
    return (g * (x @ reference.T)).sum((1, 2))


def _backward_in_batches(
    model: PreTrainedModel, texts: Sequence[Text], batch_size: int
) -> Iterator[tuple[torch.Tensor, Captured]]:
    """Yield the texts' indices and the maps' inputs and output gradients, batch by batch, the shortest texts first."""
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(by_length), batch_size):
            rows = by_length[start : start + batch_size]
            yield torch.tensor(rows), _backward(model, [texts[i] for i in rows])
    finally:
        model.train(was_training)


def _backward(model: PreTrainedModel, texts: Sequence[Text]) -> Captured:
    width = max(len(text.ids) for text in texts)
    device = model.device
    ids = torch.tensor([t.ids + [0] * (width - len(t.ids)) for t in texts], device=device)
    labels = torch.tensor([t.labels + [IGNORED] * (width - len(t.labels)) for t in texts], device=device)
    mask = torch.tensor([[1] * len(t.ids) + [0] * (width - len(t.ids)) for t in texts], device=device)
    captured: Captured = {}
    with _frozen(model), _capturing(model, captured), torch.enable_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        counts = labels[:, 1:] != IGNORED  # (batch, length - 1)
        if counts.any():
            losses = F.cross_entropy(logits[counts].float(), labels[:, 1:][counts], reduction="none")
            (losses / counts.sum(1, keepdim=True).expand_as(counts)[counts]).sum().backward()
    return captured


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Compute no gradient of any weight, only of activations."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    embeddings = model.get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda _module, _args, output: output.requires_grad_(True))
    try:
        yield
    finally:
        hook.remove()
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _capturing(model: PreTrainedModel, captured: Captured) -> Iterator[None]:
    def hook(name: str) -> Any:
        def keep(_module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            inputs = args[0].detach().float()
            captured[name] = inputs, torch.zeros_like(output, dtype=torch.float32)
            output.register_hook(lambda gradient: captured.__setitem__(name, (inputs, gradient.float())))

        return keep

    hooks = [module.register_forward_hook(hook(name)) for name, module in output_maps(model).items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
