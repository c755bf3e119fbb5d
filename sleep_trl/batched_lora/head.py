"""The output layer, computed for counted positions only and in tiles, so that a pass never holds all its logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from .batches import Pass

# Logits in a tile. Ours: on a CPU a tile fits in a core's cache; on CUDA 2**27 logits are half a GiB in float32.
LOGITS = {"cpu": 2**20, "cuda": 2**27}


class Head:
    """Computes losses and gradients of a pass while installed by [`installed_head`].

    Args:
        model (`PreTrainedModel`):
            The model.
        is_target (`bool`):
            Whether the output layer has an adapter. Its logits are then computed for all positions at once.
    """

    def __init__(self, model: PreTrainedModel, is_target: bool) -> None:
        self.model, self.is_target, self.is_plain = model, is_target, False
        self.output: nn.Module = model.get_output_embeddings()
        self.places, self.hidden = torch.zeros(1, dtype=torch.long, device=model.device), torch.empty(0)

    def select(self, _: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        """Keep the counted positions only. With a plain head the model itself computes the logits of a single one."""
        self.hidden = args[0].flatten(0, 1).index_select(0, self.places)  # (counted, hidden)
        return ((self.hidden[:1] if self.is_plain else self.hidden)[None],)

    def find_form(self) -> None:
        """Find out whether the logits are the output layer's (a plain head), or the model caps or scales them."""
        logits = self.model(input_ids=self.places[None], use_cache=False).logits[0]
        self.is_plain = torch.equal(logits, self.output.forward(self.hidden))

    def forward_backward(self, rows: Pass) -> torch.Tensor:
        """
        Run the model forward and backward.

        Args:
            rows (`Pass`):
                Its input and labels.

        Returns:
            `torch.Tensor` of shape `(counted,)`: the weighted losses.
        """
        self.places = rows.places
        logits = self.model(input_ids=rows.ids, use_cache=False).logits
        if not self.is_plain:
            logits = logits.flatten(0, 1).index_select(0, rows.places) if self.is_target else logits[0]
            terms = _losses(logits, rows.labels, rows.weights)
            terms.sum().backward()
            return terms.detach()
        hidden, self.hidden = self.hidden, torch.empty(0)
        size = max(1, LOGITS["cpu" if hidden.device.type == "cpu" else "cuda"] // logits.shape[-1])
        done, grads = [], []
        for tile, labels, weights in zip(
            hidden.detach().split(size), rows.labels.split(size), rows.weights.split(size), strict=True
        ):
            tile.requires_grad_()
            terms = _losses(self.output.forward(tile), labels, weights)
            (grad,) = torch.autograd.grad(terms.sum(), tile)
            done.append(terms.detach())
            grads.append(grad)
        hidden.backward(torch.cat(grads))
        return torch.cat(done)


def _losses(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), labels, reduction="none") * weights


@contextmanager
def installed_head(model: PreTrainedModel, is_target: bool) -> Iterator[Head]:
    """Compute the output layer for counted positions only, unless it is a target itself."""
    head = Head(model, is_target)
    if is_target:
        yield head
        return
    handle = head.output.register_forward_pre_hook(head.select)
    try:
        with torch.no_grad():
            head.find_form()
        yield head
    finally:
        handle.remove()
