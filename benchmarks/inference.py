"""Speed of a grown model, five experts of width 64 folded in, against its base.

Both are ordinary models in one process, with random weights, float32 (bfloat16 with --cuda), batch size 1. A round
reads a prompt (prefill), then extends it token by token with the key-value cache (decode), first on one model, then on
the other; the order alternates. `grown_vs_base` is the grown model's time for these tokens divided by the base's, the
median over rounds: 1.05 is 5 % slower. The layers have the shape of Llama-3.2-1B (hidden size 2048), but there are
fewer of them. Keys ending in `_at_1024` are for layers of the shape of Qwen3-0.6B (hidden size 1024), where the same
experts are a larger share.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from _report import Row, argument_parser, environment, progress, report, rerun_with, verdict

# hidden, intermediate, heads, key-value heads, size of a head
SHAPES = {"": (2048, 8192, 32, 8, 64), "_at_1024": (1024, 3072, 16, 8, 128)}


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--hidden", type=int, help="one other shape: hidden size, a multiple of 64; MLPs four times as wide"
    )
    parser.add_argument("--layers", type=int, default=4, help="decoder layers (4)")
    parser.add_argument("--vocabulary", type=int, default=32000, help="entries of the vocabulary (32000)")
    parser.add_argument("--experts", type=int, default=5, help="experts folded in (5)")
    parser.add_argument("--width", type=int, default=64, help="width of an expert (64)")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt (256)")
    parser.add_argument("--completion", type=int, default=16, help="tokens decoded after it (16)")
    parser.add_argument("--rounds", type=int, help="rounds (15; with --quick 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--cuda", action="store_true", help="measure on the first CUDA device, in bfloat16")
    args = parser.parse_args()
    args.rounds = args.rounds or (5 if args.quick else 15)
    return args


def make_pair(args: argparse.Namespace, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Create a base model, and the same model with nonzero experts folded in."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sleep_trl.memory import MemorySpec, attach, folded_config, folded_state_dict

    hidden, intermediate, heads, key_value_heads, head_dim = shape
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        vocab_size=args.vocabulary,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    attached = LlamaForCausalLM(config)
    memory = attach(attached, MemorySpec(width=args.width, max_experts=args.experts))
    for _ in range(args.experts):
        index = memory.activate()
        for _, expert in memory.experts(index):
            torch.nn.init.normal_(expert.down.data, std=0.02)
    grown = LlamaForCausalLM(folded_config(memory))
    grown.load_state_dict(folded_state_dict(memory))
    del attached, memory
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    for model in (base, grown):
        model.eval().requires_grad_(False)
        if args.cuda:
            model.to("cuda", torch.bfloat16)
    return base, grown


def run(model: Any, ids: Any, completion: int) -> tuple[float, float]:
    """Read a prompt and extend it greedily; return the seconds of both."""
    import torch

    def now() -> float:
        if ids.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    with torch.inference_mode():
        start = now()
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        read = now()
        for _ in range(completion):
            token = output.logits[:, -1:].argmax(-1)
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        return read - start, now() - read


def compare(args: argparse.Namespace, shape: tuple[int, ...]) -> dict[str, float]:
    """Time base and grown model in turn; return ratios of their seconds, and tokens per second."""
    import torch

    base, grown = make_pair(args, shape)
    ids = torch.randint(args.vocabulary, (1, args.prompt), device=base.device)
    for model in (base, grown):
        run(model, ids, 2)
    seconds: list[tuple[tuple[float, float], tuple[float, float]]] = []  # a round: base, grown; each prefill, decode
    for turn in range(args.rounds):
        progress(f"hidden {shape[0]}: round {turn + 1} of {args.rounds}")
        if turn % 2 == 0:
            first = run(base, ids, args.completion)
            seconds.append((first, run(grown, ids, args.completion)))
        else:
            first = run(grown, ids, args.completion)
            seconds.append((run(base, ids, args.completion), first))
    count = [sum(p.numel() for p in model.parameters()) for model in (base, grown)]
    layers = [sum(p.numel() for p in model.model.layers.parameters()) for model in (base, grown)]
    return {
        "grown_vs_base": statistics.median(sum(g) / sum(b) for b, g in seconds),
        "grown_vs_base_prefill": statistics.median(g[0] / b[0] for b, g in seconds),
        "grown_vs_base_decode": statistics.median(g[1] / b[1] for b, g in seconds),
        "parameters_grown_vs_base": count[1] / count[0],
        "layer_parameters_grown_vs_base": layers[1] / layers[0],
        "base_prefill_tokens_per_second": args.prompt / statistics.median(b[0] for b, _ in seconds),
        "grown_prefill_tokens_per_second": args.prompt / statistics.median(g[0] for _, g in seconds),
        "base_decode_tokens_per_second": args.completion / statistics.median(b[1] for b, _ in seconds),
        "grown_decode_tokens_per_second": args.completion / statistics.median(g[1] for _, g in seconds),
    }


def main() -> None:
    args = parse()
    rerun_with(environment(args.threads))
    shapes = SHAPES
    if args.hidden:
        heads = args.hidden // 64
        shapes = {"": (args.hidden, 4 * args.hidden, heads, heads, 64)}
    found = {suffix: compare(args, shape) for suffix, shape in shapes.items()}
    result: dict[str, object] = {}
    table: list[Row] = [("", *(f"hidden {shape[0]}" for shape in shapes.values()))]
    for key in found[""]:
        table.append((key, *(f"{values[key]:.3f}" for values in found.values())))
        result |= {f"{key}{suffix}": round(values[key], 4) for suffix, values in found.items()}
    table.append(("bound", *(verdict(values["grown_vs_base"], 1.05) for values in found.values())))
    setting = f"{args.layers} layers, vocabulary {args.vocabulary}, {args.experts} experts of width {args.width}, "
    setting += f"{args.prompt} tokens read, {args.completion} decoded, "
    setting += "CUDA" if args.cuda else f"{args.threads} thread(s)"
    report(f"Grown against base: {setting}", table, {**result, "setting": setting}, args.json)


if __name__ == "__main__":
    main()
