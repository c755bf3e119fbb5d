"""Seconds of routed experts by their number: tokens gathered by expert, as in training, against fixed shapes.

    python benchmarks/routing.py --json

`gathered` sorts the tokens by expert, so that each expert reads only its own; its shapes depend on the routing. `fixed`
is what `torch.compile` and CUDA graphs get: in bfloat16 grouped products, and in float32 each expert reads every token,
times a mask. It is run uncompiled here. A forward and a backward pass of one MLP's experts with random weights, all
tokens routed to 2 of them; each form in turn, in every round. Seconds are of the processor, the median over rounds; the
ratio is to `gathered`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from _report import Row, argument_parser, environment, progress, report, rerun_with

FORMS = ("gathered", "fixed")
DTYPES = ("float32", "bfloat16")


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--hidden", type=int, default=576, help="hidden size (576)")
    parser.add_argument("--width", type=int, default=64, help="hidden units of an expert (64)")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens (2048)")
    parser.add_argument("--experts", type=int, nargs="+", default=[4, 8, 16, 32], help="numbers of experts (4 8 16 32)")
    parser.add_argument("--rounds", type=int, help="rounds (15; with --quick 2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 15)
    return args


def make_pool(args: argparse.Namespace, experts: int) -> Any:
    """Return the routed experts of an MLP with random weights and gates."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sleep_trl.memory import MemorySpec, attach

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=args.hidden,
        intermediate_size=4 * args.width,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    spec = MemorySpec(width=args.width, max_experts=experts, routing="topk", top_k=2)
    memory = attach(LlamaForCausalLM(config), spec)
    for _ in range(experts):
        memory.activate()
    memory.commit()
    pool: Any = memory.hosts[0].module.memory
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.requires_grad_(True).copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return pool


def measure(args: argparse.Namespace, experts: int, name: str) -> dict[str, float]:
    """Return the seconds of both forms, and how far their outputs are apart."""
    import torch

    from sleep_trl.memory import routing

    pool = make_pool(args, experts)
    x = torch.randn(args.tokens, args.hidden).to(getattr(torch, name)).requires_grad_()
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    outputs = {}
    for _ in range(args.rounds + 1):
        for form in FORMS:
            routing.needs_fixed_shapes = lambda x, is_fixed=(form == "fixed"): is_fixed
            since = time.process_time()
            outputs[form] = pool(x, torch.zeros_like(x))
            outputs[form].sum().backward()
            seconds[form].append(time.process_time() - since)
    medians = {form: statistics.median(values[1:]) for form, values in seconds.items()}
    progress(f"{name}, {experts} experts: {', '.join(f'{form} {value:.3f} s' for form, value in medians.items())}")
    gathered, fixed = (outputs[form].detach().double() for form in FORMS)
    apart = (fixed - gathered).norm() / gathered.norm()
    return medians | {"ratio": medians["fixed"] / medians["gathered"], "relative_difference": apart.item()}


def main() -> None:
    args = parse()
    rerun_with(environment(args.threads))
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    found = {name: {str(count): measure(args, count, name) for count in args.experts} for name in DTYPES}
    rows: list[Row] = [("dtype", "experts", *(f"{form} ms" for form in FORMS), "ratio", "relative difference")]
    for name, by_count in found.items():
        for count, figures in by_count.items():
            times = (f"{1000 * figures[form]:.0f}" for form in FORMS)
            rows.append((name, count, *times, f"{figures['ratio']:.2f}", f"{figures['relative_difference']:.1e}"))
    title = f"{args.tokens} tokens to 2 experts of width {args.width}, hidden {args.hidden}, {args.threads} thread(s)"
    report(title, rows, {"by_dtype": found}, args.json)


if __name__ == "__main__":
    main()
