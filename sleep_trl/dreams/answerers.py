"""Models under test: one model, or that model with a different adapter for each row of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ..batched_lora import Adapter, using_adapters
from ..rollout import Sampling, TransformersEngine
from .gradients import Text


class Answerers:
    """Answers for several adapters of one model in shared batches; a [`~sleep_trl.dreams.measure.Answerer`].

    Args:
        engine (`TransformersEngine`):
            Generates with the model, in batches of its `batch_size`.
        adapters (`Sequence[Adapter | None]`):
            The adapter of each owner; `None` is the unchanged model.
    """

    def __init__(self, engine: TransformersEngine, adapters: Sequence[Adapter | None]) -> None:
        self.engine, self.adapters = engine, list(adapters)

    @property
    def model(self) -> PreTrainedModel:
        return self.engine.model

    def answer(self, prompts: Sequence[list[int]], owners: Sequence[int], max_new_tokens: int) -> list[str]:
        """Reply by greedy decoding. Batch size and the other rows change results only by rounding errors."""
        replies = [""] * len(prompts)
        sampling = Sampling(max_new_tokens, temperature=0.0)
        for batch in self._batches([len(prompt) for prompt in prompts], owners):
            with self._with_adapters([owners[i] for i in batch]):
                written = self.engine.generate_batch([prompts[i] for i in batch], sampling, keep_rows=True)
            for i, completion in zip(batch, written, strict=True):
                replies[i] = completion.text
        return replies

    @torch.no_grad()
    def token_losses(self, texts: Sequence[Text], owners: Sequence[int]) -> list[list[float]]:
        """Return the loss of each token that counts, in nats."""
        losses: list[list[float]] = [[] for _ in texts]
        device = self.model.device
        for batch in self._batches([len(text.ids) for text in texts], owners):
            width = max(len(texts[i].ids) for i in batch)
            ids = torch.tensor([texts[i].ids + [0] * (width - len(texts[i].ids)) for i in batch], device=device)
            mask = torch.tensor(
                [[1] * len(texts[i].ids) + [0] * (width - len(texts[i].ids)) for i in batch], device=device
            )
            with self._with_adapters([owners[i] for i in batch]):
                logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (batch, width, vocab)
            for row, i in enumerate(batch):
                labels = torch.tensor(texts[i].labels[1:], device=device)
                counts = labels >= 0
                kept = logits[row, : len(labels)][counts].float()
                losses[i] = F.cross_entropy(kept, labels[counts], reduction="none").tolist()
        return losses

    def _batches(self, lengths: Sequence[int], owners: Sequence[int]) -> Iterator[list[int]]:
        """Group rows of similar length; within a batch, rows of the same owner are adjacent."""
        by_length = sorted(range(len(lengths)), key=lambda i: (-lengths[i], owners[i]))
        for start in range(0, len(by_length), self.engine.batch_size):
            yield sorted(by_length[start : start + self.engine.batch_size], key=lambda i: owners[i])

    @contextmanager
    def _with_adapters(self, owners: Sequence[int]) -> Iterator[None]:
        if all(self.adapters[owner] is None for owner in owners):
            with _in_eval_mode(self.model), torch.no_grad():
                yield
        else:
            with using_adapters(self.model, self.adapters, owners):
                yield


@contextmanager
def _in_eval_mode(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
