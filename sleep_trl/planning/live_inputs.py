"""The inputs of a night of a model that is in memory already, such as the one that an ordinary run trains."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import RunConfig
from ..models.inspection import check_tokenizer
from ..models.loading import padded_left
from .inputs import RunInputs
from .night_source import night_memories


class LiveInputs(RunInputs):
    """Inputs of a night that are derived from a model and its tokenizer instead of the files that `model` names.

    Args:
        config (`RunConfig`):
            The night, with the model's dtype.
        model (`PreTrainedModel`):
            The model. Neither it nor its config is changed.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer. The night works with a copy that pads on the left.
        known (`Collection[str]`, *optional*):
            SHA-256 of texts that were learned before. The night leaves them out.

    Raises:
        `ValueError`: if the memories cannot be read, or the tokenizer has no end-of-sequence token or tokens that the
            model does not know.
    """

    def __init__(
        self,
        config: RunConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        known: Collection[str] = (),
    ) -> None:
        super().__init__(config)
        self.model_config = copy.deepcopy(model.config)
        self.tokenizer = check_tokenizer(padded_left(copy.deepcopy(tokenizer)), config.model, self.vocabulary)
        reading = night_memories(self.config)
        new = [memory for memory in reading.memories if memory.sha256 not in known]
        self.reading_of_memories = replace(reading, memories=new)
