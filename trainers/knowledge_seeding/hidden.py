"""Last hidden states of a model, from which divergence and log-probabilities are computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

Padded = tuple[torch.Tensor, torch.Tensor]  # ids and mask, both (batch, length)


class CapturedHidden:
    """Context manager that captures the last hidden states of a forward pass through the backbone."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._backbone = _backbone(model)
        self.value = torch.empty(0)

    def __enter__(self) -> CapturedHidden:
        self._hook = self._backbone.register_forward_hook(self._keep)
        return self

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()

    def _keep(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.value = output.last_hidden_state


def _backbone(model: PreTrainedModel) -> nn.Module:
    """Return the model without its head; inside a PEFT model, whose layers hold its adapters."""
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "peft_config") else model
    return inner.base_model


def last_hidden(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the last hidden states of a batch. Shape `(batch, length, hidden)`."""
    # Prompts are padded on the left, so a model with learned positions needs to know where each text begins.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return _backbone(model)(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state


def concat_padded(prompt: Padded, continuation: Padded) -> Padded:
    """Concatenate ids and masks of prompt and continuation."""
    ids, mask = (torch.cat(pair, dim=1) for pair in zip(prompt, continuation, strict=True))
    return ids, mask


def predicting(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the hidden states from which `ids`, the end of the sequence, are predicted."""
    return hidden[:, -ids.size(1) - 1 : -1]
