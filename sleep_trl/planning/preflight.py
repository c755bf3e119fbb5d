"""Preflight: everything about a run that can be checked before its weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from operator import attrgetter

import torch

from ..config import first_rollout_step
from ..distributed.zero3 import count_shards
from ..models.gguf import unconverted
from ..models.inspection import build_without_weights
from ..rollout.prefixes import CPU_CACHE_GIB
from ..rollout.vllm import cpu_cache_bytes
from . import checks
from .askings import find_askings, find_texts
from .caveats import find_warnings
from .growth import check_growth
from .grpo_arguments import check_grpo_arguments
from .inputs import RunInputs
from .output_dir import check_disk
from .peak_memory import Peak, estimate_peak
from .plan import Plan, estimate_disk, render
from .shape import GIB, Shape

__all__ = ["Plan", "preflight", "render"]

CHECKS: tuple[Callable[[RunInputs], object], ...] = (
    checks.check_processes,
    checks.check_output_dir,
    checks.check_learning_rate,
    checks.check_learning_rate_schedule,
    checks.check_report,
    checks.check_dtype,
    check_grpo_arguments,
    attrgetter("batches"),  # an input that cannot be derived raises
    attrgetter("available"),
    attrgetter("skill"),
    attrgetter("prose"),
    attrgetter("general"),
    attrgetter("plain"),
    checks.check_templates,
    attrgetter("capacity"),
    attrgetter("hosts"),
    check_growth,
    checks.check_width,
    checks.check_max_context,
    checks.check_earlier_experts,
    attrgetter("engine"),
    attrgetter("tokenizer"),
    checks.check_teachers,
    checks.check_lengths,
    attrgetter("window"),
    attrgetter("memories"),
    checks.check_nights,
    checks.check_texts,
    checks.check_dream,
    checks.check_consolidations,
)
"""In this order: what a later one needs was checked by an earlier one."""


def preflight(inputs: RunInputs, check_trainer: Callable[[RunInputs], Iterable[str]] | None = None) -> Plan:
    """Check a run without loading a weight, and work out what it will be like. Writes nothing.

    Args:
        inputs (`RunInputs`):
            Of the run.
        check_trainer (`Callable[[RunInputs], Iterable[str]]`, *optional*):
            Raises `ValueError` for trainer arguments or rewards that cannot be used, and returns warnings, see
            `sleep_trl.launch.checks`. Without it they are not checked.

    Returns:
        `Plan`: the run in numbers.

    Raises:
        `ValueError`: at the first thing that would stop the run, with what to do about it.
    """
    for check in CHECKS:
        check(inputs)
    warnings = check_trainer(inputs) if check_trainer else ()
    plan = make_plan(inputs)
    plan = replace(plan, warnings=(*plan.warnings, *warnings))
    check_disk(inputs.config.output_dir, plan.disk_bytes)
    return plan


def make_plan(inputs: RunInputs) -> Plan:
    """Work out what a run will be like."""
    config, capacity, seeding = inputs.config, inputs.capacity, inputs.config.seeding
    steps = inputs.expected_steps
    shape = Shape.of(
        architecture=type(inputs.meta_model).__name__,
        hosts=inputs.hosts,
        config=inputs.model_config,
        parameters=sum(parameter.numel() for parameter in inputs.meta_model.parameters()),
        bytes_per_weight=inputs.dtype.dtype.itemsize,
        is_routed=capacity.is_routed,
    )
    adapter_bytes, disk_bytes = estimate_disk(shape, capacity.width, capacity.experts)
    due = [inputs.relearning] if inputs.relearning else inputs.consolidations
    extent = inputs.extent
    first_rollout = first_rollout_step(seeding.alpha, seeding.lmbda, seeding.rollout_start, steps)
    return Plan(
        model=config.model,
        architecture=shape.architecture,
        dtype=inputs.dtype.name,
        dtype_reason=inputs.dtype.reason,
        layers=shape.layers,
        hidden_size=shape.hidden_size,
        context=inputs.context,
        base_parameters=shape.parameters,
        added_parameters=shape.expert_parameters(capacity.width),
        width=capacity.width,
        experts=capacity.experts,
        max_experts=capacity.max_experts,
        top_k=capacity.top_k,
        consolidations=tuple(map(str, due)),
        output_dir=str(config.output_dir),
        memories=len(inputs.memories),
        queued=len(inputs.fit.queued),
        nights_after=inputs.fit.nights_after if inputs.fit.queued else 0,
        is_queue_estimated=inputs.fit.is_estimated,
        limit=inputs.fit.limit,
        left_out=tuple(one.reason for one in inputs.left_out),
        memory_tokens=extent.tokens,
        questions=sum(len(memory.questions) for memory in inputs.memories),
        window=inputs.window,
        windows=extent.windows,
        samples=extent.samples,
        share=extent.share,
        passes=None if seeding.steps else seeding.passes,
        rows=steps * seeding.prompts_per_step,
        steps=steps,
        rollouts=(steps - first_rollout) * seeding.rollouts_per_step,
        learning_rate=seeding.learning_rate,
        peak=plan_peak(inputs, shape),
        adapter_bytes=adapter_bytes,
        disk_bytes=disk_bytes,
        is_converted=unconverted(config.model) is None,
        warnings=find_warnings(inputs),
    )


def plan_peak(inputs: RunInputs, shape: Shape) -> Peak:
    """Estimate the peak memory of a run."""
    config, capacity, engine = inputs.config, inputs.capacity, inputs.engine.engine
    named = zip(config.teacher_model, inputs.teacher_configs, strict=True)
    teachers = [build_without_weights(name, teacher) for name, teacher in named]
    parameters = sum(parameter.numel() for model in teachers for parameter in model.parameters())
    is_cpu = not torch.accelerator.is_available()
    has_vllm = engine == "vllm" and is_cpu  # on a GPU it takes rollout.gpu_memory
    others = {
        "dreaming": config.dream.rounds > 0,
        f"the engine ({engine})": engine != "transformers" and not has_vllm,
        "models of rewards": any(reward.has_model for reward in config.rewards),
    }
    askings = find_askings(inputs)
    gathers = engine == "transformers" and config.seeding.extra.get("ds3_gather_for_generation", True)
    weights = (shape.parameters + parameters) * shape.bytes_per_weight // count_shards()
    return estimate_peak(
        shape,
        config,
        width=capacity.width,
        experts=capacity.experts,
        max_experts=capacity.max_experts,
        askings=askings if engine == "transformers" else [],
        texts=find_texts(inputs, askings),
        accumulation=inputs.batches.accumulation,
        cache_room=_cache_room(weights),
        is_cpu=is_cpu,
        teacher_parameters=parameters,
        vllm_cache=cpu_cache_bytes() if has_vllm else None,
        shards=1 if gathers else count_shards(),
        not_counted=tuple(name for name, counts in others.items() if counts),
    )


def _cache_room(weights: int) -> int:
    """Return the bytes that `TransformersEngine` allows for the KV cache of a batch once `weights` bytes are loaded."""
    if not torch.accelerator.is_available():
        return int(CPU_CACHE_GIB * GIB)
    return max(0, torch.accelerator.get_memory_info()[0] - weights) // 2
