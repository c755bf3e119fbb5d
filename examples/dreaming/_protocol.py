"""Shared by the protocols: options, loading, the rounds that train the dreamer, and the output."""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every protocol takes."""
    parser = argparse.ArgumentParser(
        description=description.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", help="folder or name on the Hugging Face hub of a causal language model")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of ReST-EM before the evaluation (SEAL: 2)")
    parser.add_argument("--width", type=int, default=64, help="width of the expert that the rounds train")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of that expert")
    parser.add_argument("--epochs", type=int, default=2, help="passes over a round's dreams")
    parser.add_argument("--batch-size", type=int, default=32, help="rows in one batch of generation and scoring")
    parser.add_argument("--chunk", type=int, default=8, help="number of adapters on the device at a time")
    parser.add_argument("--workers", type=int, default=0, help="Ray tasks at a time on this machine; 0: this process")
    parser.add_argument("--ray-address", help="host:port of a Ray cluster that takes the chunks")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a Ray task, at most 1")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="of the base")
    parser.add_argument("--seed", type=int, default=42, help="of dreams and adapters")
    parser.add_argument("--output", type=Path, help="file to write the JSON object and a record of each dream to")
    parser.add_argument("--json", action="store_true", help="print only the last line, one JSON object")
    parser.add_argument("--estimate", type=float, metavar="N", help="print the cost for N parameters and exit")
    return parser


@dataclass
class Setup:
    """A model ready to dream."""

    model: Any
    tokenizer: Any
    engine: Any
    prompter: Any
    workers: Any


def load(args: argparse.Namespace) -> Setup:
    """Load the model, with a new expert in each layer if it is to be trained."""
    from sleep_trl.batched_lora import Workers
    from sleep_trl.config import RunConfig
    from sleep_trl.data.prompts import Prompter
    from sleep_trl.memory import MemorySpec, attach
    from sleep_trl.models.loading import load_model, load_tokenizer
    from sleep_trl.rollout import TransformersEngine

    workers = None
    if args.workers or args.ray_address:
        workers = Workers(args.ray_address, count=args.workers or None, gpus=args.gpus)
    config = RunConfig(model=args.model, memories="none", output_dir=Path("none"), dtype=args.dtype)
    model, tokenizer = load_model(config), load_tokenizer(config)
    if args.rounds:
        attach(model, MemorySpec(width=args.width, max_experts=1, seed=args.seed)).activate()
    engine = TransformersEngine(model, tokenizer, args.batch_size)
    return Setup(model, tokenizer, engine, Prompter(tokenizer), workers)


def train_dreamer(
    args: argparse.Namespace, setup: Setup, rows: list[dict[str, Any]], evaluator: Any, **options: Any
) -> list[dict[str, Any]]:
    """Train the dreamer by ReST-EM; return a record of each dream."""
    import torch
    from datasets import Dataset

    from sleep_trl.rollout import plain_generation
    from sleep_trl.trainers import DreamingConfig, DreamingTrainer

    dreams = len(rows) * options["num_generations"]
    with tempfile.TemporaryDirectory() as folder, plain_generation(setup.model):
        trainer = DreamingTrainer(
            setup.model,
            args=DreamingConfig(
                folder,
                rounds=args.rounds,
                em_epochs=args.epochs,
                learning_rate=args.learning_rate,
                per_device_train_batch_size=max(n for n in range(1, 11) if dreams % n == 0),
                seed=args.seed,
                report_to="none",
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                **options,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=setup.tokenizer,
            evaluator=evaluator,
        )
        trainer.train()
    setup.model.eval()
    return trainer.trials


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON lines file, gzipped or not."""
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def cost(parameters: float, **tokens: float) -> dict[str, float]:
    """Estimate floating-point operations: two per weight for a token that is read or written, four for one that an
    adapter learns from (forward, and backward only to the inputs). Attention and adapters are left out.

    Args:
        parameters (`float`):
            Weights of the model.
        **tokens (`float`):
            `written`, `learnt` and `scored`: total numbers of tokens.
    """
    per_token = {"written": 2, "learnt": 4, "scored": 2}
    return {f"flops_{kind}": per_token[kind] * parameters * count for kind, count in tokens.items()}


def finish(args: argparse.Namespace, title: str, result: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Print the result, and write it with a record of each dream if an output file is given."""
    if not args.json:
        print(title)
        for key, value in result.items():
            print(f"  {key:32} {value:.4g}" if isinstance(value, float) else f"  {key:32} {value}")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({**result, "dreams": records}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result), flush=True)
