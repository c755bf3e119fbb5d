"""Batched LoRA training (the farm) against the same LoRA fine-tunings one after another.

Each of 32 dreams of 40 to 60 tokens is trained for 10 steps of AdamW, on the quickstart's model and on a Llama with
30 million random weights. Sides take turns in one process: the farm trains all adapters in one batch; `peft` is a bare
loop around PEFT's LoRA, one dream after another; `trl` creates one SFTTrainer per dream, as SEAL does, without gradient
checkpointing, loggers and checkpoints. A side that is timed on some of the dreams is scaled to all of them. All three
get the same data; farm and PEFT also start from the same weights. `max_abs_difference` is the largest difference
between their results, `relative_difference` that of all second factors together, and `farm_vs_float64` and
`peft_vs_float64` are the largest between each and PEFT in float64. Peak memory is measured in fresh processes. Keys
ending in `_at_30m` are for the larger model.

How fast the farm could be at most: by torch's profiler, `seconds_kernels` of its seconds are in matrix products and
attention, and `seconds_operations` in all tensor operations. `limit_vs_...` is the speedup if all else, the calls
themselves, took no time; the profiler adds to short operations, so it is rather more.

With --cuda: dreams per minute on a Llama with 0.8 billion random weights in bfloat16, for 1, 8, 32 and 128 dreams.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from _lora_figures import difference, product_speed, relative_difference, shares
from _report import ROOT, Row, argument_parser, environment, progress, report, rerun_with

BUNDLED = ROOT / "examples" / "quickstart" / "model"
# hidden, intermediate, layers, heads, key-value heads, size of a head, vocabulary
SIZES = {"30m": (512, 1408, 8, 8, 8, 64, 8192), "0.8b": (1280, 5120, 28, 20, 4, 64, 32000)}
BOUNDS = {
    "": {"speedup_vs_peft": 5, "speedup_vs_trl_sft": 20},
    "_at_30m": {"speedup_vs_peft": 2, "speedup_vs_trl_sft": 3},
}


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", nargs="+", choices=("bundled", "30m"), default=["bundled", "30m"], help="models")
    parser.add_argument("--dreams", type=int, default=32, help="dreams (32)")
    parser.add_argument("--steps", type=int, default=10, help="steps per dream (10)")
    parser.add_argument(
        "--rank", type=int, default=8, help="rank of the adapters, on all linear maps (8, PEFT's default)"
    )
    parser.add_argument("--chunk", type=int, help="adapters on the device at once (all)")
    parser.add_argument("--rounds", type=int, help="rounds (3; with --quick 1)")
    parser.add_argument("--peft-dreams", type=int, help="dreams that PEFT is timed on (all; with --quick 8)")
    parser.add_argument("--trl-dreams", type=int, help="dreams that TRL is timed on (8; with --quick 2)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--cuda", action="store_true", help="measure on the first CUDA device")
    parser.add_argument("--peak", choices=("farm", "peft"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.peft_dreams = min(args.dreams, args.peft_dreams or (8 if args.quick else args.dreams))
    args.trl_dreams = min(args.dreams, args.trl_dreams or (2 if args.quick else 8))
    return args


# -- models and dreams -------------------------------------------------------------------------------------------------


def make_model(name: str, device: str = "cpu") -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if name == "bundled":
        return AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    hidden, intermediate, layers, heads, key_value_heads, head_dim, vocabulary = SIZES[name]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    return model.to(torch.bfloat16) if device == "cuda" else model


def make_dreams(count: int, vocabulary: int) -> list[Any]:
    """Create dreams of 40 to 60 random tokens, 50 on average."""
    import torch

    from sleep_trl.batched_lora import LoraJob

    generator = torch.Generator().manual_seed(0)
    lengths = [40 + (13 * i) % 21 for i in range(count)]
    ids = [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return [LoraJob(f"dream {i}", (tuple(sequence),)) for i, sequence in enumerate(ids)]


def lora_config(args: argparse.Namespace, model: Any) -> Any:
    from peft import LoraConfig

    from sleep_trl.batched_lora.adapters import find_targets

    names = [target.name for target in find_targets(model, spec(args))]
    return LoraConfig(r=args.rank, lora_alpha=2 * args.rank, lora_dropout=0.0, target_modules=names)


def spec(args: argparse.Namespace) -> Any:
    from sleep_trl.batched_lora import LoraSpec

    return LoraSpec(args.rank, 2 * args.rank)


# -- sides -------------------------------------------------------------------------------------------------------------


def now(model: Any) -> float:
    if model.device.type == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def run_farm(args: argparse.Namespace, model: Any, dreams: list[Any]) -> tuple[float, dict[str, Any]]:
    """Train all dreams together; return seconds and weights by dream."""
    from sleep_trl.batched_lora import LoraTraining, train_adapters

    start = now(model)
    outcomes = train_adapters(model, dreams, spec(args), LoraTraining(steps=args.steps), chunk=args.chunk)
    seconds = now(model) - start
    if errors := [outcome.error for outcome in outcomes if outcome.error]:
        raise RuntimeError(errors[0])
    return seconds, {outcome.id: outcome.adapter.weights for outcome in outcomes if outcome.adapter}


def run_peft(args: argparse.Namespace, model: Any, dreams: list[Any]) -> tuple[float, dict[str, Any]]:
    """Train one dream after another with PEFT; return seconds (without copying initial weights) and weights."""
    import torch
    from peft import get_peft_model

    from sleep_trl.batched_lora.adapters import find_targets, initial_adapter

    config, targets = lora_config(args, model), find_targets(model, spec(args))
    seconds, weights = 0.0, {}
    for dream in dreams:
        start = now(model)
        adapted = get_peft_model(model, config)
        seconds += now(model) - start
        layers = {target.name: adapted.get_submodule(f"base_model.model.{target.name}") for target in targets}
        for name, (down, up) in initial_adapter(targets, spec(args), 0, dream.id).weights.items():
            layers[name].lora_A["default"].weight.data.copy_(down)
            layers[name].lora_B["default"].weight.data.copy_(up)
        start = now(model)
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0, fused=True)
        ids = torch.tensor(dream.sequences, device=model.device)
        for _ in range(args.steps):
            adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        weights[dream.id] = {
            name: (layer.lora_A["default"].weight.detach().cpu(), layer.lora_B["default"].weight.detach().cpu())
            for name, layer in layers.items()
        }
        adapted.unload()
        seconds += now(model) - start
    return seconds, weights


def run_trl(args: argparse.Namespace, model: Any, dreams: list[Any]) -> float:
    """Train one dream after another, each with its own SFTTrainer; return seconds."""
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    tokenizer, config = AutoTokenizer.from_pretrained(BUNDLED), lora_config(args, model)
    with tempfile.TemporaryDirectory() as folder:
        start = now(model)
        for dream in dreams:
            arguments = SFTConfig(
                output_dir=folder,
                max_steps=args.steps,
                per_device_train_batch_size=1,
                learning_rate=1e-3,
                lr_scheduler_type="constant",
                gradient_checkpointing=False,
                max_length=None,
                bf16=False,
                use_cpu=model.device.type == "cpu",
                dataloader_pin_memory=False,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            rows = Dataset.from_list([{"input_ids": list(dream.sequences[0])}])
            trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer, peft_config=config)
            trainer.remove_callback(PrinterCallback)  # it would print into our output
            trainer.train()
            model = trainer.model.unload()
        return now(model) - start


def resident(field: str) -> float:
    """Return a size of this process in MiB: `VmRSS`, or its peak `VmHWM`."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1024


