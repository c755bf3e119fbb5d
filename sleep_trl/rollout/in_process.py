"""The embedded engine: transformers' own `generate`, in this process, on the model that is being trained."""

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

from .engine import Completion, Progress, Sampling, StopReason
from .stopping import first_stop, tokens_before

STOP_TAIL = 16  # tokens decoded to look for a stop string


class TransformersEngine:
    """Generate with the model at hand. Prompts are shared out over the processes and sorted by length, so that little
    is spent on padding.

    Args:
        model (`PreTrainedModel`):
            The model; whichever experts are in view take part.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        batch_size (`int`, *optional*, defaults to `64`):
            Prompts in one call of `generate`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        declared = model.generation_config.eos_token_id if model.generation_config else None
        ends = declared if isinstance(declared, list) else [declared]
        self.eos_ids = sorted({i for i in [*ends, tokenizer.eos_token_id] if i is not None})
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
            for start in range(0, len(mine), self.batch_size):
                batch = mine[start : start + self.batch_size]
                done += zip(batch, self.generate_batch([prompts[i] for i in batch], sampling), strict=True)
                if progress:
                    progress(len(batch))
        self.model.train(was_training)
        everyone: list[tuple[int, Completion]] = gather_object(done)
        return [completion for _, completion in sorted(everyone, key=lambda pair: pair[0])]

    def generate_batch(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Generate for prompts in one batch, in this process, with the draws of torch's present state."""
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
        return [self._completion(row, sampling) for row in output[:, width:].tolist()]

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        options: dict[str, Any] = {
            "max_new_tokens": sampling.max_new_tokens,
            "eos_token_id": self.eos_ids,
            "pad_token_id": self.pad_id,
            "do_sample": sampling.temperature > 0,
        }
        if sampling.temperature > 0:
            options |= {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        return GenerationConfig(**options)

    def _completion(self, ids: list[int], sampling: Sampling) -> Completion:
        end = next((i for i, token in enumerate(ids) if token in self.eos_ids), None)
        reason: StopReason = "length" if end is None else "eos"
        ids = ids if end is None else ids[: end + 1]
        text = self._decode(ids)
        if (position := first_stop(text, sampling.stop)) is not None:
            text, reason, ids = text[:position], "stop", ids[: tokens_before(ids, sampling.stop, self.tokenizer)]
        return Completion(ids, text.strip(), reason)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


@contextmanager
def plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Hide the model's own generation settings: transformers takes from them whatever a call leaves open, such as
    `repetition_penalty` or `min_p`, and draws from another distribution than the model's."""
    declared = model.generation_config
    special = {name: getattr(declared, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**special)
    try:
        yield
    finally:
        model.generation_config = declared


class _StopStrings(StoppingCriteria):
    """End each row on its own once one of the strings stands in its last tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: tuple[str, ...], prompt_width: int) -> None:
        self.tokenizer, self.strings, self.prompt_width = tokenizer, strings, prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        tails = self.tokenizer.batch_decode(input_ids[:, self.prompt_width :][:, -STOP_TAIL:], skip_special_tokens=True)
        return torch.tensor([any(s in tail for s in self.strings) for tail in tails], device=input_ids.device)
