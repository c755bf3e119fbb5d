"""What is looked at: a run, the way it will be launched, and what several checks need to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from ..config import RunConfig
from .launcher import Launch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from ..data.documents import MemoryText
    from ..data.prompts import Prompter
    from ..planning.plan import Plan
    from ..rollout.choice import Choice


@dataclass
class Case:
    """What the checks look at. What is derived from the run is made when a check asks for it first, and raises
    `ValueError` as preflight does.

    Args:
        config (`RunConfig`, *optional*):
            The run; without one only the machine is looked at.
        mistake (`str`, *optional*):
            Why there is no run although one was given.
        launch (`Launch`, *optional*):
            How it will be launched; by default as one process.
        port (`int`, *optional*):
            Where its model will be served.
        check_rewards (`Callable[[RunConfig], object]`, *optional*):
            Raises `ValueError` for a reward that cannot be made.
    """

    config: RunConfig | None = None
    mistake: str = ""
    launch: Launch = field(default_factory=Launch)
    port: int | None = None
    check_rewards: Callable[[RunConfig], object] | None = None

    @property
    def run(self) -> RunConfig:
        """The run, in checks that are made only if there is one."""
        assert self.config is not None
        return self.config

    @property
    def wants_ray(self) -> bool:
        """Whether the run needs Ray. Of a machine alone everything is wanted."""
        if self.config is None:
            return True
        return self.config.starts_ray or self.config.rollout.ray_address is not None

    @cached_property
    def plan(self) -> Plan:
        from ..planning.preflight import preflight

        return preflight(self.run)

    @cached_property
    def model_config(self) -> PretrainedConfig:
        from ..models.inspection import read_config

        return read_config(self.run.model)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from ..models.inspection import read_tokenizer

        return read_tokenizer(self.run, int(self.model_config.get_text_config().vocab_size))

    @cached_property
    def prompter(self) -> Prompter:
        from ..data.prompts import Prompter

        return Prompter(self.tokenizer, self.run.chat_template_kwargs)

    @cached_property
    def memories(self) -> list[MemoryText]:
        from ..planning.night_source import night_memories

        return night_memories(self.run)

    @cached_property
    def windows(self) -> list[list[str]]:
        """The memories as the teacher reads them."""
        from ..data.windows import split_all

        texts = [memory.text for memory in self.memories]
        return split_all(texts, self.prompter.count_tokens, self.plan.window, self.run.dataset.window_overlap)

    @cached_property
    def engine(self) -> Choice:
        """What the run will generate with."""
        from ..memory.hosts import find_hosts
        from ..models.inspection import build_without_weights
        from ..planning.preflight import find_capacity
        from ..rollout.choice import choose

        hosts = find_hosts(build_without_weights(self.run.model, self.model_config))
        return choose(self.run.rollout, self.model_config, hosts, find_capacity(self.run).top_k is not None)