def measure_peak(args: argparse.Namespace) -> None:
    """Run one side in this process and print the resident set before it and the peak during it, in MiB."""
    model = make_model(args.models[0])
    dreams = make_dreams(args.dreams, model.config.vocab_size)
    few = argparse.Namespace(**{**vars(args), "steps": 2})
    run_peft(argparse.Namespace(**{**vars(args), "steps": 1}), model, dreams[:1])  # load what is loaded on first use
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = resident("VmRSS")
    (run_farm if args.peak == "farm" else run_peft)(few, model, dreams)
    print(json.dumps([before, resident("VmHWM")]))


def peak(args: argparse.Namespace, name: str, side: str) -> tuple[float, float]:
    """Return the resident set before one side and its peak, in a separate process, in MiB."""
    command = [sys.executable, __file__, "--peak", side, "--models", name, "--rank", str(args.rank)]
    command += ["--dreams", str(args.dreams), "--threads", str(args.threads)]
    command += ["--chunk", str(args.chunk)] if args.chunk else []
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(args.threads))
    before, highest = json.loads(done.stdout.splitlines()[-1])
    return before, highest


# -- the comparison ----------------------------------------------------------------------------------------------------


def operations(args: argparse.Namespace, model: Any, dreams: list[Any]) -> float:
    """Count the multiplications and additions that training all dreams requires at least.

    Per token and frozen weight, two forward and two backward for the input's gradient, which query, key and value of
    the first layer do not need; per token and adapter weight, two forward and four backward, two fewer there. The last
    token of a dream is only predicted. Attention itself takes less than a hundredth and is left out.
    """
    from sleep_trl.batched_lora.adapters import find_targets

    total = 0
    for target in find_targets(model, spec(args)):
        is_first = target.name.startswith("model.layers.0.") and target.name.endswith(("q_proj", "k_proj", "v_proj"))
        total += target.in_features * target.out_features * (2 if is_first else 4)
        total += args.rank * (target.in_features * (4 if is_first else 6) + target.out_features * 6)
    total += 4 * model.get_output_embeddings().weight.numel()
    return float(total * args.steps * sum(len(dream.sequences[0]) - 1 for dream in dreams))


