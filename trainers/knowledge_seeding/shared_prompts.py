"""Reading texts behind prompts by way of the wrapped model, each prompt once where that can be done."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from accelerate import DistributedType
from transformers import PreTrainedModel

from sleep_trl.models.checkpointing import is_checkpointing
from sleep_trl.rollout.prefixes import CacheRoom

from ..expert_checkpoints import ExpertCheckpoints
from ..trl_private import ForwardRedirection
from .hidden import Padded, concat_padded, last_hidden, predicting, read_behind
from .teachers import Teacher


class SharedPrompts(ExpertCheckpoints):
    """A [`~trl.GRPOTrainer`] that reads a prompt once for all texts behind it. With sharded weights, gradient
    checkpointing or a cache that rows cannot share, it reads each prompt with each text."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._rooms: dict[int, CacheRoom] = {}
        self._forward_redirection = ForwardRedirection()
        super().__init__(*args, **kwargs)

    @property
    def _is_whole(self) -> bool:
        """Whether this process can run the model by itself: its weights are not sharded."""
        return self.accelerator.distributed_type not in (DistributedType.DEEPSPEED, DistributedType.FSDP)

    def _room(self, model: PreTrainedModel) -> CacheRoom:
        return self._rooms.setdefault(id(model), CacheRoom(model, self._tokenizer.pad_token_id))

    def _read_behind(self, reader: Teacher, texts: list[tuple[Padded, Padded]]) -> list[torch.Tensor]:
        """Return a model's hidden states from which texts behind prompts are predicted, by way of the wrapped model.
        Each is of shape `(rows, length, hidden)`. Where the model can, it reads a prompt once for all its texts."""
        model, forward = reader.model, partial(self._forward_redirection, reader.wrapped, reader.model)
        has_cache = self._is_whole and not (model.training and is_checkpointing(model))
        if has_cache and (room := self._room(model)).can_share:
            pad_id = self._tokenizer.pad_token_id
            read: list[torch.Tensor] = forward(read_behind, model, texts, pad_id, room.tokens())
            return read
        return [predicting(forward(last_hidden, model, *concat_padded(*text)), text[1][0]) for text in texts]
