"""The parts of `gpu_check.py`: each takes a `Scale` and returns figures, with `passed` if it checks something."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from _gpu_scale import COSINE, QUICKSTART, RELATIVE, SHAPES, Figures, Scale, make_model, random_ids
from _report import ROOT, environment


def ceilings(scale: Scale) -> Figures:
    """The device's own limits: a large product, and a copy."""
    import torch

    size = scale.pick(8192, 128)
    left, right = (torch.randn(size, size, device=scale.device, dtype=scale.dtype) for _ in range(2))
    product = scale.seconds(lambda: left @ right)
    source = torch.empty(scale.pick(2**31, 2**16), dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    copy = scale.seconds(lambda: target.copy_(source))
    return {"tflop_per_second": 2 * size**3 / product / 1e12, "tb_per_second": 2 * source.numel() / copy / 1e12}


def kernels(scale: Scale) -> Figures:
    """The divergence as training computes it, by TRL's kernels, against float64."""
    import torch

    from sleep_trl.models.head import Head
    from sleep_trl.trainers.knowledge_seeding.loss import divergence_per_token

    rows, vocabulary, hidden = scale.pick((1024, 151_936, 1024), (8, 512, 32))
    torch.manual_seed(0)
    states = torch.randn(2, 1, rows, hidden, device=scale.device)
    weight = torch.randn(vocabulary, hidden, device=scale.device) / hidden**0.5
    mask = torch.ones(1, rows, device=scale.device)
    figures: Figures = {}
    largest = {"values": 0.0, "gradients": 0.0}
    for beta in (0.0, 0.5, 1.0):
        student = states[0].clone().requires_grad_()
        head = Head(weight)
        values = divergence_per_token(student, states[1], head, head, mask, beta)
        values.sum().backward()
        exact_student = states[0].double().requires_grad_()
        exact = exact_divergence(exact_student, states[1].double(), weight.double(), beta)
        exact.sum().backward()
        assert student.grad is not None and exact_student.grad is not None
        for name, ours, right in (("values", values, exact), ("gradients", student.grad, exact_student.grad)):
            error = float((ours.detach().double() - right.detach()).norm() / right.detach().norm())
            largest[name] = max(largest[name], error)
    empty = divergence_per_token(states[0].requires_grad_(), states[1], head, head, torch.zeros_like(mask), 0.0)
    with torch.no_grad():
        spent = scale.seconds(lambda: divergence_per_token(states[0], states[1], head, head, mask, 0.0))
    floor = 2 * weight.numel() * weight.element_size()  # both heads are read once
    return figures | {
        "relative_error_of_values": largest["values"],
        "relative_error_of_gradients": largest["gradients"],
        "empty_mask_is_zero": bool((empty == 0).all()),
        "milliseconds": 1000 * spent,
        "gib_of_the_heads": floor / 2**30,
        "passed": all(largest[name] <= RELATIVE[name] for name in RELATIVE) and bool((empty == 0).all()),
    }


def exact_divergence(student: Any, teacher: Any, weight: Any, beta: float) -> Any:
    """The same by its formula (GKD, Eq. 1), with whole logits."""
    import torch

    p, q = ((states @ weight.T).log_softmax(-1) for states in (teacher, student))
    if beta == 0:
        return (p.exp() * (p - q)).sum(-1)
    if beta == 1:
        return (q.exp() * (q - p)).sum(-1)
    mixed = torch.logsumexp(torch.stack([p + math.log(beta), q + math.log(1 - beta)]), 0)
    return beta * (p.exp() * (p - mixed)).sum(-1) + (1 - beta) * (q.exp() * (q - mixed)).sum(-1)


def memory(scale: Scale) -> Figures:
    """A new expert changes no bit; folding; the expert's gradient in bfloat16, float32 and with checkpointing."""
    import torch

    from sleep_trl.memory import MemorySpec, attach
    from sleep_trl.memory.fold import allowed_difference, fold

    model = make_model(scale, "0.6b")
    ids = random_ids(scale, model, 2, scale.pick(512, 16))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        attached = attach(model, MemorySpec(width=scale.pick(256, 8), max_experts=2))
        index = attached.activate()
        unchanged = bool(torch.equal(before, model(input_ids=ids).logits))
    torch.manual_seed(2)
    for _, expert in attached.experts(index):
        torch.nn.init.normal_(expert.down.data, std=0.02)
    narrow = gradient_of(model, attached, index, ids)
    model.gradient_checkpointing_enable()
    recomputed = gradient_of(model, attached, index, ids)
    model.gradient_checkpointing_disable()
    with tempfile.TemporaryDirectory(dir=scale.folder) as folder:
        difference = fold(attached, folder)
    largest = float(model(input_ids=ids).logits.detach().abs().max())
    wide = gradient_of(model.float(), attached, index, ids)
    cosine = float(torch.nn.functional.cosine_similarity(narrow, wide, dim=0))
    same = float((narrow - recomputed).norm() / narrow.norm())
    return {
        "new_expert_changes_no_bit": unchanged,
        "fold_difference": difference,
        "fold_difference_allowed": allowed_difference(scale.dtype, largest),
        "cosine_of_bfloat16_and_float32_gradient": cosine,
        "relative_difference_with_checkpointing": same,
        "passed": unchanged and cosine > COSINE and same < 1e-2,
    }


def gradient_of(model: Any, attached: Any, index: int, ids: Any) -> Any:
    """Return the gradient of an expert as one float32 vector."""
    import torch

    model.train()
    attached.train_only(index)
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = [weight.grad.float().flatten() for _, weight in attached.expert_parameters(index)]
    model.eval()
    return torch.cat(gradients)


def seeding(scale: Scale, name: str) -> Figures:
    """Steps of Knowledge Seeding with contexts of 0 and 5,000 tokens, and TRL's GRPOTrainer beside it."""
    import _trainers as sides

    figures: Figures = {}
    hidden, intermediate, layers, *_, vocabulary = SHAPES["tiny" if scale.is_tiny else name]
    steps = scale.pick(3, 2)
    for side, context in (("seeding_references", 0), ("seeding_references", scale.pick(5000, 24)), ("grpo", 0)):
        sizes = {
            "hidden": hidden,
            "intermediate": intermediate,
            "layers": layers,
            "vocabulary": vocabulary,
            "batch": scale.pick(16, 4),
            "prompt": scale.pick(64, 8),
            "context": context,
            "completion": scale.pick(128, 8),
            "width": scale.pick(256, 8),
        }
        args = argparse.Namespace(**sizes, cuda=scale.device == "cuda", checkpointing=False)
        label = f"{side}_{context}" if side != "grpo" else side
        with catching_out_of_memory(scale, figures, label), tempfile.TemporaryDirectory(dir=scale.folder) as folder:
            trainer = getattr(sides, side)(args, folder)
            trainer.args.max_steps = steps
            with scale.peak(figures, f"{label}_peak_mib"):
                begun = scale.now()
                trainer.train()
                figures[f"{label}_seconds_a_step"] = (scale.now() - begun) / steps
            written = sizes["batch"] * sizes["completion"]
            figures[f"{label}_tokens_per_second"] = written / figures[f"{label}_seconds_a_step"]
            figures[f"{label}_loss_is_finite"] = all(
                math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry
            )
        release(scale)
    finite = [value for key, value in figures.items() if key.endswith("loss_is_finite")]
    return figures | {"passed": bool(finite) and all(finite)}


def batched_lora(scale: Scale) -> Figures:
    """LoRAs trained in one batch: dreams a minute by their number, against a loop of PEFT; one alone and among many."""
    import dream_farm as farm

    from sleep_trl.batched_lora import LoraJob

    model = make_model(scale, "0.6b").float() if scale.is_tiny else make_model(scale, "0.6b")
    length, steps = scale.pick(200, 12), scale.pick(10, 2)
    args = argparse.Namespace(rank=8, steps=steps, chunk=None)
    most = scale.pick(60, 4)
    ids = random_ids(scale, model, most, length).tolist()
    dreams = [LoraJob(f"dream {number}", (tuple(row),)) for number, row in enumerate(ids)]
    figures: Figures = {}
    weights: dict[int, Any] = {}
    for count in (1, scale.pick(8, 2), most):
        with catching_out_of_memory(scale, figures, f"together_{count}"):
            farm.run_farm(argparse.Namespace(**{**vars(args), "steps": 1}), model, dreams[:count])
            with scale.peak(figures, f"peak_mib_{count}"):
                seconds, weights[count] = farm.run_farm(args, model, dreams[:count])
            figures[f"dreams_a_minute_{count}"] = 60 * count / seconds
    farm.run_peft(argparse.Namespace(**{**vars(args), "steps": 1}), model, dreams[:1])
    seconds, alone = farm.run_peft(args, model, dreams[: scale.pick(4, 1)])
    figures["dreams_a_minute_peft"] = 60 * len(alone) / seconds
    if 1 in weights and most in weights:
        first = {"dream 0": weights[most]["dream 0"]}
        figures["difference_of_one_alone_and_among_many"] = farm.difference(first, weights[1])
    apart = figures.get("difference_of_one_alone_and_among_many", math.inf)
    return figures | {"passed": apart < 1e-2}


def dream_scores(scale: Scale) -> Figures:
    """Gradients of candidate dreams, as the selection computes them, by the length of the window."""
    from sleep_trl.dreams.gradients import Text
    from sleep_trl.dreams.select import Selection, select

    model, figures = make_model(scale, "0.6b"), Figures()
    for length in scale.pick((512, 1000, 2000), (16, 32)):
        rows = random_ids(scale, model, scale.pick(16, 3), length).tolist()
        texts = [Text.behind(row[: length // 2], row[length // 2 :]) for row in rows]
        with catching_out_of_memory(scale, figures, f"window_{length}"):
            with scale.peak(figures, f"window_{length}_peak_mib"):
                begun = scale.now()
                chosen = select(texts, ["task"] * len(texts), Selection(), model)
                figures[f"window_{length}_seconds"] = scale.now() - begun
            figures[f"window_{length}_scored"] = sum(score is not None for score in chosen.scores)
        release(scale)
    return figures | {"passed": any(key.endswith("_scored") for key in figures)}


def nights(scale: Scale) -> Figures:
    """Three at once, for correctness: the quickstart's night in float32 and bfloat16, and under ZeRO-3."""
    steps = scale.pick(60, 2)
    common = ["--config", str(QUICKSTART / "config.yaml"), "--no-report"]
    common += [f"--seeding.steps={steps}", "--rollout.engine=transformers"]
    if scale.is_tiny:
        common += ["--evaluation.max_questions=4", "--dataset.samples_per_window=2", "--dataset.general_samples=24"]
    single = [sys.executable, str(ROOT / "launch" / "sleep.py")]
    commands = {
        "float32": [*single, "--dtype=float32"],
        "bfloat16": [*single, "--dtype=bfloat16"],
    }
    if scale.device == "cuda":
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--config_file"]
        sharded = [*launcher, str(ROOT / "launch" / "accelerate" / "zero3.yaml"), str(ROOT / "launch" / "sleep.py")]
        commands["zero3"] = [*sharded, "--dtype=float32"]
    running = {}
    for name, command in commands.items():
        log = (scale.folder / f"{name}.log").open("w")
        words = [*command, *common, "--output_dir", str(scale.folder / name)]
        running[name] = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment(), cwd=ROOT)
    figures: Figures = {}
    for name, process in running.items():
        if process.wait():
            figures[f"{name}_error"] = (scale.folder / f"{name}.log").read_text("utf-8")[-600:]
            continue
        results = json.loads((scale.folder / name / "results.json").read_text("utf-8"))
        figures[f"{name}_recall"] = results["recall"]["after"]
        figures[f"{name}_seconds"] = results["seconds"]["total"]
    return figures | {"passed": not any(key.endswith("_error") for key in figures)}


def ray_engines(scale: Scale) -> Figures:
    """Two engines under Ray on shares of the device, with the expert's weights sent to them, against the process."""
    import rollout
    from transformers import AutoTokenizer

    from sleep_trl.config import RolloutConfig
    from sleep_trl.rollout import Sampling, TransformersEngine
    from sleep_trl.rollout.choice import make_engine

    memory = rollout.make_memory("bundled")
    memory.model.to(scale.device)
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "model", padding_side="left")
    prompts = rollout.make_prompts(tokenizer, scale.pick(64, 4))
    greedy = Sampling(16, 0.0)
    inside = [completion.ids for completion in TransformersEngine(memory.model, tokenizer).generate(prompts, greedy)]
    pool, _ = make_engine(
        RolloutConfig(engine="ray", inner_engine="transformers", num_engines=2), memory, tokenizer, 64
    )
    try:
        begun = time.perf_counter()
        outside = [completion.ids for completion in pool.generate(prompts, greedy)]
        seconds = time.perf_counter() - begun
    finally:
        pool.close()
    agree = sum(one == other for one, other in zip(inside, outside, strict=True))
    return {"prompts": len(prompts), "same_tokens": agree, "seconds": seconds, "passed": agree == len(prompts)}


@contextlib.contextmanager
def catching_out_of_memory(scale: Scale, figures: Figures, name: str) -> Iterator[None]:
    """Record that the device has too little memory."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        figures[f"{name}_out_of_memory"] = str(error).split(". ")[0]
        release(scale)


def release(scale: Scale) -> None:
    import gc

    import torch

    gc.collect()
    if scale.device == "cuda":
        torch.cuda.empty_cache()


def seeding_0_6b(scale: Scale) -> Figures:
    """`seeding` with the shape of Qwen3-0.6B."""
    return seeding(scale, "0.6b")


def seeding_1_7b(scale: Scale) -> Figures:
    """`seeding` with the shape of Qwen3-1.7B."""
    return seeding(scale, "1.7b")
