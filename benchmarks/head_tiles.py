"""Seconds and memory of the divergence and its gradient, by the number of positions per tile of the LM head.

    python benchmarks/head_tiles.py --json

On a CPU, TRL's kernels multiply in float32 and copy a bfloat16 weight for each tile, so that small tiles are slow;
large ones hold more logits. The head has the shape of SmolLM2-135M's, with random weights. Each size is measured in
turn, in every round; seconds are of the processor, the median over rounds, and memory is what the peak of the process
grew by. `speedup` is the smallest tile's seconds divided by those of the tile that training uses.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from _peaks import peak_since_reset, reset_peak
from _report import Row, argument_parser, environment, progress, report, rerun_with

TILES = (24, 64, 128, 256)
DTYPES = ("bfloat16", "float32")


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--hidden", type=int, default=576, help="hidden size (576)")
    parser.add_argument("--vocabulary", type=int, default=49152, help="entries of the vocabulary (49152)")
    parser.add_argument("--positions", type=int, default=512, help="positions of a step (512)")
    parser.add_argument("--rounds", type=int, help="rounds (5; with --quick 1)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 5)
    return args


def measure(head: Any, hidden: list[Any], tile: int) -> tuple[float, float]:
    """Return seconds of the processor, and the growth of the peak in MiB."""
    import torch

    from sleep_trl.runs.host_memory import give_back
    from sleep_trl.trainers.knowledge_seeding import loss

    student, teacher = (states.clone() for states in hidden)
    give_back()
    reset_peak()
    before, loss.positions_per_tile = peak_since_reset(), lambda weight: tile
    since = time.process_time()
    mask = torch.ones(1, student.shape[0], dtype=torch.long)
    loss.divergence_per_token(student[None].requires_grad_(), teacher[None], head, head, mask, 0.0).sum().backward()
    return time.process_time() - since, peak_since_reset() - before


def compare(args: argparse.Namespace, name: str) -> dict[str, dict[str, float]]:
    """Return seconds and MiB of each number of positions, for a head with weights of this dtype."""
    import torch

    from sleep_trl.models.head import Head

    dtype = getattr(torch, name)
    torch.manual_seed(0)
    head = Head((torch.randn(args.vocabulary, args.hidden) * 0.05).to(dtype))
    hidden = [torch.randn(args.positions, args.hidden).to(dtype) for _ in range(2)]
    measure(head, hidden, TILES[0])
    found: dict[int, list[tuple[float, float]]] = {tile: [] for tile in TILES}
    for turn in range(args.rounds):
        progress(f"{name}: round {turn + 1} of {args.rounds}")
        for tile, figures in found.items():
            figures.append(measure(head, hidden, tile))
    return {
        str(tile): {
            "seconds": round(statistics.median(seconds for seconds, _ in figures), 3),
            "mib": round(max(mib for _, mib in figures)),
        }
        for tile, figures in found.items()
    }


def main() -> None:
    args = parse()
    rerun_with(environment(args.threads))
    import torch

    from sleep_trl.runs.host_memory import bound_caches
    from sleep_trl.trainers.knowledge_seeding.loss import positions_per_tile

    bound_caches()
    torch.set_num_threads(args.threads)
    used = {name: positions_per_tile(torch.empty(1, dtype=getattr(torch, name))) for name in DTYPES}
    found = {name: compare(args, name) for name in DTYPES}
    speedup = {
        name: round(rows[str(TILES[0])]["seconds"] / rows[str(used[name])]["seconds"], 2)
        for name, rows in found.items()
    }
    rows: list[Row] = [("positions", *(f"{name} {what}" for name in DTYPES for what in ("seconds", "MiB")))]
    for tile in map(str, TILES):
        rows.append((tile, *(f"{found[name][tile][what]:g}" for name in DTYPES for what in ("seconds", "mib"))))
    title = f"{args.positions} positions, hidden {args.hidden}, vocabulary {args.vocabulary}, {args.threads} thread(s)"
    report(title, rows, {"tiles": found, "used": used, "speedup": speedup}, args.json)


if __name__ == "__main__":
    main()