def compare(args: argparse.Namespace, name: str) -> dict[str, float]:
    """Time the sides in turn on one model; return the keys of the result."""
    model = make_model(name)
    dreams = make_dreams(args.dreams, model.config.vocab_size)
    few = argparse.Namespace(**{**vars(args), "steps": 1})
    run_farm(few, model, dreams)
    run_peft(few, model, dreams[:1])
    run_trl(few, model, dreams[:1])
    farm, peft, trl, speed, worst = [], [], [], [], 0.0
    for turn in range(args.rounds):
        progress(f"{name}: round {turn + 1} of {args.rounds}")
        seconds, together = run_farm(args, model, dreams)
        farm.append(seconds)
        seconds, alone = run_peft(args, model, dreams[: args.peft_dreams])
        peft.append(seconds * args.dreams / args.peft_dreams)
        trl.append(run_trl(args, model, dreams[: args.trl_dreams]) * args.dreams / args.trl_dreams)
        speed.append(product_speed(1024, model.config.hidden_size))
        worst = max(worst, difference(together, alone))
    kernels, tensors = shares(partial(run_farm, args, model, dreams))
    _, exact = run_peft(args, make_model(name).double(), dreams[: args.peft_dreams])
    peaks = {side: peak(args, name, side) for side in ("farm", "peft")}
    arithmetic = operations(args, model, dreams)
    weights = sum(a.numel() + b.numel() for d in together.values() for a, b in d.values())
    seconds_kernels, seconds_operations = (share * statistics.median(farm) for share in (kernels, tensors))
    return {
        "speedup_vs_peft": statistics.median(p / f for p, f in zip(peft, farm, strict=True)),
        "speedup_vs_trl_sft": statistics.median(t / f for t, f in zip(trl, farm, strict=True)),
        "peak_memory_ratio": peaks["farm"][1] / peaks["peft"][1],
        "max_abs_difference": worst,
        "relative_difference": relative_difference(together, alone),
        "farm_vs_float64": difference(together, exact),
        "peft_vs_float64": difference(alone, exact),
        "seconds_farm": statistics.median(farm),
        "seconds_peft": statistics.median(peft),
        "seconds_trl_sft": statistics.median(trl),
        "seconds_kernels": seconds_kernels,
        "seconds_operations": seconds_operations,
        "limit_vs_peft": statistics.median(peft) / seconds_operations,
        "limit_vs_trl_sft": statistics.median(trl) / seconds_operations,
        "gigaflop": arithmetic / 1e9,
        "gigaflop_per_second_of_a_product": statistics.median(speed) / 1e9,
        "share_of_the_arithmetic_limit": statistics.median(
            arithmetic / s / f for s, f in zip(speed, farm, strict=True)
        ),
        "peak_mib_farm": peaks["farm"][1],
        "peak_mib_peft": peaks["peft"][1],
        "growth_mib_farm": peaks["farm"][1] - peaks["farm"][0],
        "growth_mib_peft": peaks["peft"][1] - peaks["peft"][0],
        "adapters_gradients_moments_mib": 4 * weights * 4 / 2**20,
    }


