"""Prefixes that prompts share: which prompts to batch, so that a prefix is read once, and its KV cache for each row.

A row's cache is the beginning of the row as an ordinary left-padded batch would hold it, so that attention masks and
positions, including those of sliding windows, are what they are without sharing.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sleep_trl.models.head import backbone
from sleep_trl.models.key_values import count_key_values

logger = logging.getLogger(__name__)

_HAS_CACHE = "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if _HAS_CACHE else "past_key_values"
"""What transformers calls the KV cache of `forward`, `generate` and their outputs: the latter before version 5.24."""

CPU_CACHE_GIB = 2.0  # for the KV cache of a batch
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
    return _read(model, texts, pad_id, known, owners)[0]


def _read(
    model: PreTrainedModel, texts: Sequence[list[int]], pad_id: int, known: Prefixes | None, owners: Sequence[int]
) -> tuple[Prefixes, torch.Tensor]:
    """Read texts behind their known prefixes, and return them with their hidden states, padded on the left."""
    ids, mask = left_padded(texts, pad_id, model.device)
    cache = known.begin(owners, [len(text) for text in texts]) if known else None
    cache = DynamicCache() if cache is None else cache
    begun = cache.get_seq_length()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = backbone(model)(
        input_ids=ids[:, begun:],
        attention_mask=mask,
        position_ids=positions[:, begun:],
        use_cache=True,
        **{CACHE: cache},
    ).last_hidden_state
    return Prefixes(cache, [len(text) for text in texts]), hidden


def read_prompts(model: PreTrainedModel, prompts: Sequence[list[int]], pad_id: int) -> Prefixes:
    """Read distinct prompts, sorted, but for the last token of each. What several begin with is read once."""
    common = [_common(one, other) for one, other in itertools.pairwise(prompts)]
    runs = _runs(common, 0, len(prompts))
    # A text that is read has a token, also where nothing of it may be used.
    heads = read_prefixes(model, [prompts[start][: max(shared, 1)] for start, _, shared in runs], pad_id)
    known = Prefixes(heads.cache, [shared for _, _, shared in runs])
    owners = [place for place, (start, end, _) in enumerate(runs) for _ in range(start, end)]
    read = read_prefixes(model, [prompt[: max(1, len(prompt) - 1)] for prompt in prompts], pad_id, known, owners)
    return Prefixes(read.cache, [len(prompt) - 1 for prompt in prompts])


def hidden_behind(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    continuations: Sequence[list[int]],
    pad_id: int,
    most_tokens: float,
) -> list[torch.Tensor]:
    """
    Last hidden states from which continuations of prompts are predicted. Each prompt is read once for all its
    continuations, and what prompts begin with is read once as well; gradients flow through both.

    Args:
        model (`PreTrainedModel`):
            The model.
        prompts (`Sequence[list[int]]`):
            The prompt of each row, of at least one token.
        continuations (`Sequence[list[int]]`):
            The continuation of each row. Of an empty one nothing is read.
        pad_id (`int`):
            Token to pad with.
        most_tokens (`float`):
            Most tokens in the KV cache of a batch, see [`CacheRoom`]. A batch has at least one row.

    Returns:
        `list[torch.Tensor]`: for each row, of shape `(length of its continuation, hidden)`.
    """
    hidden = [torch.empty(0, model.config.get_text_config().hidden_size, device=model.device) for _ in prompts]
    rows = [i for i, continuation in enumerate(continuations) if continuation]
    rows.sort(key=lambda i: (len(prompts[i]).bit_length(), prompts[i]))
    for batch in _by_prompt(rows, prompts, continuations, most_tokens):
        distinct = [prompt for prompt, _ in itertools.groupby(prompts[i] for i in batch)]
        place = {tuple(prompt): n for n, prompt in enumerate(distinct)}
        known = read_prompts(model, distinct, pad_id)
        for group in _by_length(batch, continuations):
            owners = [place[tuple(prompts[i])] for i in group]
            _, read = _read(model, [prompts[i] + continuations[i][:-1] for i in group], pad_id, known, owners)
            for row, states in zip(group, read, strict=True):
                hidden[row] = states[-len(continuations[row]) :]
    return hidden


def _by_length(rows: Sequence[int], texts: Sequence[list[int]]) -> list[list[int]]:
    """Divide rows into groups whose longest text is at most twice as long as the shortest."""
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda i: -len(texts[i])):
        if not groups or len(texts[groups[-1][0]]) > 2 * len(texts[row]):
            groups.append([])
        groups[-1].append(row)
    return groups


def _by_prompt(
    rows: Sequence[int], prompts: Sequence[list[int]], continuations: Sequence[list[int]], most_tokens: float
) -> Iterator[list[int]]:
    """Cut rows, sorted by prompt, into batches whose cache has room for them and for their prompts, and whose prompts
    are of similar length: short ones would be padded to long ones."""
    batch: list[int] = []
    width = held = 0
    for row in rows:
        is_new = not batch or prompts[batch[-1]] != prompts[row]
        longest = max(width, len(prompts[row]) + len(continuations[row]))
        is_similar = not batch or len(prompts[batch[-1]]).bit_length() == len(prompts[row]).bit_length()
        if batch and (not is_similar or (len(batch) + 1 + held + is_new) * longest > most_tokens):
            yield batch
            batch, held, is_new, longest = [], 0, True, len(prompts[row]) + len(continuations[row])
        batch.append(row)
        width, held = longest, held + is_new
    if batch:
        yield batch


class CacheRoom:
    """How many tokens a KV cache may hold in this process, and whether rows can take a prefix from another cache, which
    is logged if they cannot.

    Args:
        model (`PreTrainedModel`):
            The model.
        token (`int`):
            Any token of its vocabulary, which is read once to measure.
        gib (`float`, *optional*):
            Most memory for the cache, in GiB. By default half of an accelerator's free memory, and 2 GiB on a CPU.
    """

    def __init__(self, model: PreTrainedModel, token: int, gib: float | None = None) -> None:
        self.model, self.token, self.gib = model, token, gib

    @cached_property
    @torch.no_grad()
    def _measured(self) -> int | None:
        measured = cache_bytes_per_token(self.model, self.token)
        if measured is None:
            logger.warning(
                "Shared prefixes are read once for each prompt: rows of a %s cannot share its cache (sharded weights, "
                "linear attention or a cache of its own).",
                type(self.model).__name__,
            )
        return measured

    @property
    def can_share(self) -> bool:
        """Whether rows can take a prefix from another cache."""
        return self._measured is not None

    def tokens(self) -> float:
        """Return the number of tokens for which there is room. What a token takes is measured, or estimated from the
        config if it cannot be, for layers with attention."""
        token_bytes = self._measured or estimate_cache_bytes(self.model)
        return self._bytes() / token_bytes if token_bytes else math.inf

    def _bytes(self) -> float:
        if self.gib is not None:
            return self.gib * 2**30
        if self.model.device.type == "cpu":
            return CPU_CACHE_GIB * 2**30
        return torch.accelerator.get_memory_info(self.model.device)[0] / 2


def estimate_cache_bytes(model: PreTrainedModel) -> int:
    """Return the size of a token in the KV cache by the model's config; 0 for a model without attention."""
    config = model.config.get_text_config(decoder=True)
    if not getattr(config, "num_attention_heads", None):
        return 0
    layers = [layer for layer in DynamicCache(config=config).layers if isinstance(layer, DynamicLayer)]
    return len(layers or range(config.num_hidden_layers)) * count_key_values(config) * model.dtype.itemsize


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
