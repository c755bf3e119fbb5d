"""What a night in the midst of an ordinary training run borrows from it, and gives back as it was."""

from __future__ import annotations

import gc
import random
from collections.abc import Collection, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import is_peft_available

from sleep_trl.memory import Memory
from sleep_trl.models.checkpointing import is_checkpointing, stop_checkpointing

DTYPES = (torch.float32, torch.bfloat16)


def check_run(args: TrainingArguments) -> None:
    """Raise `ValueError` if nights cannot take place in a run with these arguments."""
    obstacles = {
        "several processes": args.world_size > 1,
        "several GPUs in one process (DataParallel)": args.n_gpu > 1,
        "DeepSpeed": bool(args.deepspeed),
        "FSDP": bool(args.fsdp),
        "a compiled model (torch_compile)": args.torch_compile,
        "rollouts from vLLM (use_vllm)": bool(getattr(args, "use_vllm", False)),
    }
    if found := [name for name, is_there in obstacles.items() if is_there]:
        raise ValueError(
            f"SleepCallback works in one process, on one device, with the weights as they are, but this run has "
            f"{' and '.join(found)}. Leave that out, or train without the callback and run nights on what is saved "
            f"(sleep-trl night --model FOLDER)."
        )


def check_model(model: Any) -> None:
    """Raise `ValueError` if a model cannot have nights while it is trained."""
    if is_peft_available():
        from peft import PeftModel

        if isinstance(model, PeftModel):
            raise ValueError(
                "SleepCallback: nights grow the model itself, and this one has adapters of PEFT. Leave out "
                "peft_config (--use_peft); attach(model).activate() trains an expert instead."
            )
    if not isinstance(model, PreTrainedModel) or hasattr(model, "_orig_mod"):
        raise ValueError(f"SleepCallback needs a plain model of transformers, got a {type(model).__name__}.")
    if getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None):
        raise ValueError(
            "SleepCallback: this model is quantized, and a night saves the grown model whole. Load it without "
            "quantization_config."
        )
    if model.dtype not in DTYPES:
        raise ValueError(
            f"SleepCallback: this model is {str(model.dtype).removeprefix('torch.')}, and nights compute in float32 "
            f"or bfloat16. Load it with dtype float32 or bfloat16; bf16=True in the arguments is possible with both."
        )
    memory = Memory.of(model)
    if memory is not None and memory.spec.is_routed:
        raise ValueError(
            "SleepCallback: the memory of this model has routing topk, and routed experts cannot be folded into the "
            "run's checkpoints. Attach it with MemorySpec(routing='dense')."
        )
    if memory is not None and memory.replacing:
        raise ValueError(
            f"SleepCallback: experts {list(memory.replacing)} of this model are being replaced by the one that it "
            f"trains. Commit it first (memory.commit())."
        )


@contextmanager
def lent(model: PreTrainedModel, own: Collection[int]) -> Iterator[None]:
    """Context manager: lend the model of an ordinary run to a night, and give the run back all that it works with.

    That is: which parameters are trained, and the expert among them; train and eval mode, gradient checkpointing,
    hooks, wrappers and settings of each module; the model's config and generation config; the states that accelerate
    shares among all trainers of a process; and all random numbers. Weights and optimizer are not touched, except that
    the memory keeps what the night does to it.

    During the night the model is in evaluation mode, without gradient checkpointing and autocast.

    Args:
        model (`PreTrainedModel`):
            The model, with a memory.
        own (`Collection[int]`):
            The run's own experts, which count as part of the pretrained model during the night.
    """
    memory = Memory.of(model)
    assert memory is not None
    learning, trained = memory.learning, [(p, p.requires_grad) for p in model.parameters()]
    with ExitStack() as stack:
        stack.enter_context(same_random_numbers())
        for state in (PartialState, AcceleratorState, GradientState):
            stack.enter_context(unchanged(state._shared_state))
        for settings in (model.config, model.generation_config):
            if settings is not None:
                stack.enter_context(unchanged(vars(settings)))
        for module in model.modules():
            stack.enter_context(unchanged(vars(module)))
        if is_checkpointing(model):
            stop_checkpointing(model)
        if "_original_forward" in vars(model):  # that of accelerate, which computes under autocast
            model.forward = model._original_forward
        model.eval()
        memory.commit()
        memory.in_base = tuple(own)
        try:
            yield
        finally:
            memory.in_base = ()
            memory.commit() if learning is None else memory.train_only(learning)
            for parameter, is_trained in trained:
                parameter.requires_grad_(is_trained)
            if any(parameter.requires_grad for _, parameter in memory.base_parameters()):
                memory.forget_wide()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Context manager: afterwards, all generators go on as if nothing had been drawn."""
    plain, of_numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(of_numpy)


@contextmanager
def unchanged(attributes: MutableMapping[str, Any]) -> Iterator[None]:
    """Context manager: afterwards, a namespace has the values that it had, and its lists, dictionaries and sets have
    their items. They stay the same objects, since others may refer to them, as handles of hooks do."""
    values = dict(attributes)
    items = {name: copy(value) for name, value in values.items() if isinstance(value, dict | list | set)}
    try:
        yield
    finally:
        attributes.clear()
        attributes.update(values)
        for name, content in items.items():
            _refill(values[name], content)


def _refill(value: Any, content: Any) -> None:
    value.clear()
    value.extend(content) if isinstance(value, list) else value.update(content)
