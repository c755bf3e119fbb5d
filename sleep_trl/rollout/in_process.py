"""The in-process engine: transformers' `generate` on the model that is being trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .engine import Completion, Progress, Sampling
from .prefixes import CACHE, CacheRoom, Prefixes, left_padded, plan_batches, read_prefixes
from .stopping import complete, end_tokens

STOP_TAIL = 16  # tokens decoded to look for a stop string
ROUND = 16  # tokens between which completions that have ended leave a batch


class TransformersEngine:
    """Generate with the model in this process. Prompts are divided over the processes in batches: those that begin with
    the same tokens together, so that these are read once, and prompts of similar length otherwise, to save padding.

    A router's random further expert is drawn once for each token of a shared prefix, as the prefix is read once.

    Args:
        model (`PreTrainedModel`):
            The model; the experts in view take part.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        batch_size (`int`, *optional*, defaults to `64`):
            Most prompts in one call of `generate`.
        room (`CacheRoom`, *optional*):
            Room for the KV cache of a batch. A batch of long prompts has fewer rows, and at least one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 64,
        room: CacheRoom | None = None,
    ) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.eos_ids = end_tokens(model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else self.eos_ids[0]
        self.room = room or CacheRoom(model, self.pad_id)

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[Completion]:
        state = PartialState()
        was_training = self.model.training
        self.model.eval()
        with torch.random.fork_rng():
            torch.manual_seed(sampling.seed + state.process_index)
            done = self.generate_share(prompts, sampling, state.process_index, state.num_processes, progress)
        self.model.train(was_training)
        everyone: list[tuple[int, Completion]] = gather_object(done)
        return [completion for _, completion in sorted(everyone, key=lambda pair: pair[0])]

    def close(self) -> None:
        """Nothing was started."""

    @torch.no_grad()
    def generate_share(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        process: int = 0,
        processes: int = 1,
        progress: Progress | None = None,
    ) -> list[tuple[int, Completion]]:
        """Generate this process's share, from torch's current random state. All processes plan the same batches, and
        with sharded weights every one takes part in every forward pass.

        Returns:
            `list[tuple[int, Completion]]`: indices of prompts, and their completions.
        """
        if not prompts:
            return []
        most_rows = min(self.batch_size, -(-len(prompts) // processes))
        can_share, most_tokens = self.room.can_share, self.room.tokens()
        if processes > 1 and PartialState().num_processes > 1:  # all have to plan the same batches
            most_tokens = min(gather_object([most_tokens]))
        everywhere, batches = plan_batches(prompts, most_rows, most_tokens, sampling.max_new_tokens)
        known = None
        if everywhere and can_share:
            known = read_prefixes(self.model, [prompts[0][:everywhere]], self.pad_id)
        done: list[tuple[int, Completion]] = []
        for start in range(0, len(batches), processes):
            together = batches[start : start + processes]
            is_mine = process < len(together)
            batch = together[process if is_mine else 0]
            texts = [prompts[i] for i in batch.rows]
            prefixes, owners = known, [0] * len(texts)
            if can_share and any(max(other.shared) > everywhere for other in together):
                prefixes, owners = self._read(texts, batch.shared, known)
            replies = self.generate_batch(texts, sampling, prefixes, owners)
            if is_mine:
                done += zip(batch.rows, replies, strict=True)
                if progress:
                    progress(len(texts))
        return done

    def _read(
        self, texts: Sequence[list[int]], shared: Sequence[int], known: Prefixes | None
    ) -> tuple[Prefixes, list[int]]:
        """Read the prefixes of a batch once each, and return them with the prefix of each row."""
        heads = {tuple(text[: max(count, 1)]): count for text, count in zip(texts, shared, strict=True)}
        places = {head: place for place, head in enumerate(heads)}
        owners = [places[tuple(text[: max(count, 1)])] for text, count in zip(texts, shared, strict=True)]
        prefixes = read_prefixes(self.model, [list(head) for head in heads], self.pad_id, known, [0] * len(heads))
        return prefixes, owners

    def generate_batch(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        prefixes: Prefixes | None = None,
        owners: Sequence[int] = (),
        keep_rows: bool = False,
    ) -> list[Completion]:
        """Generate for prompts in one batch, in this process, from torch's current random state.

        Args:
            prompts (`Sequence[list[int]]`):
                Token ids of each prompt.
            sampling (`Sampling`):
                How to generate.
            prefixes (`Prefixes`, *optional*):
                Prefixes that were read.
            owners (`Sequence[int]`, *optional*):
                The prefix with which each prompt begins.
            keep_rows (`bool`, *optional*, defaults to `False`):
                Keep all rows until the last one ends, because the model's layers tell them apart by their place.
        """
        ids, mask = left_padded(prompts, self.pad_id, self.model.device)
        width = ids.shape[1]
        stopping = [StopStrings(self.tokenizer, sampling.stop, width)] if sampling.stop else []
        cache: Any = prefixes.begin(owners, [len(prompt) for prompt in prompts]) if prefixes else None
        step = ROUND if not keep_rows and self.room.can_share else sampling.max_new_tokens
        written: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))
        with plain_generation(self.model):
            while rows:
                left = sampling.max_new_tokens - (ids.shape[1] - width)
                output = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=self._generation_config(sampling, min(step, left)),
                    stopping_criteria=StoppingCriteriaList(stopping),
                    **({CACHE: cache} if cache is not None else {}),
                )
                new = output.sequences[:, ids.shape[1] :]
                for row, tokens in zip(rows, new.tolist(), strict=True):
                    written[row] += tokens
                if sampling.logprobs:
                    for row, values in zip(rows, _logprobs(output), strict=True):
                        logprobs[row] += values
                if new.shape[1] >= left:
                    break
                goes_on = [i for i, row in enumerate(rows) if not self._has_ended(written[row], sampling)]
                rows = [rows[i] for i in goes_on]
                ids, mask, cache = output.sequences, torch.cat([mask, torch.ones_like(new)], 1), output[CACHE]
                if rows and len(rows) < len(ids):
                    index = torch.tensor(goes_on, device=ids.device)
                    ids, mask = ids[index], mask[index]
                    cache.batch_select_indices(index)
        return [
            complete(ids, sampling, self.tokenizer, self.eos_ids, values if sampling.logprobs else None)
            for ids, values in zip(written, logprobs, strict=True)
        ]

    def _has_ended(self, written: list[int], sampling: Sampling) -> bool:
        return complete(written, sampling, self.tokenizer, self.eos_ids).stop_reason != "length"

    def _generation_config(self, sampling: Sampling, new_tokens: int) -> GenerationConfig:
        options: dict[str, Any] = {
            "max_new_tokens": new_tokens,
            "eos_token_id": self.eos_ids,
            "pad_token_id": self.pad_id,
            "do_sample": sampling.temperature > 0,
            "return_dict_in_generate": True,
            "output_scores": sampling.logprobs,  # after temperature and top_p, as sampled from
        }
        if sampling.temperature > 0:
            options |= {"temperature": sampling.temperature, "top_k": 0, "top_p": sampling.top_p}
        return GenerationConfig(**options)


