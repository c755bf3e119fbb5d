"""The cost of selecting dreams by their gradient, in forward and backward passes over the same dreams.

One pass is a forward and a backward pass with the gradients of all weights, in batches of the same size and order. The
model is a Llama with random weights, float32; 64 dreams of 30 to 70 tokens. Sides take turns; medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from _report import ROOT, argument_parser, environment, progress, report, rerun_with, verdict

sys.path.insert(0, str(ROOT))


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--dreams", type=int, default=64, help="dreams to select from")
    parser.add_argument("--hidden", type=int, default=512, help="hidden size of the random model")
    parser.add_argument("--layers", type=int, default=8, help="decoder layers")
    parser.add_argument("--batch", type=int, default=16, help="dreams in a forward pass")
    parser.add_argument("--rounds", type=int, help="timed rounds (5; with --quick 2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 5)
    return args


def make_model(args: argparse.Namespace) -> Any:
    """Create a random Llama of the given size, with 32,000 words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def train_pass(model: Any, texts: Sequence[Any], size: int) -> None:
    """Run forward and backward over all texts, with the gradients of all weights."""
    import torch

    by_length = sorted(texts, key=lambda text: len(text.ids))
    for start in range(0, len(by_length), size):
        batch = by_length[start : start + size]
        width = max(len(text.ids) for text in batch)
        ids = torch.tensor([t.ids + [0] * (width - len(t.ids)) for t in batch])
        labels = torch.tensor([t.labels + [-100] * (width - len(t.labels)) for t in batch])
        mask = torch.tensor([[1] * len(t.ids) + [0] * (width - len(t.ids)) for t in batch])
        model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
    model.zero_grad()


def main() -> None:
    args = parse()
    rerun_with(environment(args.threads))
    import torch

    from sleep_trl.dreams import Text, gradient_scores, reference_gradient

    torch.set_num_threads(args.threads)
    model = make_model(args)
    generator = torch.Generator().manual_seed(1)
    texts = []
    for i in range(args.dreams):
        ids = torch.randint(3, 32000, (30 + 40 * i // args.dreams,), generator=generator).tolist()
        texts.append(Text(ids, ids))
    reference = reference_gradient(model, texts[:4], args.batch)
    sides: dict[str, Callable[[], object]] = {
        "pass": lambda: train_pass(model, texts, args.batch),
        "gradient_norm": lambda: gradient_scores(model, texts, None, args.batch),
        "gradient_alignment": lambda: gradient_scores(model, texts, reference, args.batch),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(args.rounds + 1):  # the first is not counted
        progress(f"round {turn} of {args.rounds}")
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            taken[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values[1:]) for name, values in taken.items()}
    ratios = {name: median[name] / median["pass"] for name in ("gradient_norm", "gradient_alignment")}
    title = (
        f"Selecting among {args.dreams} dreams: hidden {args.hidden}, {args.layers} layers, {args.threads} thread(s)"
    )
    table = [("", "seconds", "passes", "bound"), ("forward and backward", f"{median['pass']:.2f}", "1", "")]
    for name, ratio in ratios.items():
        table.append((name, f"{median[name]:.2f}", f"{ratio:.3f}", verdict(ratio, 2.0)))
    result = {"passes": round(max(ratios.values()), 4), **{f"passes_{k}": round(v, 4) for k, v in ratios.items()}}
    report(title, table, result, args.json)


if __name__ == "__main__":
    main()
