"""Last hidden states of a model, from which divergence and log-probabilities are computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from sleep_trl.models.head import backbone
from sleep_trl.rollout.prefixes import hidden_behind

Padded = tuple[torch.Tensor, torch.Tensor]  # ids and mask, both (batch, length)


def last_hidden(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the last hidden states of a batch. Shape `(batch, length, hidden)`."""
    # Prompts are padded on the left, so a model with learned positions needs to know where each text begins.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return backbone(model)(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state


def concat_padded(prompt: Padded, continuation: Padded) -> Padded:
    """Concatenate ids and masks of prompt and continuation."""
    ids, mask = (torch.cat(pair, dim=1) for pair in zip(prompt, continuation, strict=True))
    return ids, mask


def predicting(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the hidden states from which `ids`, the end of the sequence, are predicted."""
    return hidden[:, -ids.size(1) - 1 : -1]


def read_behind(
    model: PreTrainedModel, texts: Sequence[tuple[Padded, Padded]], pad_id: int, most_tokens: float
) -> list[torch.Tensor]:
    """
    Return the hidden states from which continuations of prompts are predicted, with each prompt read once for all of
    them.

    Args:
        model (`PreTrainedModel`):
            The model.
        texts (`Sequence[tuple[Padded, Padded]]`):
            Ids and mask of prompts, padded on the left, and of their continuations, padded on the right.
        pad_id (`int`):
            Token to pad with.
        most_tokens (`float`):
            Most tokens in the KV cache of a batch.

    Returns:
        `list[torch.Tensor]`: for each pair, of shape `(rows, length of the continuations, hidden)`.
    """
    pairs = [[unpad(*part) for part in pair] for pair in texts]
    prompts = [ids for prompts, _ in pairs for ids in prompts]
    continuations = [ids for _, continuations in pairs for ids in continuations]
    rows = iter(hidden_behind(model, prompts, continuations, pad_id, most_tokens))
    return [stack([next(rows) for _ in ids], ids.shape[1]) for _, (ids, _) in texts]


def stack(rows: list[torch.Tensor], length: int) -> torch.Tensor:
    """Return hidden states of rows, each of shape `(tokens, hidden)`, padded to a length: `(rows, length, hidden)`."""
    states = pad_sequence(rows, batch_first=True)
    return nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))


def unpad(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """Return the tokens of each row where its mask is 1."""
    return [row[counts.bool()].tolist() for row, counts in zip(ids, mask, strict=True)]
