"""Prefixes that prompts share: which prompts to batch, so that a prefix is read once, and its KV cache for each row.

A row's cache is the beginning of the row as an ordinary left-padded batch would hold it, so that attention masks and
positions, including those of sliding windows, are what they are without sharing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

SHORTEST = 8  # tokens; reading a shorter prefix by itself saves less than the forward pass costs


@dataclass(frozen=True)
class Batch:
    """Prompts to generate for together.

    Args:
        rows (`list[int]`): their indices.
        shared (`list[int]`): for each row, the number of its first tokens that are read once for several rows.
    """

    rows: list[int]
    shared: list[int]


def plan_batches(
    prompts: Sequence[list[int]], most_rows: int, most_tokens: float, new_tokens: int
) -> tuple[int, list[Batch]]:
    """
    Divide prompts into batches, those with a common prefix together, and prompts of similar length otherwise.

    Args:
        prompts (`Sequence[list[int]]`):
            Token ids of each prompt.
        most_rows (`int`):
            Most prompts in a batch.
        most_tokens (`float`):
            Most tokens in the KV cache of a batch, padding, shared prefixes and new tokens included. A batch has at
            least one row.
        new_tokens (`int`):
            Tokens that each row will get.

    Returns:
        `tuple[int, list[Batch]]`: the number of first tokens that all prompts share (0 if they are few), and the
        batches.
    """
    in_order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    # Of each prompt and the next: the tokens of the common prefix. At least one token of a prompt is left to read.
    common = [_common(prompts[i], prompts[j]) for i, j in itertools.pairwise(in_order)]
    everywhere = min(common, default=0)
    everywhere = everywhere if everywhere >= SHORTEST else 0
    runs = [(in_order[a:b], shared) for a, b, shared in _runs(common, everywhere, most_rows)]
    runs.sort(key=lambda run: max(len(prompts[i]) for i in run[0]) - run[1], reverse=True)  # by what is left to read
    batches: list[Batch] = []
    width = prefixes = 0
    for rows, shared in runs:
        for place, row in enumerate(rows):
            grown = max(width, len(prompts[row]) + new_tokens)
            held = prefixes + (place == 0)
            is_full = not batches or len(batches[-1].rows) == most_rows
            if is_full or (len(batches[-1].rows) + 1 + held) * grown > most_tokens:
                batches.append(Batch([], []))
                grown, held = len(prompts[row]) + new_tokens, 1
            batches[-1].rows.append(row)
            batches[-1].shared.append(shared)
            width, prefixes = grown, held
    return everywhere, batches


def _common(one: list[int], other: list[int]) -> int:
    most = min(len(one), len(other)) - 1
    return next((n for n, (a, b) in enumerate(zip(one[:most], other, strict=False)) if a != b), most)


def _runs(common: list[int], everywhere: int, longest: int) -> list[tuple[int, int, int]]:
    """Cut sorted prompts into runs `(start, end, shared tokens)`, so that most tokens need not be read again."""
    best: list[tuple[int, int, int]] = [(0, 0, 0)]  # of the first prompts: tokens saved, start of the last run, shared
    for end in range(1, len(common) + 2):
        options = [(best[end - 1][0], end - 1, everywhere)]
        shared = None
        for start in range(end - 2, max(-1, end - 1 - longest), -1):
            shared = common[start] if shared is None else min(shared, common[start])
            if shared < everywhere + SHORTEST:
                break
            options.append((best[start][0] + (end - start - 1) * (shared - everywhere), start, shared))
        best.append(max(options))
    runs, end = [], len(common) + 1
    while end:
        _, start, shared = best[end]
        runs.append((start, end, shared))
        end = start
    return runs[::-1]


class Prefixes:
    """Prefixes that a model has read.

    Args:
        cache (`DynamicCache`): keys and values of each prefix, padded on the left.
        lengths (`list[int]`): tokens of each prefix that rows may use.
    """

    def __init__(self, cache: DynamicCache, lengths: list[int]) -> None:
        self.cache, self.lengths = cache, lengths

    def begin(self, owners: Sequence[int], lengths: Sequence[int]) -> DynamicCache | None:
        """
        Return the cache of the first columns of a left-padded batch, whose other columns are still to be read.

        Args:
            owners (`Sequence[int]`):
                The prefix of each row.
            lengths (`Sequence[int]`):
                Tokens of each row, more than its prefix has.

        Returns:
            `DynamicCache`, or `None` if there is no such column.
        """
        unread = max(length - self.lengths[owner] for owner, length in zip(owners, lengths, strict=True))
        columns = max(lengths) - unread
        if columns < 1:
            return None
        width = self.cache.get_seq_length()
        starts = torch.tensor(
            [width - self.lengths[o] - (columns - n + unread) for o, n in zip(owners, lengths, strict=True)]
        )
        # (rows, columns): where a row's tokens are in the cache; padding is masked, whatever stands there
        places = (starts[:, None] + torch.arange(columns)).clamp(0, width - 1)
        device = self.cache.layers[0].keys.device
        index = torch.tensor(owners, device=device)[:, None], slice(None), places.to(device)
        return DynamicCache(
            [(layer.keys[index].transpose(1, 2), layer.values[index].transpose(1, 2)) for layer in self.cache.layers]
        )


def left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and their mask, each of shape `(rows, longest)`."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def read_prefixes(
    model: PreTrainedModel,
    texts: Sequence[list[int]],
    pad_id: int,
    known: Prefixes | None = None,
    owners: Sequence[int] = (),
) -> Prefixes:
    """Read prefixes, in which others that are known already may come first (`owners` names them), without a head."""
    ids, mask = left_padded(texts, pad_id, model.device)
    cache = known.begin(owners, [len(text) for text in texts]) if known else None
    cache = DynamicCache() if cache is None else cache
    begun = cache.get_seq_length()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model.base_model(
        input_ids=ids[:, begun:],
        attention_mask=mask,
        position_ids=positions[:, begun:],
        past_key_values=cache,
        use_cache=True,
    )
    return Prefixes(cache, [len(text) for text in texts])


def cache_bytes_per_token(model: PreTrainedModel, token: int) -> int | None:
    """Return the size of a token in the KV cache, or `None` if the cache cannot be given to other rows: states of
    linear attention hold a whole text, and some models have caches of their own. Sharded weights (ZeRO-3) are
    gathered by whole forward passes only. The model reads one token."""
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return None
    config = model.config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    if not model._supports_default_dynamic_cache() or config.is_encoder_decoder:
        return None
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return None
    seen = read_prefixes(model, [[token]], token).cache.layers
    tensors = [tensor for layer in seen if layer.is_initialized for tensor in (layer.keys, layer.values)]
    if len(seen) != len(layers) or len(tensors) != 2 * len(layers) or any(t.shape[-2] != 1 for t in tensors):
        return None
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
