"""Models under test: one model, or that model with a different adapter for each row of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ..batched_lora import Adapter, using_adapters
from ..evaluation.perplexity import TILE
from ..models.head import Head, backbone
from ..rollout import Sampling, TransformersEngine
from .gradients import IGNORED, Text


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
            rows = [torch.tensor(texts[i].ids, device=device) for i in batch]
            ids, mask = _padded(rows), _padded([torch.ones_like(row) for row in rows])  # (batch, width)
            labels = _padded([torch.tensor(texts[i].labels, device=device) for i in batch], IGNORED)[:, 1:]
            with self._with_adapters([owners[i] for i in batch]):
                hidden = backbone(self.model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                states = _padded([of[row >= 0] for of, row in zip(hidden[:, :-1], labels, strict=True)])
                tokens = _padded([row[row >= 0] for row in labels], IGNORED)  # (batch, counted)
                found = self._losses(states, tokens)
            for i, row, own in zip(batch, found, tokens, strict=True):
                losses[i] = row[own >= 0].tolist()
        return losses

    def _losses(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the loss of each token. The output layer, which may have adapters too, is applied in tiles of a few
        positions of all rows."""
        output, head = self.model.get_output_embeddings(), Head.of(self.model)
        size = max(1, TILE // (len(states) * len(head.weight)))
        losses = []
        for tile, labels in zip(states.split(size, 1), tokens.split(size, 1), strict=True):
            logits = head.transformed(output(tile)).flatten(0, 1)  # (batch * size, vocabulary)
            losses.append(F.cross_entropy(logits, labels.flatten(), reduction="none").view_as(labels))
        return torch.cat(losses, 1)

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


def _padded(rows: list[torch.Tensor], value: int = 0) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


@contextmanager
def _in_eval_mode(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