def compare_cuda(args: argparse.Namespace) -> dict[str, float]:
    """Measure dreams per minute of the farm and of the PEFT loop on a device."""
    import torch

    model = make_model("0.8b", "cuda")
    few = argparse.Namespace(**{**vars(args), "steps": 2})
    result = {}
    for count in (1, 8, 32, 128):
        progress(f"{count} dreams")
        dreams = make_dreams(count, model.config.vocab_size)
        run_farm(few, model, dreams)
        run_peft(few, model, dreams[:1])
        timed = dreams[:8]
        rounds = [
            (run_farm(args, model, dreams)[0], run_peft(args, model, timed)[0] * count / len(timed))
            for _ in range(args.rounds)
        ]
        farm, peft = (statistics.median(side) for side in zip(*rounds, strict=True))
        torch.cuda.reset_peak_memory_stats()
        run_farm(few, model, dreams)
        result[f"dreams_per_minute_farm_{count}"] = 60 * count / farm
        result[f"dreams_per_minute_peft_{count}"] = 60 * count / peft
        result[f"speedup_vs_peft_{count}"] = peft / farm
        result[f"peak_gib_farm_{count}"] = torch.cuda.max_memory_allocated() / 2**30
    return result


def main() -> None:
    args = parse()
    # Otherwise DeepSpeed, which TRL imports, prints a guess into our output.
    rerun_with({**environment(args.threads), "DS_ACCELERATOR": "cuda" if args.cuda else "cpu"})
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    if args.peak:
        measure_peak(args)
        return
    setting = f"{args.dreams} dreams of 40 to 60 tokens, {args.steps} steps, rank {args.rank}, "
    setting += "CUDA" if args.cuda else f"{args.threads} thread(s)"
    if args.cuda:
        found = compare_cuda(args)
        rows: list[Row] = [("", "0.8b"), *((key, f"{value:.3g}") for key, value in found.items())]
        report(f"Batched LoRA: {setting}", rows, {**found, "setting": setting}, args.json)
        return
    by_model = {name: compare(args, name) for name in args.models}
    result: dict[str, object] = {}
    table: list[Row] = [("", *by_model)]
    for key in by_model[args.models[0]]:
        table.append((key, *(f"{values[key]:.3g}" for values in by_model.values())))
    for name, values in by_model.items():
        suffix = "" if name == "bundled" else f"_at_{name}"
        result |= {f"{key}{suffix}": float(f"{value:.4g}") for key, value in values.items()}
    for key in BOUNDS[""]:
        cells = []
        for name, values in by_model.items():
            bound = BOUNDS["" if name == "bundled" else f"_at_{name}"][key]
            cells.append(f">= {bound} {'met' if values[key] >= bound else 'MISSED'}")
        table.append((f"bound of {key}", *cells))
    report(f"Batched LoRA: {setting}", table, {**result, "setting": setting}, args.json)


if __name__ == "__main__":
    main()
