"""The in-process engine: transformers' `generate` on the model that is being trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from .stopping import complete, end_tokens

STOP_TAIL = 16  # tokens decoded to look for a stop string


class TransformersEngine:
    """Generate with the model in this process. Prompts are divided over the processes and sorted by length, to save
    padding.

    Args:
        model (`PreTrainedModel`):
            The model; the experts in view take part.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        batch_size (`int`, *optional*, defaults to `64`):
            Prompts in one call of `generate`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.eos_ids = end_tokens(model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else self.eos_ids[0]

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[Completion]:
        state = PartialState()
        by_length = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i), reverse=True)
        mine = by_length[state.process_index :: state.num_processes]
        done: list[tuple[int, Completion]] = []
        was_training = self.model.training
        self.model.eval()
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(sampling.seed + state.process_index)
            for start in range(0, -(-len(prompts) // state.num_processes), self.batch_size):
                batch = mine[start : start + self.batch_size]
                read = batch or by_length[-1:]  # with sharded weights every process takes part in every forward pass
                replies = self.generate_batch([prompts[i] for i in read], sampling)
                done += zip(batch, replies[: len(batch)], strict=True)
                if progress:
                    progress(len(batch))
        self.model.train(was_training)
        everyone: list[tuple[int, Completion]] = gather_object(done)
        return [completion for _, completion in sorted(everyone, key=lambda pair: pair[0])]

    def close(self) -> None:
        """Nothing was started."""

    def generate_batch(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Generate for prompts in one batch, in this process, from torch's current random state."""
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad_id] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        stopping = [_StopStrings(self.tokenizer, sampling.stop, width)] if sampling.stop else []
        with plain_generation(self.model):
            output = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=self._generation_config(sampling),
                stopping_criteria=StoppingCriteriaList(stopping),
            )
        logprobs = _logprobs(output) if sampling.logprobs else [None] * len(prompts)
        rows = output.sequences[:, width:].tolist()
        ended = (sampling, self.tokenizer, self.eos_ids)
        return [complete(ids, *ended, values) for ids, values in zip(rows, logprobs, strict=True)]

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        options: dict[str, Any] = {
            "max_new_tokens": sampling.max_new_tokens,
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


class _StopStrings(StoppingCriteria):
    """End each row once its last tokens contain one of the strings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: tuple[str, ...], prompt_width: int) -> None:
        self.tokenizer, self.strings, self.prompt_width = tokenizer, strings, prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        tails = self.tokenizer.batch_decode(input_ids[:, self.prompt_width :][:, -STOP_TAIL:], skip_special_tokens=True)
        return torch.tensor([any(s in tail for s in self.strings) for tail in tails], device=input_ids.device)