@contextmanager
def plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Context manager that hides the model's own generation settings. transformers takes what a call does not set from
    them, such as `repetition_penalty` or `min_p`, and would not sample from the model's distribution."""
    declared = model.generation_config
    special = {name: getattr(declared, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**special)
    try:
        yield
    finally:
        model.generation_config = declared


def _logprobs(output: Any) -> list[list[float]]:
    """Return the log probability of each generated token of each row."""
    steps = []
    for scores, ids in zip(output.scores, output.sequences[:, -len(output.scores) :].T, strict=True):
        steps.append(scores.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0])
    values: list[list[float]] = torch.stack(steps, dim=1).tolist()
    return values


class StopStrings(StoppingCriteria):
    """End each row once its last tokens contain one of the strings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: tuple[str, ...], prompt_width: int) -> None:
        self.tokenizer, self.strings, self.prompt_width = tokenizer, strings, prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        tails = self.tokenizer.batch_decode(input_ids[:, self.prompt_width :][:, -STOP_TAIL:], skip_special_tokens=True)
        return torch.tensor([any(s in tail for s in self.strings) for tail in tails], device=input_ids.device)


class StopWhen(StoppingCriteria):
    """End all rows once a function says so."""

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self.is_over = is_over

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.is_over(), device=input_ids.device)
