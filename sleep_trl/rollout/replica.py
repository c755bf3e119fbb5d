"""Engines with their own copy of the weights, in this process or in a Ray actor.

An engine loads the frozen base from its checkpoint, so that only experts travel. One without a checkpoint receives the
base like them: a vLLM in the trainer's process, or an engine of a model that is not on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from ..memory.hosts import find_hosts
from ..models.loading import Checkpoint
from .engine import Completion, Sampling
from .heads import WiderHeads
from .in_process import TransformersEngine
from .weights import BaseLayout, Region, Values, digest, write_regions

ReplicaKind = Literal["transformers", "vllm"]


@dataclass(frozen=True)
class BaseOnDisk:
    """The base of a replica, which it loads itself.

    Args:
        checkpoint (`Checkpoint`): where it is.
        room (`int`): hidden units that each of the replica's MLPs has in addition.
        heads (`WiderHeads`, *optional*): padding of the replica's attention heads.
    """

    checkpoint: Checkpoint
    room: int
    heads: WiderHeads | None

    def load(self, dtype: torch.dtype) -> Values:
        """Load the base into main memory, and return its weights as the replica holds them."""
        model = self.checkpoint.load(dtype)
        layout = BaseLayout(find_hosts(model), self.room, self.heads)
        values: Values = {}
        for name, parameter in model.named_parameters():
            values |= layout.part(name, parameter.detach())
        return values


@dataclass(frozen=True)
class ReplicaSpec:
    """Description of a replica, without weights.

    Args:
        kind (`str`): `"transformers"` or `"vllm"`.
        config (`PretrainedConfig`): config of the model, including room for the experts.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        eos_ids (`tuple[int, ...]`): tokens that end a completion.
        gpu_memory (`float`): share of a GPU's memory that vLLM takes, in (0, 1].
        sizes (`dict[str, int]`): further sizes for vLLM, such as `max_num_seqs`.
        base (`BaseOnDisk`, *optional*): the base that the replica loads. Without it an update has to bring the base.
    """

    kind: ReplicaKind
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    gpu_memory: float = 0.3
    sizes: dict[str, int] = field(default_factory=dict)
    base: BaseOnDisk | None = None

    def make(self) -> Replica:
        """Create the replica in this process. Its experts come with the first update."""
        replica = self._make()
        if self.base:
            replica.update(self.base.load(self.config.dtype), ())
        return replica

    def _make(self) -> Replica:
        if self.kind == "transformers":
            return TransformersReplica(self)
        from .vllm import VLLMReplica

        return VLLMReplica(self)


class Replica(Protocol):
    """An engine that generates with weights of its own."""

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """Generate one completion per prompt, with a seed for each."""
        ...

    def update(self, values: Values, regions: Sequence[Region]) -> list[str]:
        """Write weights, then read regions back and return their digests."""
        ...


class TransformersReplica:
    """transformers' `generate` on a model of its own.

    The prompts of a call are sampled together, with the first one's seed, so that the same call gives the same
    completions on every replica.
    """

    def __init__(self, spec: ReplicaSpec) -> None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        with torch.random.fork_rng():  # the initial weights, soon replaced, are random
            model = AutoModelForCausalLM.from_config(spec.config, dtype=spec.config.dtype)
        self.engine = TransformersEngine(model.to(device).eval().requires_grad_(False), spec.tokenizer)
        self.engine.eos_ids = list(spec.eos_ids)
        self.tensors = dict(model.named_parameters())

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        with torch.random.fork_rng():
            torch.manual_seed(seeds[0])
            done = self.engine.generate_share(prompts, sampling)
        return [completion for _, completion in sorted(done, key=lambda pair: pair[0])]

    def update(self, values: Values, regions: Sequence[Region]) -> list[str]:
        write_regions(self.tensors, values)
        return [digest(region.of(self.tensors[region.name])) for region in regions]
