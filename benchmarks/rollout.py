"""Tokens per second by engine, for prompts of mixed length and completions that may end early.

The prompts are pieces of the quickstart's memories. Completions are sampled at temperature 1 and end with the model's
end-of-sequence token or at the maximum length. The bundled model ends them itself; the larger one has random weights
and the same vocabulary. Engines take turns in one run: transformers in this process, Ray pools of one and of two of
them, and vLLM in this process (if it is installed; on a CPU it computes with its weights in place, as updates require).
`tokens_per_second` is the median over rounds; `vllm_vs_transformers` and `two_engines_vs_one` are ratios of these.
"""

from __future__ import annotations

import argparse
import statistics
import time
from importlib.util import find_spec
from typing import Any

from _report import ROOT, Row, argument_parser, environment, progress, report, rerun_with

QUICKSTART = ROOT / "examples" / "quickstart"
SIZES = ("bundled", "30m")


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES), help="models (both)")
    parser.add_argument("--prompts", type=int, help="prompts (256; with --quick 64)")
    parser.add_argument("--completion", type=int, default=64, help="maximum tokens of a completion (64)")
    parser.add_argument("--batch", type=int, default=64, help="batch size of transformers (64)")
    parser.add_argument("--rounds", type=int, help="rounds (3; with --quick 1)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per engine (1)")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.prompts = args.prompts or (64 if args.quick else 256)
    return args


def make_memory(size: str) -> Any:
    """Create or load a model with one settled, nonzero expert."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    from sleep_trl.memory import MemorySpec, attach

    torch.manual_seed(0)
    if size == "bundled":
        model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model", dtype=torch.float32)
    else:
        config = LlamaConfig.from_pretrained(QUICKSTART / "model", head_dim=64, hidden_size=512, intermediate_size=1536)
        config.num_hidden_layers = 8
        model = LlamaForCausalLM(config)
    memory = attach(model.eval(), MemorySpec(width=64, max_experts=2))
    expert = memory.activate()
    with torch.no_grad():
        for name, parameter in memory.expert_parameters(expert):
            if name.endswith("down"):
                parameter.normal_(0, 1e-3)
    memory.commit()
    return memory


def make_prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Cut the quickstart's memories into prompts of 4 to 131 tokens."""
    from sleep_trl.data.sources import read_memories

    texts = [m.text for m in read_memories(str(QUICKSTART / "memories.jsonl"))]
    ids = tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"]
    starts = range(0, count * 13, 13)
    return [[tokenizer.bos_token_id, *ids[s % (len(ids) - 140) :][: 3 + (s * 37) % 128]] for s in starts]


def make_engines(memory: Any, tokenizer: Any, batch: int) -> dict[str, Any]:
    from sleep_trl.config import RolloutConfig
    from sleep_trl.rollout.choice import make_engine

    asked = {
        "transformers": {"engine": "transformers"},
        "ray, 1 x transformers": {"engine": "ray", "inner_engine": "transformers", "num_engines": 1},
        "ray, 2 x transformers": {"engine": "ray", "inner_engine": "transformers", "num_engines": 2},
        "vllm": {"engine": "vllm"},
    }
    if find_spec("vllm") is None:
        progress("vLLM is not installed: `make vllm`")
        del asked["vllm"]
    return {name: make_engine(RolloutConfig(**options), memory, tokenizer, batch)[0] for name, options in asked.items()}


def measure(size: str, args: argparse.Namespace) -> dict[str, float]:
    """Return the tokens per second of each engine, the median over rounds."""
    from transformers import AutoTokenizer

    from sleep_trl.rollout import Sampling

    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "model", padding_side="left")
    prompts = make_prompts(tokenizer, args.prompts)
    engines = make_engines(make_memory(size), tokenizer, args.batch)
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for name, engine in engines.items():
        progress(f"{size}: starting {name}")
        engine.generate(prompts[:8], Sampling(4))
    for round_ in range(args.rounds):
        for name, engine in engines.items():
            progress(f"{size}: round {round_ + 1}, {name}")
            start = time.perf_counter()
            drawn = engine.generate(prompts, Sampling(args.completion, seed=round_))
            speeds[name].append(sum(len(c.ids) for c in drawn) / (time.perf_counter() - start))
    for engine in engines.values():
        engine.close()
    return {name: statistics.median(values) for name, values in speeds.items()}


def main() -> None:
    args = parse()
    rerun_with(environment(args.threads))
    import torch

    torch.set_num_threads(args.threads)
    speeds = {size: measure(size, args) for size in args.sizes}
    result: dict[str, Any] = {
        "tokens_per_second": {s: {n: round(v, 1) for n, v in values.items()} for s, values in speeds.items()},
        "two_engines_vs_one": {
            s: round(v["ray, 2 x transformers"] / v["ray, 1 x transformers"], 3) for s, v in speeds.items()
        },
        "vllm_vs_transformers": {s: round(v["vllm"] / v["transformers"], 3) for s, v in speeds.items() if "vllm" in v},
    }
    names = next(iter(speeds.values()))
    rows: list[Row] = [("tokens per second", *args.sizes)]
    rows += [(name, *(f"{speeds[size][name]:,.0f}" for size in args.sizes)) for name in names]
    report(f"{args.prompts} prompts, {args.threads} threads per engine", rows, result, args.json)


if __name__ == "__main__":
    main()
