"""vLLM as an engine. A grown model with dense routing is an ordinary one with wider MLPs, which vLLM runs natively; one
with routed experts runs on vLLM's transformers backend."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy
import torch

from .engine import Completion, Sampling
from .stopping import complete
from .weights import Region, Values

if TYPE_CHECKING:
    from .replica import ReplicaSpec

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # supported by vLLM's attention on a CPU
# With a prompt in two passes vLLM rewinds the request's generator, which CPU generators do not support.
ON_CPU = {"enable_chunked_prefill": False}
LOWEST_TEMPERATURE = 0.01  # vLLM samples at this if asked for less, other than 0
# Read when vLLM is imported. One process, so that weights need no copy; nothing is sent off the machine.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the process has other work to do
}


def cpu_cache_bytes() -> int:
    """Return the bytes that vLLM takes of main memory for its KV cache."""
    name = "VLLM_CPU_KVCACHE_SPACE"
    return int(os.environ.get(name, ENVIRONMENT[name])) * 2**30


class VLLMReplica:
    """A vLLM in this process. Each prompt has its own seed, so that a completion does not depend on others in the
    batch."""

    def __init__(self, spec: ReplicaSpec) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        has_gpu = torch.cuda.is_available()
        if not has_gpu:
            _keep_weights_in_place()
        self.spec = spec
        # vLLM reads config and tokenizer from files; weights come later.
        with tempfile.TemporaryDirectory() as folder, _restored_state():
            spec.config.save_pretrained(folder)
            spec.tokenizer.save_pretrained(folder)
            self.llm = LLM(
                folder,
                load_format="dummy",
                generation_config="vllm",  # ignore the checkpoint's own penalties and truncation
                max_model_len=-1,  # the model's context, or as much of it as there is room for
                dtype=str(spec.config.dtype).removeprefix("torch."),
                enforce_eager=not has_gpu,
                logprobs_mode="processed_logprobs",
                worker_extension_cls="sleep_trl.rollout.vllm_worker.WeightAccess",
                disable_log_stats=True,
                seed=0,
                **({"gpu_memory_utilization": spec.gpu_memory} if has_gpu else ON_CPU),
                **spec.sizes,
            )

    @property
    def longest(self) -> int:
        """Maximum length of a sequence, prompt and completion, in tokens."""
        return int(self.llm.llm_engine.model_config.max_model_len)

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """Generate one completion per prompt. Temperatures below 0.01 are greedy decoding: vLLM would raise them to it.

        Raises:
            `ValueError`: if a prompt leaves no room for `max_new_tokens`: vLLM would silently shorten the completion.
        """
        from vllm import SamplingParams

        longest = max(map(len, prompts), default=0)
        if longest + sampling.max_new_tokens > self.longest:
            raise ValueError(
                f"vLLM has room for sequences of {self.longest} tokens, but a prompt of {longest} tokens and "
                f"{sampling.max_new_tokens} new ones were asked for. Raise rollout.gpu_memory, or without a GPU "
                f"VLLM_CPU_KVCACHE_SPACE (GiB); or lower max_context; or use rollout.engine transformers."
            )
        options: dict[str, Any] = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature if sampling.temperature >= LOWEST_TEMPERATURE else 0.0,
            "top_p": sampling.top_p,
            "stop": list(sampling.stop),
            "stop_token_ids": list(self.spec.eos_ids),
            "logprobs": 0 if sampling.logprobs else None,
        }
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [SamplingParams(**options, seed=seed) for seed in seeds],
            use_tqdm=False,
        )
        return [self._completion(output.outputs[0], sampling) for output in outputs]

    def _completion(self, output: Any, sampling: Sampling) -> Completion:
        ids = list(output.token_ids)
        logprobs = None
        if sampling.logprobs:
            logprobs = [step[token].logprob for step, token in zip(output.logprobs, ids, strict=True)]
        return complete(ids, sampling, self.spec.tokenizer, self.spec.eos_ids, logprobs)

    def update(self, values: Values, regions: Sequence[Region]) -> list[str]:
        if values:
            self.llm.collective_rpc("write_weights", args=(values,))
            # The prefix cache was computed with the old weights.
            if not self.llm.reset_prefix_cache():
                raise RuntimeError(
                    "vLLM is still processing prompts of an earlier call and cannot load new weights. Resume the run."
                )
        digests: list[str] = self.llm.collective_rpc("read_digests", args=(list(regions),))[0]
        return digests


@contextmanager
def _restored_state() -> Iterator[None]:
    """Context manager that restores what vLLM's start changes: the random states and `torch.set_num_threads`, which it
    disables on a CPU."""
    set_num_threads, state, numpy_state = torch.set_num_threads, random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads = set_num_threads
        random.setstate(state)
        numpy.random.set_state(numpy_state)


def _keep_weights_in_place() -> None:
    """Make vLLM use its weights directly. On a CPU it computes with packed copies, which an update would not reach."""
    from vllm.model_executor.layers import utils

    def use_weight(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = use_weight
