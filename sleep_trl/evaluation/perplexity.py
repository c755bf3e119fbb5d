"""Perplexity of a model on texts. Full-vocabulary logits are held for a few positions at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..distributed.zero3 import gathered
from ..models.head import Head
from ..rollout import Progress

LARGEST_LOSS = 100.0  # nats
TILE = 2**24  # logits held at a time: 64 MiB in float32


def find_guessing(loss: float | None, vocabulary: int, what: str, option: str) -> str | None:
    """Return why texts say nothing about a model that predicts them worse than by guessing, with the option that gives
    others, or `None` if it does not."""
    if loss is None or loss <= math.log(vocabulary):
        return None
    return f"the model does worse than guessing on {what}; give {option}"


@torch.no_grad()
def mean_loss(
    model: PreTrainedModel, windows: Sequence[Sequence[int]], progress: Progress | None = None
) -> float | None:
    """Return the mean negative log-likelihood of a token, of which the perplexity is the exponential.

    The windows are divided over the processes, which have to call this together.

    Args:
        model (`PreTrainedModel`):
            A causal language model. It runs without dropout and is left in its previous mode.
        windows (`Sequence[Sequence[int]]`):
            Token ids, see [`sleep_trl.data.windows.token_windows`]. All but the first token of each
            window count, and all alike.
        progress (`Callable[[int], None]`, *optional*):
            Called with the number of finished windows.

    Returns:
        `float`: in nats, or `None` if there are no windows. At most 100, also where a broken model gives infinity or no
        number at all, so that its exponential can be stored.
    """
    if not windows:
        return None
    state, was_training = PartialState(), model.training
    model.eval()
    total, count = 0.0, 0
    for turn in range(0, len(windows), state.num_processes):
        mine = turn + state.process_index
        is_mine = mine < len(windows)  # with sharded weights every process takes part in every forward pass
        ids = torch.tensor([windows[mine if is_mine else turn]], device=model.device)
        loss = _sum_of_losses(model, ids)
        if is_mine:
            total, count = total + loss, count + ids.size(1) - 1
        if progress:
            progress(int(is_mine))
    model.train(was_training)
    everyone = gather_object([(total, count)])
    mean = sum(loss for loss, _ in everyone) / sum(tokens for _, tokens in everyone)
    return float(mean) if mean < LARGEST_LOSS else LARGEST_LOSS


def _sum_of_losses(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Return the negative log-likelihood of all tokens but the first. The ids have the shape (1, length)."""
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]  # (length - 1, hidden)
    with gathered(model.get_output_embeddings().parameters()):
        head = Head.of(model)
        rows = max(1, TILE // head.weight.size(0))
        tiles = zip(hidden.split(rows), ids[0, 1:].split(rows), strict=True)
        return sum(float(F.cross_entropy(head.logits(states), tokens, reduction="sum")) for states, tokens in tiles)
