"""What a run knows of its model, derived from configs and the tokenizer's files without loading a weight."""

from __future__ import annotations

from functools import cached_property

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..config import RunConfig
from ..data.prompts import Prompter
from ..memory.hosts import Host, find_hosts
from ..models.inspection import build_without_weights, read_config, read_tokenizer
from ..models.loading import context_limit
from ..rollout.choice import Choice, choose
from .capacity import Capacity, find_capacity
from .former_runs import with_former_defaults
from .run_dtype import choose_run_dtype

MAX_EXAMPLES = 1024  # tokens of worked examples in a prompt; at most a quarter of the context


class ModelInputs:
    """Everything that follows from a run's configuration and its model's files.

    Args:
        config (`RunConfig`):
            The run.
    """

    def __init__(self, config: RunConfig) -> None:
        self.dtype = choose_run_dtype(config)
        self.config = with_former_defaults(config).model_copy(update={"dtype": self.dtype.name})

    @cached_property
    def model_config(self) -> PretrainedConfig:
        return read_config(self.config.model, self.config.model_revision)

    @cached_property
    def teacher_configs(self) -> list[PretrainedConfig]:
        """Configs of the models that teach in the model's place, if any."""
        return [read_config(name) for name in self.config.teacher_model]

    @cached_property
    def meta_model(self) -> PreTrainedModel:
        """The model on the meta device: all shapes, no memory."""
        return build_without_weights(self.config.model, self.model_config, self.config.attn_implementation)

    @cached_property
    def hosts(self) -> list[Host]:
        """The MLPs that host experts, on the meta device."""
        return find_hosts(self.meta_model)

    @cached_property
    def capacity(self) -> Capacity:
        """The place of the new expert."""
        return find_capacity(self.config)

    @cached_property
    def vocabulary(self) -> int:
        """Size of the model's vocabulary."""
        return int(self.model_config.get_text_config().vocab_size)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return read_tokenizer(self.config, self.vocabulary)

    @cached_property
    def prompter(self) -> Prompter:
        examples_tokens = min(MAX_EXAMPLES, self.context // 4) if self.config.dataset.worked_examples else 0
        return Prompter(self.tokenizer, self.config.chat_template_kwargs, examples_tokens)

    @cached_property
    def context(self) -> int:
        """Tokens that the model, and every model that teaches in its place, can see."""
        return min(context_limit(c, self.config.max_context) for c in (self.model_config, *self.teacher_configs))

    @cached_property
    def engine(self) -> Choice:
        """What the run generates with, and why."""
        weight_bytes = sum(parameter.numel() for parameter in self.meta_model.parameters()) * self.dtype.dtype.itemsize
        return choose(self.config.rollout, self.model_config, self.hosts, self.capacity.is_routed, weight_bytes)
