"""The cost of updating an engine's weights, relative to the model's size and a training step.

The model has the shape of Qwen3-0.6B (hidden size 1024), with fewer layers and random weights, and five experts of
width 64, the last of which is in training. An update compares all experts with what the engine received last, sends the
one that changed, and compares the engine's fingerprint with the trainer's. The engine has its own copy of the weights,
in this process or in a Ray actor. `payload_share` is what an update sends, `payload_share_of_all_experts` what it would
send if all five had changed, both as shares of the grown model's bytes. `time_share_of_step` is the time of an update
of the Ray actor, the median over rounds, divided by that of a step: a forward and a backward pass and AdamW on the
rollouts only, without generating them and without teacher and references.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from _report import Row, argument_parser, environment, progress, report, rerun_with, verdict


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--hidden", type=int, default=1024, help="hidden size, a multiple of 128 (1024)")
    parser.add_argument("--layers", type=int, default=4, help="decoder layers (4)")
    parser.add_argument("--vocabulary", type=int, default=8000, help="entries of the vocabulary (8000)")
    parser.add_argument("--experts", type=int, default=5, help="experts (5)")
    parser.add_argument("--width", type=int, default=64, help="width of an expert (64)")
    parser.add_argument("--batch", type=int, default=8, help="rollouts per step (8)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of prompt and rollout together (128)")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers", help="the engine")
    parser.add_argument("--rounds", type=int, help="rounds (10; with --quick 3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    args = parser.parse_args()
    if args.hidden % 128:
        parser.error(f"--hidden must be a multiple of 128, got {args.hidden}")
    args.rounds = args.rounds or (3 if args.quick else 10)
    return args


def make_memory(args: argparse.Namespace) -> Any:
    """Create the model with its experts; the last one is in training."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sleep_trl.memory import MemorySpec, attach

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 128,
        head_dim=64,
        vocab_size=args.vocabulary,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    memory = attach(LlamaForCausalLM(config).eval(), MemorySpec(width=args.width, max_experts=args.experts))
    for _ in range(args.experts):
        memory.activate()
    return memory


def make_engine(memory: Any, kind: str, is_remote: bool) -> Any:
    from transformers import AutoTokenizer

    from sleep_trl.config import RolloutConfig
    from sleep_trl.rollout.choice import make_engine
    from sleep_trl.rollout.replica import ReplicaSpec
    from sleep_trl.rollout.synced import InThisProcess, SyncedEngine
    from sleep_trl.rollout.weights import GrownWeights

    tokenizer = AutoTokenizer.from_pretrained("examples/quickstart/model")
    if is_remote or kind == "vllm":
        options = {"engine": "ray", "inner_engine": kind, "num_engines": 1} if is_remote else {"engine": kind}
        return make_engine(RolloutConfig(**options), memory, tokenizer, 64)[0]
    weights = GrownWeights(memory, memory.active)
    spec = ReplicaSpec("transformers", weights.config(), tokenizer, (2,))
    return SyncedEngine(weights, lambda: InThisProcess(spec.make(), "the engine", 64))


def time_step(memory: Any, args: argparse.Namespace) -> float:
    """Return the seconds of a step, the median over rounds."""
    import torch

    trained = [p for p in memory.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    ids = torch.randint(4, args.vocabulary, (args.batch, args.tokens))
    seconds = []
    for _ in range(args.rounds + 1):
        start = time.perf_counter()
        memory.model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def time_update(memory: Any, engine: Any, rounds: int) -> tuple[float, int]:
    """Return the seconds of an update, the median over rounds, and the bytes it sends."""
    import torch

    engine.sync()
    seconds, sent = [], 0
    for _ in range(rounds + 1):
        with torch.no_grad():
            for _, parameter in memory.expert_parameters(memory.learning):
                parameter.add_(1e-3)
        start = time.perf_counter()
        sent = engine.sync()
        seconds.append(time.perf_counter() - start)
    engine.close()
    return statistics.median(seconds[1:]), sent


def main() -> None:
    args = parse()
    rerun_with(environment(args.threads))
    import torch

    torch.set_num_threads(args.threads)
    memory = make_memory(args)
    element = next(memory.model.parameters()).element_size()
    counts = memory.count_parameters()
    whole = (counts["base"] + counts["added"]) * element
    progress("training step")
    step = time_step(memory, args)
    progress(f"{args.engine} under Ray")
    remote, sent = time_update(memory, make_engine(memory, args.engine, is_remote=True), args.rounds)
    progress(f"{args.engine} in this process")
    local, _ = time_update(memory, make_engine(memory, args.engine, is_remote=False), args.rounds)
    result = {
        "payload_share": round(sent / whole, 5),
        "payload_share_of_all_experts": round(counts["added"] * element / whole, 5),
        "time_share_of_step": round(remote / step, 4),
        "time_share_of_step_in_process": round(local / step, 4),
        "step_seconds": round(step, 3),
        "update_seconds": round(remote, 4),
        "update_seconds_in_process": round(local, 4),
        "payload_mib": round(sent / 2**20, 2),
        "model_mib": round(whole / 2**20, 1),
        "engine": args.engine,
    }
    rows: list[Row] = [
        ("", "share", "bound"),
        ("payload of an update", f"{sent / whole:.2%}", verdict(sent / whole, 0.05)),
        ("payload if all experts changed", f"{counts['added'] * element / whole:.2%}", ""),
        ("time of an update under Ray", f"{remote / step:.2%}", verdict(remote / step, 0.10)),
        ("time of an update in the process", f"{local / step:.2%}", verdict(local / step, 0.10)),
    ]
    report(f"Updates of {whole / 2**20:.0f} MiB in {args.engine}, step {step:.2f} s", rows, result, args.json)


if __name__ == "__main__":
    main()
