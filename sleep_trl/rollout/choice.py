"""Choose and create the engine that a run generates with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from accelerate import PartialState
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..config import RolloutConfig
from ..distributed.zero3 import is_sharded, is_sharding
from ..memory import Memory
from ..memory.hosts import Host
from ..models.loading import Checkpoint
from .heads import WiderHeads
from .in_process import TransformersEngine
from .ray_pool import RayPool
from .replica import BaseOnDisk, ReplicaKind, ReplicaSpec
from .routed import obstacle_to_backend, obstacle_to_routed
from .stopping import end_tokens
from .synced import Backend, InThisProcess, SyncedEngine
from .vllm import CPU_HEAD_SIZES
from .weights import GrownWeights, RoutedWeights

VLLM_BATCH = 256  # prompts per call; vLLM batches them itself
# MLP weights from which auto takes vLLM on a CPU. It generates faster below that too (benchmarks/rollout.py), but a
# night of such a small model is short compared with vLLM's start.
WORTH_VLLM = 10_000_000
GIB = 2**30
MORE_THAN_HALF = 0.51  # of a GPU; Ray would put several smaller shares on the first GPU and leave others empty


@dataclass(frozen=True)
class Choice:
    """How text is generated.

    Args:
        engine (`str`): `"transformers"` (in this process, on the model itself), `"vllm"` (in this process) or `"ray"`.
        replica (`str`): library behind an engine with weights of its own.
        reason (`str`): why it was chosen.
    """

    engine: str
    replica: ReplicaKind
    reason: str


def choose(
    rollout: RolloutConfig, config: PretrainedConfig, hosts: Sequence[Host], is_routed: bool, weight_bytes: int
) -> Choice:
    """
    Choose the engine of a run; needs no weights.

    Args:
        rollout (`RolloutConfig`):
            The requested engine.
        config (`PretrainedConfig`):
            Config of the model.
        hosts (`Sequence[Host]`):
            The MLPs that host experts.
        is_routed (`bool`):
            Whether experts are chosen by routers.
        weight_bytes (`int`):
            Size of the model's weights, those of all processes together.

    Raises:
        `ValueError`: if the requested engine cannot generate with this model on this machine.
    """
    not_vllm = _obstacle_to_vllm(config, hosts, is_routed)
    is_shared = PartialState().num_processes > 1 or is_sharding()  # then no engine in one of the processes will do
    if rollout.engine == "auto":
        if not_vllm is None and is_routed:
            not_vllm = "with routing topk the tokens of each expert are counted, which only the model itself does"
        if not_vllm is None and not torch.cuda.is_available() and _mlp_weights(hosts) < WORTH_VLLM:
            not_vllm = "without a GPU, vLLM takes longer to start than it saves with so small a model"
        if not_vllm is None and torch.cuda.is_available() and weight_bytes > (room := _engine_memory(rollout)):
            not_vllm = (
                f"the model's {weight_bytes / GIB:.1f} GiB do not fit the {room / GIB:.1f} GiB of a GPU that an engine "
                f"takes (rollout.gpu_memory)"
            )
        if not_vllm is None and is_shared and not torch.cuda.is_available():
            not_vllm = "without a GPU, each of several processes writes its share with the model itself"
        if not_vllm is None and is_shared and find_spec("ray") is None:
            not_vllm = "Ray, through which several processes share engines, is not installed"
        if not_vllm:
            return Choice("transformers", "transformers", not_vllm)
        reason = "it is installed, can hold the grown model, and generates faster"
        if is_shared:
            return Choice("ray", "vllm", f"{reason}; all processes share its engines")
        return Choice("vllm", "vllm", reason)
    if rollout.engine == "transformers":
        return Choice("transformers", "transformers", "asked for")
    if is_routed and (obstacle := obstacle_to_routed(config)):
        raise ValueError(f"rollout.engine {rollout.engine}: {obstacle}. Use rollout.engine transformers.")
    replica: ReplicaKind = "vllm" if rollout.engine == "vllm" else _replica(rollout, not_vllm)
    if replica == "vllm" and not_vllm:
        raise ValueError(f"rollout: vLLM was asked for, but {not_vllm}. Use rollout.engine transformers.")
    if rollout.engine == "vllm" and is_shared:
        raise ValueError(
            "rollout.engine vllm is for one process with whole weights; several, and processes with the shards of "
            "ZeRO-3, share the engines of a pool. Give --rollout.engine ray."
        )
    if rollout.engine == "ray" and find_spec("ray") is None:
        raise ValueError("rollout.engine ray: Ray is not installed: pip install 'sleep-trl[ray]'.")
    return Choice(rollout.engine, replica, "asked for")


def make_engine(
    rollout: RolloutConfig,
    memory: Memory,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    new_experts: int = 1,
    base: Checkpoint | None = None,
) -> tuple[TransformersEngine | SyncedEngine, str]:
    """
    Make the engine of a run.

    Args:
        rollout (`RolloutConfig`):
            The requested engine.
        memory (`Memory`):
            The memory when the run begins. An engine with weights of its own has room for its experts and new ones.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        batch_size (`int`):
            Prompts per batch.
        new_experts (`int`, *optional*, defaults to `1`):
            Number of experts that will be activated.
        base (`Checkpoint`, *optional*):
            Where the engines of a pool load the base from. Without it they are sent the base.

    Returns:
        `tuple`: the engine, and a line for the log that names it and the reason.

    Raises:
        `ValueError`: if the requested engine cannot generate with this model on this machine, or a sharded base cannot
            be loaded because there is no `base`.
    """
    model = memory.model
    weight_bytes = memory.count_parameters()["base"] * model.dtype.itemsize
    choice = choose(rollout, model.config, memory.hosts, memory.spec.is_routed, weight_bytes)
    count = count_engines(rollout)
    words = {"ray": f"{count} x {choice.replica} under Ray"}.get(choice.engine, choice.engine)
    line = f"Generating with {words}: {choice.reason}"
    if choice.engine == "transformers":
        return TransformersEngine(model, tokenizer, batch_size), line
    head_sizes = _head_sizes() if choice.replica == "vllm" else ()
    slots = _slots(memory, new_experts)
    weights = (RoutedWeights if memory.spec.is_routed else GrownWeights)(memory, slots, head_sizes)
    on_disk = BaseOnDisk(base, weights.room, weights.layout.heads) if base and choice.engine == "ray" else None
    if on_disk is None and is_sharded(model):
        raise ValueError(
            "The weights of the model are sharded, so engines have to load its base from a checkpoint. Give "
            "make_engine its base, as in base=Checkpoint('Qwen/Qwen3-8B')."
        )
    spec = ReplicaSpec(
        choice.replica,
        weights.config(),
        tokenizer,
        tuple(end_tokens(model, tokenizer)),
        rollout.gpu_memory,
        base=on_disk,
    )
    return SyncedEngine(weights, partial(_make_backend, choice, rollout, spec, batch_size), on_disk is None), line


def _make_backend(choice: Choice, rollout: RolloutConfig, spec: ReplicaSpec, batch_size: int) -> Backend:
    if choice.engine == "vllm":
        return InThisProcess(spec.make(), "The vLLM engine", max(batch_size, VLLM_BATCH))
    return RayPool(
        spec,
        count_engines(rollout),
        address=rollout.ray_address,
        gpus=gpus_per_engine(rollout),
        batch_size=max(batch_size, VLLM_BATCH) if choice.replica == "vllm" else batch_size,
        timeout_s=rollout.timeout_s,
        start_timeout_s=rollout.start_timeout_s,
    )


def count_engines(rollout: RolloutConfig) -> int:
    """Return the number of engines of a Ray pool. By default there is one for each GPU of this machine, or two if it
    has none."""
    return rollout.num_engines or (torch.cuda.device_count() if torch.cuda.is_available() else 2)


def gpus_per_engine(rollout: RolloutConfig) -> float:
    """Return the number of GPUs per engine of a Ray pool. By default each engine has its own GPU, which it may share
    with the trainer, if there are enough; else engines share one."""
    if rollout.gpus_per_engine is not None:
        return rollout.gpus_per_engine
    if not torch.cuda.is_available():
        return 0
    has_one_each = 1 < count_engines(rollout) <= torch.cuda.device_count()
    return max(rollout.gpu_memory, MORE_THAN_HALF) if has_one_each else rollout.gpu_memory


def _replica(rollout: RolloutConfig, not_vllm: str | None) -> ReplicaKind:
    if rollout.inner_engine != "auto":
        return rollout.inner_engine
    return "vllm" if not_vllm is None and torch.cuda.is_available() else "transformers"


def _engine_memory(rollout: RolloutConfig) -> float:
    """Return the bytes that a vLLM engine takes of the smallest GPU."""
    devices = range(torch.cuda.device_count())
    return rollout.gpu_memory * min(torch.cuda.get_device_properties(device).total_memory for device in devices)


def _mlp_weights(hosts: Sequence[Host]) -> int:
    return sum(3 * host.hidden_size * host.intermediate_size for host in hosts)


def _slots(memory: Memory, new: int) -> list[int]:
    """Return the experts of a memory, and the next ones to be activated if none is pruned in between."""
    free = [index for index in range(memory.spec.max_experts) if index not in memory.records]
    return sorted([*memory.records, *(free[:new] if memory.learning is None else [])])


def _head_sizes() -> tuple[int, ...]:
    return () if torch.cuda.is_available() else CPU_HEAD_SIZES


def _obstacle_to_vllm(config: PretrainedConfig, hosts: Sequence[Host], is_routed: bool) -> str | None:
    """Return why vLLM cannot generate with the grown model, or `None` if it can."""
    if is_routed and (obstacle := obstacle_to_routed(config)):
        return obstacle
    if find_spec("vllm") is None:
        return "vLLM is not installed"
    if not hosts[0].form.is_gated:
        return f"vLLM stores the weights of {config.model_type} models differently from their checkpoints"
    if is_routed and (obstacle := obstacle_to_backend(config)):
        return obstacle
    try:
        WiderHeads.of(config.get_text_config(), _head_sizes())
    except ValueError as error:
        return str(error)
    return None
