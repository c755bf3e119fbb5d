"""Engines with their own copy of the weights, in this process or in a Ray actor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from .engine import Completion, Sampling
from .in_process import TransformersEngine
from .weights import Region, Values, digest, write_regions

ReplicaKind = Literal["transformers", "vllm"]


@dataclass(frozen=True)
class ReplicaSpec:
    """Description of a replica, without weights, which are sent by an update.

    Args:
        kind (`str`): `"transformers"` or `"vllm"`.
        config (`PretrainedConfig`): config of the model, including room for the experts.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        eos_ids (`tuple[int, ...]`): tokens that end a completion.
        gpu_memory (`float`): share of a GPU's memory that vLLM takes, in (0, 1].
        sizes (`dict[str, int]`): further sizes for vLLM, such as `max_num_seqs`.
    """

    kind: ReplicaKind
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    gpu_memory: float = 0.3
    sizes: dict[str, int] = field(default_factory=dict)

    def make(self) -> Replica:
        """Create the replica in this process."""
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
